"""A TLS handshake: protocol, cipher, certificates, and whether the server is trusted.

"Is there TLS" and "is it trusted" are separate questions, as a certificate is shown because something is wrong with it.
The first handshake verifies, and accepts what is safe today. When it fails, a second one accepts anything that OpenSSL
can speak, and verifies nothing. Whether a server is trusted does not depend on the version of Python, whose default
context became stricter in 3.13: the settings are made here, those of OpenSSL itself.
"""

from __future__ import annotations

import _ssl
import os
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from math import ceil
from socket import SHUT_RDWR, socket
from time import monotonic
from typing import Any, TypeVar

from portbook.probe.tls import alerts, distrust
from portbook.probe.tls.certificate import first_to_expire, in_order, parse
from portbook.probe.tls.records import Certificate, ClientCertificate, Tls

SAFE_CIPHERS = "DEFAULT:@SECLEVEL=2"  # 112 bits: RSA of 2048 bits, SHA-256 (SSL_CTX_set_security_level(3))
ANY_CIPHERS = "ALL:@SECLEVEL=0"
OP_LEGACY_SERVER_CONNECT = 0x4  # ssl has it from 3.12 on: servers without RFC 5746
ALERT, HANDSHAKE, CERTIFICATE_REQUEST = 21, 22, 13  # RFC 8446 sections 5.1 and 4
RECORD_TYPES = range(20, 25)  # RFC 8446 section 5.1, RFC 6520
PROTOCOLS = {0x0300: "SSLv3", 0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}
MOST_CERTIFICATES = 32  # of a chain
BEGINNING = 48  # octets that are kept of what a server sends first
CHUNK = 65536
# How long to wait for the alert "certificate required", which comes after a handshake of TLS 1.3 (RFC 8446 section
# 4.4.2.4): a round trip, which the handshake has measured; and at least this.
ALERT_S = 0.5
# What a server sends that wants a client certificate and gets none.
NO_CERTIFICATE_ALERTS = frozenset((40, 41, 42, 43, 46, 48, 49, 116))
# OpenSSL's own reasons for not going on.
REFUSALS = {
    "UNSUPPORTED_PROTOCOL": "the server has no protocol version that is safe: TLS 1.2 and later are (RFC 8996)",
    "DH_KEY_TOO_SMALL": "the server's Diffie-Hellman key is too small",
    "UNSAFE_LEGACY_RENEGOTIATION_DISABLED": "the server does not support secure renegotiation (RFC 5746)",
    "WRONG_SIGNATURE_TYPE": "the server signs the handshake with an algorithm that is too weak",
    "NO_SHARED_CIPHER": "the server has no cipher that this machine supports",
    "EE_KEY_TOO_SMALL": "the key of the server's certificate is too small",
    "CA_KEY_TOO_SMALL": "the key of a certificate in the chain is too small",
    "CA_MD_TOO_WEAK": "the signature of a certificate in the chain is too weak",
}

T = TypeVar("T")
Connect = Callable[[], socket | None]  # opens a new connection to the same port; None: it failed


def handshake(first: socket, server_name: str, connect: Connect, until: float) -> Tls:
    """Do a TLS handshake over a connected socket, and close it. Never raises OSError: a failure is a result.

    :param server_name: a name in ASCII without a trailing dot, or an address without a zone: for SNI (RFC 6066 section
        3: names alone), and to verify the certificate
    :param connect: opens another connection, to read the certificate of a server that is not trusted
    :param until: the end of the time for all of it, of ``time.monotonic``
    """
    verifying = _Conversation(first, _safe_context(), server_name, until)
    verifying.run()
    if verifying.is_tls and not verifying.failure:
        return _result(verifying, server_name, trusted=True)
    if not verifying.was_tls:
        return Tls(None, error=verifying.failure, server_name=server_name)
    any_server = verifying
    again = connect()
    if again is not None:
        any_server = _Conversation(again, _any_context(), server_name, until)
        any_server.run()
    if not any_server.is_tls and verifying.chain:
        any_server = verifying  # the second was cut short: no time, or the server has enough
    return _result(any_server, server_name, trusted=False, error=_reason(verifying, any_server, server_name))


