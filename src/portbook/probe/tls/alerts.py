"""What the alerts of TLS mean (RFC 8446 section 6.2, RFC 5246 section 7.2.2), as words about a server that sent one."""

from __future__ import annotations

ALERTS: dict[int, tuple[str, str]] = {
    0: ("close_notify", "closed the connection"),
    10: ("unexpected_message", "received a message that it did not expect"),
    20: ("bad_record_mac", "received a record that was damaged on the way"),
    21: ("decryption_failed", "could not decrypt a record"),
    22: ("record_overflow", "received a record that is too long"),
    30: ("decompression_failure", "could not decompress a record"),
    40: ("handshake_failure", "accepts none of the offered ciphers and parameters"),
    41: ("no_certificate", "received no certificate"),
    42: ("bad_certificate", "refuses the certificate of the client"),
    43: ("unsupported_certificate", "does not support the kind of certificate"),
    44: ("certificate_revoked", "refuses a revoked certificate"),
    45: ("certificate_expired", "refuses an expired certificate"),
    46: ("certificate_unknown", "does not accept the certificate"),
    47: ("illegal_parameter", "received a parameter that it does not allow"),
    48: ("unknown_ca", "does not know the authority of a certificate"),
    49: ("access_denied", "denies access"),
    50: ("decode_error", "could not read a message"),
    51: ("decrypt_error", "could not verify a signature"),
    60: ("export_restriction", "refuses for reasons of export restrictions"),
    70: ("protocol_version", "supports none of the offered protocol versions"),
    71: ("insufficient_security", "requires stronger ciphers"),
    80: ("internal_error", "has an internal error"),
    86: ("inappropriate_fallback", "refuses a fallback to an older version"),
    90: ("user_canceled", "cancelled the handshake"),
    100: ("no_renegotiation", "refuses to renegotiate"),
    109: ("missing_extension", "misses an extension"),
    110: ("unsupported_extension", "received an extension that it did not offer"),
    111: ("certificate_unobtainable", "could not get the certificate"),
    112: ("unrecognized_name", "does not serve the requested name"),
    113: ("bad_certificate_status_response", "received an invalid certificate status"),
    114: ("bad_certificate_hash_value", "received a certificate that does not match its hash"),
    115: ("unknown_psk_identity", "does not know the pre-shared key"),
    116: ("certificate_required", "requires a client certificate"),
    120: ("no_application_protocol", "supports none of the offered application protocols"),
    121: ("ech_required", "requires Encrypted Client Hello"),
}


def describe(code: int) -> str:
    """An alert from a server, in words, with its name and number."""
    name, meaning = ALERTS.get(code, ("unknown", "ended the handshake"))
    return f"the server {meaning} (alert {code}, {name})"
