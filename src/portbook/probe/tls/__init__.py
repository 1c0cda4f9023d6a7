"""TLS: a handshake (handshake), its result (records), certificates read from DER (certificate, der, names), and why
one is not trusted (distrust). ``ssl`` is imported by ``handshake`` alone, which only ``dial --tls`` imports.
"""
