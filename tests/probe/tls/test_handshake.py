"""TLS handshakes with real servers of openssl, certificates of every kind, and openssl as the referee."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from portbook.probe.tls.handshake import handshake
from portbook.probe.tls.records import Tls
from tests.probe.tls.pki import LIMIT_S, Pki, openssl

HOST = "good.test"


def shake(port: int, name: str = HOST, limit_s: float = LIMIT_S) -> Tls:
    """A handshake with a port of this machine."""

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), LIMIT_S)

    return handshake(connect(), name, connect, time.monotonic() + limit_s)


# --- is it trusted -------------------------------------------------------------------------------------------------

# The certificate, what the server sends besides, the requested name, and what is said; None: it is trusted.
CASES = [
    ("good", (), HOST, None),
    ("good", (), "127.0.0.1", None),
    ("behind", ("issuer",), HOST, None),
    ("behind", ("issuer", "root"), HOST, None),
    ("by-loose", (), HOST, None),
    ("good", (), "bad.test", "not valid for the name bad.test"),
    ("good", (), "127.0.0.2", "not valid for the address 127.0.0.2"),
    ("behind", (), HOST,
     "unknown issuer, neither an authority of this machine nor sent by the server: CN=issuer"),
    ("self", (), HOST, "self-signed, and not an authority of this machine: CN=self"),
    ("by-other", ("other-root",), HOST,
     "self-signed certificate in the chain, not an authority of this machine: CN=other-root"),
    ("expired", (), HOST, "expired on 2021-01-01 00:00 UTC: CN=expired"),
    ("early", (), HOST, "not valid before 2098-01-01 00:00 UTC: CN=early"),
    ("by-expired", ("expired-issuer",), HOST, "expired on 2021-01-01 00:00 UTC: CN=expired-issuer"),
    ("client", (), HOST, "not for servers: the extended key usage of CN=client is clientAuth, and not serverAuth"),
    ("sha1", (), HOST, "signature too weak, ecdsa-with-SHA1: CN=sha1"),
    ("by-sha1", ("sha1-issuer",), HOST, "signature too weak, ecdsa-with-SHA1: CN=sha1-issuer"),
    ("small", (), HOST, "key too small, RSA 1024 bits: CN=small"),
    ("by-small", ("small-issuer",), HOST, "key of an issuer too small, RSA 1024 bits: CN=small-issuer"),
    ("critical", (), HOST, "critical extension that OpenSSL does not know, 1.3.6.1.4.1.55555.1: CN=critical"),
    ("outside", ("constrained",), HOST,
     "outside the name constraints of its issuer, CN=constrained: permitted allowed.test"),
    ("deep", ("below-short", "short"), HOST, "more certificates below an issuer than it allows (pathlen)"),
    ("by-leaf", ("no-authority",), HOST, "signed by a certificate that is not of an authority: CN=no-authority"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sends", "host", "expected"), CASES)
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_any_certificate_is_shown_and_the_verdict_is_that_of_openssl(trusting, name, sends, host, expected, version):
    with trusting.server(name, version, "-cipher", "DEFAULT:@SECLEVEL=0", sends=sends) as port:
        found = shake(port, host)
    root = "loose-root" if name == "by-loose" else "root"
    refused = trusting.verify(name, root, *sends, host=host)
    assert (found.trusted, found.error) == (refused is None, expected), refused
    assert found.protocol == {"-tls1_2": "TLSv1.2", "-tls1_3": "TLSv1.3"}[version]
    assert found.cipher
    assert found.subject == f"CN={name}"
    assert [certificate.subject for certificate in found.chain[: 1 + len(sends)]] == [
        f"CN={each}" for each in (name, *sends)
    ]
    assert found.client_certificate is None


def test_a_trusted_chain_ends_with_the_authority_of_this_machine(trusting):
    with trusting.server("behind", sends=("issuer", "other-root")) as port:
        found = shake(port)
    assert [certificate.subject for certificate in found.chain] == ["CN=behind", "CN=issuer", "CN=root"]


def test_what_does_not_belong_to_the_chain_is_left_out(trusting):
    with trusting.server("by-other", sends=("issuer", "other-root", "expired-issuer")) as port:
        found = shake(port)
    assert [certificate.subject for certificate in found.chain] == ["CN=by-other", "CN=other-root"]


def test_the_certificate_of_the_chain_that_expires_first(trusting):
    with trusting.server("by-expired", sends=("expired-issuer",)) as port:
        found = shake(port)
    assert (found.first_to_expire, found.chain[1].days_left < -365, found.days_left > 365) == (1, True, True)


# --- protocols and ciphers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "protocol"), [("-tls1", "TLSv1"), ("-tls1_1", "TLSv1.1")])
def test_old_protocols_are_shown_and_not_trusted(trusting, option, protocol):
    with trusting.server("good", option, "-cipher", "ALL:@SECLEVEL=0") as port:
        found = shake(port)
    assert (found.protocol, found.subject, found.trusted) == (protocol, "CN=good", False)
    assert found.error == "the server supports none of the offered protocol versions (alert 70, protocol_version)"


def test_a_small_diffie_hellman_key_is_the_reason(trusting):
    parameters = trusting.path("dh")
    parameters.write_text(openssl("dhparam", "-dsaparam", "1024"))
    options = ("-tls1_2", "-cipher", "DHE:@SECLEVEL=0", "-dhparam", str(parameters))
    with trusting.server("small", *options) as port:
        found = shake(port)
    assert (found.protocol, found.subject, found.trusted) == ("TLSv1.2", "CN=small", False)
    assert found.cipher.startswith("DHE")


def test_a_server_without_a_certificate(trusting):
    with trusting.server("", "-tls1_2", "-cipher", "aNULL:@SECLEVEL=0") as port:
        found = shake(port)
    assert (found.protocol, found.chain, found.subject, found.trusted) == ("TLSv1.2", (), None, False)
    assert found.error == "the server accepts none of the offered ciphers and parameters (alert 40, handshake_failure)"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize(("option", "expected"), [("-verify", "requested"), ("-Verify", "required")])
@pytest.mark.parametrize("name", ["good", "self"])
def test_a_demand_for_a_client_certificate_is_said(trusting, version, option, expected, name):
    with trusting.server(name, version, option, "1") as port:
        found = shake(port)
    assert found.client_certificate == expected
    assert (found.trusted, found.subject) == (name == "good", f"CN={name}")
    assert found.protocol == {"-tls1_2": "TLSv1.2", "-tls1_3": "TLSv1.3"}[version]


# --- names ---------------------------------------------------------------------------------------------------------


def test_the_name_is_sent_and_chooses_the_certificate(trusting):
    other = ("-servername", HOST, "-cert2", str(trusting.path("good")), "-key2", str(trusting.path("good", "key")))
    with trusting.server("self", *other) as port:
        assert shake(port, HOST).subject == "CN=good"
        assert shake(port, "127.0.0.1").subject == "CN=self"


def test_a_name_that_the_server_does_not_serve(trusting):
    other = ("-servername", "good.test", "-servername_fatal", "-cert2", str(trusting.path("good")))
    with trusting.server("self", *other, "-key2", str(trusting.path("good", "key"))) as port:
        found = shake(port, "bad.test")
    assert (found.protocol, found.trusted) == (None, False)
    assert found.error == "the server does not serve the requested name (alert 112, unrecognized_name)"


def test_a_label_that_is_too_long_is_a_failure_and_no_traceback(trusting):
    with trusting.server("good") as port:
        assert "name" in shake(port, "a" * 64 + ".test").error


# --- no TLS --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(reply: bytes, *, reads: bool = True, closes: bool = True) -> Iterator[int]:
    """A server that is not one of TLS: it reads what comes, sends a reply and closes, twice at most."""
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            with contextlib.suppress(OSError):
                accepted, _ = listener.accept()
                with accepted:
                    accepted.settimeout(LIMIT_S)
                    if reads:
                        accepted.recv(4096)
                    accepted.sendall(reply)
                    if not closes:
                        done.wait(LIMIT_S)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        done.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(LIMIT_S)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n", "not TLS: the server began with 'HTTP/1.1 400 Bad Request'"),
        (b"220 mail.test ESMTP\r\n", "not TLS: the server began with '220 mail.test ESMTP'"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not TLS: the server began with 'SSH-2.0-OpenSSH_9.2'"),
        (b"\x1b[31m\xff\n", r"not TLS: the server began with '\x1b[31m\xff\n'"),
        (b"J\x00\x00\x00\n8.0.36\x00", r"not TLS: the server began with 'J\x00\x00\x00\n8.0.36\x00'"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "the server accepts none of the offered ciphers and parameters (alert 40, "
         "handshake_failure)"),
        (b"\x15\x03\x03\x00\x02\x02\xc8", "the server ended the handshake (alert 200, unknown)"),
        (b"", "the server closed the connection instead of answering the TLS hello"),
        (b"\x16\x03\x03\x00\x40", "the server closed the connection during the handshake"),
    ],
)  # fmt: skip
def test_what_is_not_tls_is_described(trusting, reply, expected):
    with server(reply) as port:
        found = shake(port)
    assert (found.protocol, found.trusted, found.error) == (None, False, expected)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"", "no answer to the TLS hello within 0.2 s"),
        (b"\x16\x03\x03\x00\x40", "the handshake did not complete within 0.2 s"),
    ],
)
def test_silence_ends_with_the_time(trusting, reply, expected):
    with server(reply, closes=False) as port:
        began = time.monotonic()
        found = shake(port, limit_s=0.2)
        took_s = time.monotonic() - began
    assert (found.protocol, found.error) == (None, expected)
    assert took_s < 5  # of a limit of 0.2


def test_one_octet_at_a_time_does_not_prolong_the_time(trusting):
    """A limit that begins anew with each octet would never end."""

    def drip(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            with accepted:
                for octet in b"\x16\x03\x03\x20\x00" + bytes(500):
                    accepted.sendall(bytes([octet]))
                    time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        began = time.monotonic()
        found = shake(listener.getsockname()[1], limit_s=0.5)
        took_s = time.monotonic() - began
        thread.join(LIMIT_S)
    assert (found.protocol, took_s < 10) == (None, True)  # all octets take 25 s


def test_a_server_that_takes_one_connection_only_is_shown_too(trusting):
    with trusting.server("self", "-naccept", "1") as port:
        found = shake_once(port)
    assert (found.subject, found.trusted) == ("CN=self", False)
    assert found.error == "self-signed, and not an authority of this machine: CN=self"


def shake_once(port: int) -> Tls:
    sock = socket.create_connection(("127.0.0.1", port), LIMIT_S)
    return handshake(sock, HOST, lambda: None, time.monotonic() + LIMIT_S)


# --- nobody is left behind -----------------------------------------------------------------------------------------


def test_a_server_with_one_client_at_a_time_is_left_in_order(trusting: Pki):
    """The first connection is closed before the second begins: s_server serves one after the other."""
    with trusting.server("self") as port:
        found = [shake(port) for _ in range(3)]
    assert [each.subject for each in found] == ["CN=self"] * 3
