"""``dial``, ``scan``, ``probe`` and ``wait`` against Debian's servers, in networks of the tests' own."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from ipaddress import ip_address
from xml.etree import ElementTree

import pytest

from tests import netlab
from tests.components import need
from tests.scanner.udp.test_engine import Responder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")

ZONED = "fe80::77"
NGINX = """
daemon off;
master_process off;
pid {path}/nginx.pid;
error_log {path}/error.log;
events {{ }}
http {{
    access_log {path}/access.log;
    ssl_certificate {path}/cert.pem;
    ssl_certificate_key {path}/key.pem;
    server {{ listen 80; listen [::]:80; return 204; }}
    server {{ listen 443 ssl; listen [::]:443 ssl; ssl_protocols TLSv1.3; return 204; }}
    server {{ listen 8443 ssl; ssl_protocols TLSv1.2; return 204; }}
}}
"""
SSH, WEB = [22], [80, 443, 8443]


def portbook(host, *words, **more):
    """Run the command in a namespace."""
    with host:
        command = [sys.executable, "-m", "portbook", *map(str, words)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False, **more)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate for the target, by an authority of the test's own."""
    need(shutil.which("openssl") is not None, "openssl")
    path = tmp_path_factory.mktemp("peers")
    (path / "names").write_text(f"subjectAltName=DNS:web.test,IP:{netlab.TARGET},IP:{netlab.TARGET6}")
    for words in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 30 -subj /O=Portbook/CN=authority",
        "req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /C=DE/O=Portbook/CN=web.test",
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 20 -extfile names -out cert.pem",
    ):
        done = subprocess.run(["openssl", *words.split()], cwd=path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def lab(authority):
    """nginx with TLS and sshd on the target."""
    need(os.path.exists("/usr/sbin/nginx"), "nginx (package nginx-light)")
    need(os.path.exists("/usr/sbin/sshd"), "sshd (package openssh-server)")
    (authority / "nginx.conf").write_text(NGINX.format(path=authority))
    (authority / "sshd.conf").write_text("PidFile none\nUsePAM no\n")
    with netlab.pair() as made, privileges_separated():
        made.target.run("ip", "address", "add", f"{ZONED}/64", "dev", "link0", "nodad")
        made.target.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(authority / "host"))
        made.target.start("/usr/sbin/nginx", "-c", str(authority / "nginx.conf"))
        config, key = str(authority / "sshd.conf"), str(authority / "host")
        made.target.start("/usr/sbin/sshd", "-D", "-e", "-f", config, "-h", key)
        for port in (*SSH, *WEB):
            made.target.wait_for(port)
        yield made


@contextlib.contextmanager
def privileges_separated():
    """sshd insists on an empty directory, which its service makes at boot."""
    missing = not os.path.exists("/run/sshd")
    if missing:
        os.mkdir("/run/sshd")
    yield
    if missing:
        os.rmdir("/run/sshd")


# --- real servers --------------------------------------------------------------------------------------------------


def test_dial_finds_them_open_and_leaves_no_trace_of_an_error(lab, authority):
    done = portbook(lab.client, "dial", *(f"{netlab.TARGET}:{port}" for port in (*SSH, *WEB)), "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [one["addresses"][0]["outcome"] for one in found] == ["open"] * 4
    assert (authority / "error.log").read_text() == ""


def test_scan_finds_what_the_target_lists_as_listening(lab):
    """The referee is ss on the target itself."""
    listed = lab.target.run("ss", "-Htln4")
    listening = {int(line.split()[3].rpartition(":")[2]) for line in listed.splitlines()}
    done = portbook(lab.client, "scan", netlab.TARGET, "-p", "1-9000", "--open", "--jsonl")
    assert {json.loads(line)["port"] for line in done.stdout.splitlines()} == listening == {*SSH, *WEB}
    assert done.returncode == 0


def test_a_session_goes_on_while_its_port_is_scanned(lab):
    """A banner of sshd, read before and after."""
    with lab.client:
        import socket

        with socket.create_connection((netlab.TARGET, 22), timeout=30) as session:
            assert session.recv(100).startswith(b"SSH-2.0-")
            assert portbook(lab.client, "scan", netlab.TARGET, "-p", "22").returncode == 0
            session.sendall(b"SSH-2.0-portbook\r\n")
            assert session.recv(1000)


# --- TLS -----------------------------------------------------------------------------------------------------------


def seen_by_openssl(lab, port, *options):
    """The answer of openssl about the same server: protocol, cipher, and of the certificate its text."""
    place = f"{netlab.TARGET}:{port}"
    with lab.client:
        said = subprocess.run(
            ["openssl", "s_client", "-connect", place, *options], input="", capture_output=True, text=True,
            timeout=60, check=False,
        ).stdout  # fmt: skip
    protocol, cipher = re.search(r"^New, (\S+), Cipher is (\S+)$", said, re.MULTILINE).groups()
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-subject", "-issuer", "-enddate", "-ext", "subjectAltName",
         "-nameopt", "RFC2253", "-dateopt", "iso_8601"],
        input=said, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    facts = dict(line.split("=", 1) for line in shown.splitlines() if re.match(r"[a-zA-Z]+=", line))
    names = re.findall(r"(?:DNS|IP Address):([^,\s]+)", shown)
    return protocol, cipher, facts, names, said


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("port", [443, 8443])
def test_a_certificate_is_what_openssl_sees(lab, authority, port, trusted):
    protocol, _, facts, names, said = seen_by_openssl(lab, port, "-CAfile", str(authority / "ca.pem"))
    variables = {**os.environ, "SSL_CERT_FILE": str(authority / "ca.pem")} if trusted else None
    done = portbook(lab.client, "dial", f"{netlab.TARGET}:{port}", "--tls", "--json", env=variables)
    (answer,) = json.loads(done.stdout)["addresses"]
    shown = answer["tls"]
    assert shown["protocol"] == protocol == {443: "TLSv1.3", 8443: "TLSv1.2"}[port]
    assert (shown["subject"], shown["issuer"]) == (facts["subject"], facts["issuer"])
    assert shown["subject"] == "CN=web.test,O=Portbook,C=DE"
    assert datetime.fromisoformat(shown["expires"]) == datetime.fromisoformat(facts["notAfter"].replace(" ", "T"))
    assert shown["names"] == [str(ip_address(name)) if ":" in name else name for name in names]
    assert "Verify return code: 0 (ok)" in said
    assert (shown["trusted"], shown["error"] is None) == (trusted, trusted)
    assert answer["tls_ms"] > 0


