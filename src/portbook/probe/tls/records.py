"""What a TLS handshake found out: values, never exceptions."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct

ClientCertificate = Literal[
    "requested",  # the server goes on without one
    "required",  # the server ends the connection of a client that has none
]


class Certificate(Struct, frozen=True):
    """A certificate (RFC 5280), read without being trusted. What could not be read is empty or None."""

    subject: str  # RFC 4514: "CN=example.org,O=Example"
    issuer: str
    names: tuple[str, ...]  # subjectAltName: DNS names and addresses as they are, others with their kind: "URI:…"
    valid_from: datetime | None  # aware, UTC
    expires: datetime | None
    days_left: int | None  # whole days, rounded towards zero: 0 is less than a day before or after
    serial: str  # hexadecimal
    key: str  # "RSA 2048 bits", "EC P-256"
    signature: str  # "sha256WithRSAEncryption"
    authority: bool = False  # may sign certificates: cA of basicConstraints
    usages: tuple[str, ...] = ()  # extended key usage: "serverAuth"; empty: not restricted
    constraints: tuple[str, ...] = ()  # nameConstraints: "permitted .example.org"
    critical: tuple[str, ...] = ()  # the critical extensions: a name, or an OID that no table has
    sha256: str = ""  # fingerprint, hexadecimal


class Tls(Struct, frozen=True):
    """The result of a TLS handshake."""

    protocol: str | None  # "TLSv1.3"; None: there was no handshake
    cipher: str | None = None
    subject: str | None = None  # of the server's own certificate; "CN=example.org": RFC 4514
    issuer: str | None = None
    names: tuple[str, ...] = ()  # see Certificate
    expires: datetime | None = None  # aware, UTC
    days_left: int | None = None  # see Certificate
    trusted: bool = False  # by this machine's certificate authorities, for the requested name
    error: str | None = None  # why it is not trusted, or why there was no handshake
    server_name: str | None = None  # requested by SNI, and verified
    client_certificate: ClientCertificate | None = None  # None: the server asked for none
    chain: tuple[Certificate, ...] = ()  # the server's own first; as verified, or as sent if it is not trusted
    first_to_expire: int | None = None  # which of the chain: an index
