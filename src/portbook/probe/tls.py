"""A TLS handshake: protocol, cipher, certificate, and whether the server is trusted.

The certificate of an untrusted server is read as well: in one more handshake it is taken as its own authority, so that
the standard library parses it (ssl, VERIFY_X509_PARTIAL_CHAIN).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from socket import socket
from typing import Any

from msgspec import Struct

# include/openssl/x509_vfy.h: show an expired certificate, do not refuse it
X509_V_FLAG_NO_CHECK_TIME = 0x200000


class Tls(Struct, frozen=True):
    """The result of a TLS handshake."""

    protocol: str | None  # "TLSv1.3"; None: there was no handshake
    cipher: str | None = None
    subject: str | None = None  # "CN=example.org"
    issuer: str | None = None
    names: tuple[str, ...] = ()  # subjectAltName: RFC 6125
    expires: datetime | None = None  # aware, UTC
    days_left: int | None = None
    trusted: bool = False  # by this machine's certificate authorities, for the requested name
    error: str | None = None  # why it is not trusted, or why there was no handshake


Connect = Callable[[], socket | None]  # opens a new connection to the same port; None: it failed


def handshake(first: socket, name: str, connect: Connect, timeout_s: float) -> Tls:
    """Do a TLS handshake over a connected socket, and close it. Never raises OSError: a failure is a result.

    :param name: the requested host name: for SNI, and to verify the certificate
    :param connect: opens further connections, to read the certificate of an untrusted server
    :param timeout_s: seconds for each handshake
    """
    trusting = ssl.create_default_context()
    try:
        return _handshake(first, trusting, name, timeout_s, trusted=True)
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message or str(error)
    except (OSError, ValueError) as error:
        return Tls(None, error=_reason(error))
    return _untrusted(name, connect, timeout_s, reason)


def _untrusted(name: str, connect: Connect, timeout_s: float, reason: str) -> Tls:
    """Read the certificate of an untrusted server without verification, then take it as its own authority."""
    with suppress(OSError, ValueError):
        second = connect()
        if second is None:
            return Tls(None, error=reason)
        with second, _wrapped(second, _unverified_context(), name, timeout_s) as secured:
            certificate = secured.getpeercert(binary_form=True)
        if not certificate:
            return Tls(None, error=reason)
        third = connect()
        if third is not None:
            own_authority = _unverified_context()
            own_authority.verify_mode = ssl.CERT_REQUIRED
            own_authority.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | X509_V_FLAG_NO_CHECK_TIME
            own_authority.load_verify_locations(cadata=certificate)
            return _handshake(third, own_authority, name, timeout_s, trusted=False, error=reason)
    return Tls(None, error=reason)


def _unverified_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _wrapped(sock: socket, context: ssl.SSLContext, name: str, timeout_s: float) -> ssl.SSLSocket:
    sock.settimeout(timeout_s)
    return context.wrap_socket(sock, server_hostname=name)


def _handshake(
    sock: socket, context: ssl.SSLContext, name: str, timeout_s: float, *, trusted: bool, error: str | None = None
) -> Tls:
    with sock, _wrapped(sock, context, name, timeout_s) as secured:
        cipher = secured.cipher()
        fields: dict[str, Any] = secured.getpeercert() or {}
        expires = _expiry(fields.get("notAfter"))
        return Tls(
            protocol=secured.version(),
            cipher=cipher[0] if cipher else None,
            subject=_distinguished(fields.get("subject", ())),
            issuer=_distinguished(fields.get("issuer", ())),
            names=tuple(value for _, value in fields.get("subjectAltName", ())),
            expires=expires,
            days_left=(expires - datetime.now(UTC)).days if expires else None,
            trusted=trusted,
            error=error,
        )


SHORT = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "stateOrProvinceName": "ST",
    "localityName": "L",
}


def _distinguished(parts: tuple[tuple[tuple[str, str], ...], ...]) -> str | None:
    """Format a name as RFC 4514 does, the most specific part first."""
    attributes = chain.from_iterable(reversed(parts))
    return ", ".join(f"{SHORT.get(key, key)}={value}" for key, value in attributes) or None


def _expiry(text: str | None) -> datetime | None:
    if not text:
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer to the TLS hello in time"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error)