def test_a_certificate_for_another_name_is_not_trusted(lab, authority):
    variables = {**os.environ, "SSL_CERT_FILE": str(authority / "ca.pem")}
    done = portbook(lab.client, "dial", f"[{ZONED}%link0]:443", "--tls", "--json", env=variables)
    (answer,) = json.loads(done.stdout)["addresses"]
    assert (answer["outcome"], answer["tls"]["trusted"]) == ("open", False)
    assert answer["tls"]["subject"] == "CN=web.test,O=Portbook,C=DE"


def test_a_server_without_tls_is_open_with_an_error(lab):
    done = portbook(lab.client, "dial", f"{netlab.TARGET}:22", "--tls")
    assert done.returncode == 1
    assert "is open" in done.stdout
    assert "no: not TLS: the server began with 'SSH-2.0-" in done.stdout


# --- link-local addresses ------------------------------------------------------------------------------------------


def test_dial_link_local(lab):
    done = portbook(lab.client, "dial", f"[{ZONED}%link0]:80", f"[{ZONED}%link0]:81", "--json")
    found = [json.loads(line)["addresses"] for line in done.stdout.splitlines()]
    assert [[(a["address"], a["zone"], a["outcome"]) for a in some] for some in found] == [
        [(ZONED, "link0", "open")],
        [(ZONED, "link0", "closed")],
    ]
    assert f"{ZONED}%link0" in portbook(lab.client, "dial", f"[{ZONED}%link0]:80").stdout


def test_dial_through_an_interface_that_is_not_there(lab):
    done = portbook(lab.client, "dial", f"[{ZONED}%nosuch]:80", "--json")
    assert done.returncode == 5
    (answer,) = json.loads(done.stdout)["addresses"]
    assert (answer["outcome"], answer["evidence"]["error"]) == ("error", "ENODEV")


@pytest.mark.parametrize(("command", "port"), [("scan", 80), ("probe", 4000)])
def test_scan_and_probe_link_local(lab, command, port, tmp_path):
    words = [command, f"{ZONED}%link0", *(["-p"] if command == "scan" else []), f"{port},81"]
    with Responder(lab.target, [4000]):
        rows = [json.loads(line) for line in portbook(lab.client, *words, "--jsonl").stdout.splitlines()]
        cells = list(csv.DictReader(io.StringIO(portbook(lab.client, *words, "--csv").stdout)))
        people = portbook(lab.client, *words).stdout
    for some in (rows, cells):
        assert {(r["target"], r["address"], r["zone"], int(r["port"]), r["outcome"]) for r in some} == {
            (f"{ZONED}%link0", ZONED, "link0", port, "open"),
            (f"{ZONED}%link0", ZONED, "link0", 81, "closed"),
        }
    assert people.splitlines()[0] == f"{ZONED}%link0"


def test_a_zone_in_nmaps_xml(lab):
    """nmap leaves it out of the address, and so do we; the name that the user gave has it."""
    words = ["-p", "80,81", "--nmap-xml", "-"]
    host = ElementTree.fromstring(portbook(lab.client, "scan", f"{ZONED}%link0", *words).stdout).find("host")
    assert host.find("address").attrib == {"addr": ZONED, "addrtype": "ipv6"}
    assert host.find("hostnames/hostname").attrib == {"name": f"{ZONED}%link0", "type": "user"}