def _reason(verifying: _Conversation, any_server: _Conversation, server_name: str) -> str:
    """Why the server is not trusted, or why there was no handshake."""
    if verifying.verify_code is not None:
        chain = in_order(verifying.chain or any_server.chain)
        text = distrust.reason(verifying.verify_code, verifying.failure, chain, server_name)
        if verifying.verify_code in distrust.UNKNOWN_AUTHORITY and not _has_authorities():
            text += "; this machine has no certificate authorities at all (package ca-certificates)"
        return text
    return verifying.failure


def _result(done: _Conversation, server_name: str, *, trusted: bool, error: str | None = None) -> Tls:
    chain = tuple(done.chain) if trusted else in_order(done.chain)
    own: Certificate | None = chain[0] if chain else None
    return Tls(
        protocol=done.protocol if done.is_tls or chain else None,
        cipher=done.cipher,
        subject=own.subject if own else None,
        issuer=own.issuer if own else None,
        names=own.names if own else (),
        expires=own.expires if own else None,
        days_left=own.days_left if own else None,
        trusted=trusted,
        error=error,
        server_name=server_name,
        client_certificate=done.client_certificate,
        chain=chain,
        first_to_expire=first_to_expire(chain),
    )


# --- contexts ------------------------------------------------------------------------------------------------------


def _safe_context() -> ssl.SSLContext:
    """What a careful client accepts: TLS 1.2 and later, 112 bits of security, authorities of this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(SAFE_CIPHERS)
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST
    context.load_default_certs()
    return context


def _has_authorities() -> bool:
    """Whether OpenSSL has a file or a directory of authorities; Windows has a store of its own."""
    if sys.platform == "win32":
        return True
    paths = ssl.get_default_verify_paths()  # None: does not exist; the environment variables are heeded
    with suppress(OSError):
        if paths.cafile and os.path.getsize(paths.cafile) > 0:
            return True
    with suppress(OSError):
        return bool(paths.capath and os.listdir(paths.capath))
    return False


def _any_context() -> ssl.SSLContext:
    """What OpenSSL can speak at all, unverified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers(ANY_CIPHERS)
    context.options |= OP_LEGACY_SERVER_CONNECT
    return context


# --- one handshake -------------------------------------------------------------------------------------------------


