"""Banners: read from servers that speak first, bounded in time and size."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.probe.outcome import Answer, Evidence
from portbook.scanner import banner
from portbook.scanner.run import scan
from tests.components import need
from tests.rounds import until

# What each server sends first, as its documentation shows it.
GREETINGS = {
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    "smtp": b"220 mail.example.org ESMTP Postfix\r\n",
    "ftp": b"220 (vsFTPd 3.0.3)\r\n",
    "pop3": b"+OK Dovecot ready.\r\n",
    "imap": b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready.\r\n",
    "rfb": b"RFB 003.008\n",
    "rsync": b"@RSYNCD: 31.0 sha512 sha256\n",
    "mysql": b"J\x00\x00\x00\n8.0.36\x00\x08\x00\x00\x00abcdefgh\x00",
    "nntp": b"200 news.example.org InterNetNews NNRP server ready\r\n",
    "telnet": b"\xff\xfd\x18\xff\xfd \xff\xfd#",
}


@contextmanager
def server(say: bytes, pause_s: float = 0.0):
    """A server on 127.0.0.1 that says something on each connection, byte after byte if there is a pause."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    if not pause_s:
                        connection.sendall(say)
                        connection.recv(1)
                    for byte in say if pause_s else b"":
                        connection.sendall(bytes([byte]))
                        time.sleep(pause_s)
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_services_that_speak_first_are_recognised():
    with ExitStack() as stack:
        ports = {stack.enter_context(server(greeting)): name for name, greeting in GREETINGS.items()}
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        answers = {answer.port: answer for answer in scan("127.0.0.1", [*ports, silent], banner=True)}
    for port, name in ports.items():
        assert (answers[port].service, answers[port].service_origin) == (name, "banner")
    assert answers[silent].banner is None
    assert "OpenSSH_9.2p1" in next(answers[port].banner for port, name in ports.items() if name == "ssh")


def test_without_the_option_nothing_is_read():
    with server(GREETINGS["ssh"]) as port:
        (answer,) = scan("127.0.0.1", [port])
    assert answer.banner is None
    assert answer.service_origin != "banner"


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sshd of Unix")
def test_a_real_sshd(tmp_path):
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    need(sshd is not None, "sshd (package openssh-server)")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=30)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sshd, "-D", "-e", "-f", "/dev/null", "-h", key, "-p", str(port), "-o", "ListenAddress=127.0.0.1"]
    process = subprocess.Popen([*command, "-o", "PidFile=none"], stderr=subprocess.DEVNULL)
    try:
        until(lambda: is_open(port), "listening of sshd")
        (answer,) = scan("127.0.0.1", [port], banner=True)
    finally:
        process.terminate()
        process.wait(30)
    assert (answer.service, answer.service_origin) == ("ssh", "banner")
    assert answer.banner.startswith("SSH-2.0-OpenSSH")


def test_a_banner_costs_a_bounded_time():
    """The server sends a byte each half second: the first bytes are taken, not the whole."""
    with server(GREETINGS["ssh"], pause_s=0.5) as port:
        answer = Answer("x", "127.0.0.1", None, port, "tcp", "open", Evidence("syn-ack"))
        assert banner.read(answer, 1.0) == b"S"


@given(st.binary(max_size=2000))
def test_any_bytes_become_one_line_of_readable_text(data):
    text = banner.text_of(data)
    assert text is None or (text.isprintable() and 0 < len(text) <= banner.MOST_CHARACTERS)
    banner.recognise(data)