# --- hosts behind a firewall ---------------------------------------------------------------------------------------

ODD = 1777
DARK = "10.77.0.50"


@pytest.fixture(scope="module")
def dark():
    """Among live ports of a neighbour, a host that drops everything but one odd port."""
    with netlab.pair() as made:
        made.target.add(DARK)
        made.target.nft(f"ip daddr {DARK} tcp dport {ODD} accept", f"ip daddr {DARK} drop")
        made.target.start(sys.executable, "-c", LISTENER, DARK, str(ODD))
        made.target.wait_for(ODD)
        yield made


LISTENER = "import socket, sys, time; held = socket.create_server((sys.argv[1], int(sys.argv[2]))); time.sleep(600)"
QUICK = ("-p", "1000-1999", "--timeout", "0.1", "--retries", "0", "--json")


def test_a_silent_host_is_given_up_and_reported(dark):
    done = portbook(dark.client, "scan", netlab.TARGET, DARK, *QUICK)
    whole = json.loads(done.stdout)
    assert whole["report"]["skipped"] == 2000 - len(whole["answers"]) > 500
    assert {a["address"] for a in whole["answers"] if a["outcome"] == "closed"} == {netlab.TARGET}
    assert f"{whole['report']['skipped']} ports not probed" in done.stderr
    assert "probed less, because no answer came: 1 address; --no-breaker probes all their ports" in done.stderr


def test_without_the_breaker_the_open_port_of_a_silent_host_is_found(dark):
    done = portbook(dark.client, "scan", netlab.TARGET, DARK, *QUICK, "--no-breaker")
    whole = json.loads(done.stdout)
    assert (whole["report"]["skipped"], len(whole["answers"])) == (0, 2000)
    assert [(a["address"], a["port"]) for a in whole["answers"] if a["outcome"] == "open"] == [(DARK, ODD)]
    assert (done.returncode, done.stderr) == (0, "")


# --- sixteen million ports -----------------------------------------------------------------------------------------

MOST_MEGABYTES = 150


# In a process of its own: what a forked child counts begins with what its parent had (getrusage(2), ru_maxrss).
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def peak_megabytes(host, *words):
    """Memory that a run of the command took at its height."""
    said = host.run(sys.executable, "-c", MEASURE, sys.executable, "-m", "portbook", *words)
    code, megabytes = map(int, said.split())
    assert code == 1  # nothing is open, and not every port was probed
    return megabytes


@pytest.mark.parametrize("options", [[], ["--no-breaker"], ["--udp"]], ids=" ".join)
def test_memory_does_not_grow_with_the_scan(options):
    """65,535 ports of 256 addresses, of which most are silent, for a while and for three times as long."""
    with netlab.namespace() as space:
        space.nft("tcp flags & (syn | ack) == syn tcp dport 1000-65535 drop", "udp dport 1000-60000 drop")
        words = ["scan", "127.0.0.0/24", "-p", "1-65535", "--jsonl", "--timeout", "0.05", *options]
        brief, longer = (peak_megabytes(space, *words, "--deadline", seconds) for seconds in ("1", "3"))
    assert max(brief, longer) < MOST_MEGABYTES
    assert longer - brief < MOST_MEGABYTES / 5  # three times as many answers; the buffer of silent ports fills once


# --- wait ----------------------------------------------------------------------------------------------------------


def test_wait_for_servers_and_name_the_one_that_is_missing(lab):
    places = [f"{netlab.TARGET}:{port}" for port in (*SSH, *WEB)]
    assert portbook(lab.client, "wait", *places, f"[{ZONED}%link0]:80").returncode == 0
    done = portbook(lab.client, "wait", *places, f"{netlab.TARGET}:81", "--timeout", "0.3")
    assert (done.returncode, done.stderr) == (1, f"portbook: after 0.3 s not ready: {netlab.TARGET}:81 (refused)\n")


def test_wait_for_a_udp_service_that_answers_its_own_protocol_only(lab):
    """A DNS server on an odd port says nothing to an empty datagram."""
    need(shutil.which("dnsmasq") is not None, "dnsmasq (package dnsmasq-base)")
    place = f"{netlab.TARGET}:5399"
    assert portbook(lab.client, "wait", "--udp", place, "--timeout", "0.5").returncode == 1
    lab.target.start(
        "dnsmasq", "-k", "--conf-file=/dev/null", "--port=5399", "--no-resolv", "--no-hosts", "--user=root"
    )
    lab.target.wait_for(5399, "udp")
    assert portbook(lab.client, "wait", "--udp", place, "--timeout", "30").returncode == 0