class _Conversation:
    """A handshake over a socket, with one end of time for all of it, and what was seen of it."""

    def __init__(self, sock: socket, context: ssl.SSLContext, server_name: str, until: float) -> None:
        self.is_tls = False  # the handshake completed, or failed for want of a client certificate alone
        self.failure = ""  # why it did not complete
        self.verify_code: int | None = None  # OpenSSL's number, when the certificate is the reason
        self.chain: Sequence[Certificate] = ()
        self.protocol: str | None = None
        self.cipher: str | None = None
        self.client_certificate: ClientCertificate | None = None
        self._sock, self._context, self._server_name, self._until = sock, context, server_name, until
        self._limit_s = max(0.0, until - monotonic())
        self._began = monotonic()
        self._beginning = b""
        self._alert: int | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    @property
    def was_tls(self) -> bool:
        """Whether the server answered with a record of TLS."""
        return len(self._beginning) > 1 and self._beginning[0] in RECORD_TYPES and self._beginning[1] == 3

    def run(self) -> None:
        """Do the handshake and close the socket."""
        with self._sock:
            # Named "for debugging" in ssl.py, and there in every version: nothing else shows whether a server asks for
            # a client certificate. Without it that is not known, and all else is.
            self._context._msg_callback = self._on_message  # type: ignore[attr-defined]
            try:
                secured = self._context.wrap_bio(self._incoming, self._outgoing, server_hostname=self._server_name)
            except ValueError as error:  # not a name: a label is too long
                self.failure = f"the name cannot be requested: {error}"
                return
            try:
                self._drive(secured.do_handshake)
                self.is_tls = True
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                self._keep_failure(error)
            self._keep(secured)
            if self.is_tls:
                self._end(secured)

    def _keep(self, secured: ssl.SSLObject) -> None:
        self.protocol = secured.version() or self.protocol
        cipher = secured.cipher()
        self.cipher = cipher[0] if cipher else None
        verified = self._context.verify_mode == ssl.CERT_REQUIRED and self.is_tls
        self.chain = [parse(encoded) for encoded in islice(_encoded_chain(secured, verified), MOST_CERTIFICATES)]

    def _end(self, secured: ssl.SSLObject) -> None:
        """Say goodbye; before that, where a client certificate was requested, hear whether it is required."""
        if self.client_certificate == "requested" and self.protocol == "TLSv1.3":
            wait_s = max(ALERT_S, 2 * (monotonic() - self._began))
            self._until = min(self._until, monotonic() + wait_s)
            with suppress(OSError):
                self._drive(lambda: secured.read(1))
            if self._alert in NO_CERTIFICATE_ALERTS:
                self.client_certificate = "required"
        with suppress(OSError):  # want read: the server's own goodbye is not waited for
            secured.unwrap()
        with suppress(OSError):
            self._send()
            self._sock.shutdown(SHUT_RDWR)

    # --- transport ---

    def _drive(self, step: Callable[[], T]) -> T:
        """Repeat a step of OpenSSL until it needs nothing more from the network; raise OSError."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._send()
                self._receive()
            finally:
                with suppress(OSError):
                    self._send()  # an alert of our own, when the step failed

    def _send(self) -> None:
        if self._outgoing.pending:
            self._sock.settimeout(self._left_s())
            self._sock.sendall(self._outgoing.read())

    def _receive(self) -> None:
        self._sock.settimeout(self._left_s())
        data = self._sock.recv(CHUNK)
        if len(self._beginning) < BEGINNING:
            self._beginning += data[: BEGINNING - len(self._beginning)]
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _left_s(self) -> float:
        left_s = self._until - monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def _on_message(
        self, _: object, direction: str, version: int, content_type: int, message_type: int, data: bytes
    ) -> None:
        if direction != "read":
            return
        if content_type == HANDSHAKE:
            self.protocol = PROTOCOLS.get(version, self.protocol)
            if message_type == CERTIFICATE_REQUEST:
                self.client_certificate = "requested"
        elif content_type == ALERT and len(data) == 2 and data[1] != 0:  # 0: close_notify
            self._alert = data[1]

    # --- failures ---

    def _keep_failure(self, error: Exception) -> None:
        if self._alert in NO_CERTIFICATE_ALERTS and self.client_certificate == "requested":
            self.client_certificate = "required"  # the server had been verified by then, if it is to be
            self.is_tls = True
            return
        if isinstance(error, ssl.SSLCertVerificationError):
            self.verify_code = error.verify_code
        self.failure = self._describe(error)

    def _describe(self, error: Exception) -> str:
        if self._beginning and not self.was_tls:
            return f"not TLS: the server began with {_quoted(self._beginning)}"
        if isinstance(error, TimeoutError):
            limit = f"within {ceil(self._limit_s * 10) / 10:g} s"
            if self._beginning:
                return f"the handshake did not complete {limit}"
            return f"no answer to the TLS hello {limit}"
        if self._alert is not None:
            return alerts.describe(self._alert)
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message or str(error)
        if isinstance(error, (ssl.SSLEOFError, ConnectionError)):
            how = "reset" if isinstance(error, ConnectionError) else "closed"
            when = "during the handshake" if self._beginning else "instead of answering the TLS hello"
            return f"the server {how} the connection {when}"
        if isinstance(error, ssl.SSLError) and error.reason:
            return REFUSALS.get(error.reason, f"OpenSSL: {error.reason.replace('_', ' ').lower()}")
        return str(error)


def _encoded_chain(secured: ssl.SSLObject, verified: bool) -> Sequence[bytes]:
    """The certificates as DER, the server's own first. Python has public methods for this from 3.13 on."""
    inner: Any = secured._sslobj  # type: ignore[attr-defined]
    chain = inner.get_verified_chain() if verified else inner.get_unverified_chain()
    return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in chain or ()]


def _quoted(data: bytes) -> str:
    """How a stranger's octets are shown: the first line, if it is text."""
    line = data.partition(b"\n")[0].rstrip(b"\r")
    if line and line.isascii() and line.decode("ascii").isprintable():
        return repr(line.decode("ascii"))
    return repr(data)[1:]
