"""What a TLS server shows of itself: protocol, cipher, certificate, and whether it is to be trusted.

The certificate of a server that is not trusted is read as well: it is taken for its own authority in one more
handshake, with which the standard library tells what is in it (ssl, VERIFY_X509_PARTIAL_CHAIN).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from socket import socket
from typing import Any

from msgspec import Struct

# include/openssl/x509_vfy.h: an expired certificate shall be shown, not refused
X509_V_FLAG_NO_CHECK_TIME = 0x200000


class Tls(Struct, frozen=True):
    """One handshake."""

    protocol: str | None  # "TLSv1.3"; None: there was no handshake
    cipher: str | None = None
    subject: str | None = None  # "CN=example.org"
    issuer: str | None = None
    names: tuple[str, ...] = ()  # subjectAltName: RFC 6125
    expires: datetime | None = None  # aware, UTC
    days_left: int | None = None
    trusted: bool = False  # by this machine's authorities, for the name asked
    error: str | None = None  # why it is not trusted, or why there was no handshake


Dialer = Callable[[], socket | None]  # a new connection to the same port; None: not any more


def handshake(first: socket, name: str, dial: Dialer, timeout_s: float) -> Tls:
    """Shake hands over a connected socket, which is closed; ``dial`` makes more of them when it is not trusted."""
    trusting = ssl.create_default_context()
    try:
        return _shake(first, trusting, name, timeout_s, trusted=True)
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message or str(error)
    except (OSError, ValueError) as error:
        return Tls(None, error=_reason(error))
    return _untrusted(name, dial, timeout_s, why)


def _untrusted(name: str, dial: Dialer, timeout_s: float, why: str) -> Tls:
    """What an untrusted server shows: take its certificate without asking, then as its own authority."""
    with suppress(OSError, ValueError):
        again = dial()
        if again is None:
            return Tls(None, error=why)
        with again, _wrapped(again, _context(), name, timeout_s) as shown:
            certificate = shown.getpeercert(binary_form=True)
        once_more = dial() if certificate else None
        if certificate and once_more is not None:
            itself = _context()
            itself.verify_mode = ssl.CERT_REQUIRED
            itself.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | X509_V_FLAG_NO_CHECK_TIME
            itself.load_verify_locations(cadata=certificate)
            return _shake(once_more, itself, name, timeout_s, trusted=False, error=why)
    return Tls(None, error=why)


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _wrapped(sock: socket, context: ssl.SSLContext, name: str, timeout_s: float) -> ssl.SSLSocket:
    sock.settimeout(timeout_s)
    return context.wrap_socket(sock, server_hostname=name)


def _shake(
    sock: socket, context: ssl.SSLContext, name: str, timeout_s: float, *, trusted: bool, error: str | None = None
) -> Tls:
    with sock, _wrapped(sock, context, name, timeout_s) as shown:
        cipher = shown.cipher()
        fields: dict[str, Any] = shown.getpeercert() or {}
        expires = _expiry(fields.get("notAfter"))
        return Tls(
            protocol=shown.version(),
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
    """A name as RFC 4514 writes it, most telling part first."""
    return ", ".join(f"{SHORT.get(key, key)}={value}" for part in reversed(parts) for key, value in part) or None


def _expiry(text: str | None) -> datetime | None:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC) if text else None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer to the TLS hello in time"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error)
