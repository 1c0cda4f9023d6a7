"""``dial --tls`` as a command: exit codes of the checks, names, and the end of the time."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from portbook import dialing
from portbook.probe.tls.records import Certificate, Tls
from portbook.render.dial import describe_expiry
from tests.listeners import listening, portbook, refusing


@pytest.fixture(scope="module")
def servers(pki):
    """A server that is trusted, one that is not, one whose issuer has expired, and one that expires in nine days."""
    ends = f"{datetime.now(UTC) + timedelta(days=9, hours=12):%Y%m%d%H%M%SZ}"
    pki.make("soon-issuer", "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n", issuer="root", ends=ends)
    pki.make("soon", "subjectAltName=DNS:localhost,DNS:xn--strae-oqa.test,IP:127.0.0.1\n", issuer="soon-issuer")
    with (
        pki.server("good") as good,
        pki.server("self") as unknown,
        pki.server("soon", sends=("soon-issuer",)) as soon,
        pki.server("good", "-tls1_3", "-Verify", "1") as strict,
    ):
        yield {"good": good, "self": unknown, "soon": soon, "strict": strict}


def dial(pki, *words):
    environment = {**os.environ, "SSL_CERT_FILE": str(pki.path("root")), "SSL_CERT_DIR": str(pki.place / "nothing")}
    return portbook("dial", *words, env=environment)


CHECKS = [
    ("good", ["--tls"], 0),
    ("self", ["--tls"], 0),
    ("good", ["--tls-verify"], 0),
    ("self", ["--tls-verify"], 1),
    ("soon", ["--tls-verify"], 0),
    ("soon", ["--expires-within", "5"], 0),
    ("soon", ["--expires-within", "10"], 1),
    ("self", ["--expires-within", "5"], 0),
    ("soon", ["--server-name", "straße.test", "--tls-verify"], 0),
    ("strict", ["--tls-verify"], 0),
    ("good", ["--server-name", "good.test", "--tls-verify"], 0),
    ("good", ["--server-name", "good.test.", "--tls-verify"], 0),
    ("good", ["--server-name", "bad.test", "--tls-verify"], 1),
]


@pytest.mark.parametrize(("server", "words", "code"), CHECKS)
def test_exit_codes_of_checks(pki, servers, server, words, code):
    done = dial(pki, f"127.0.0.1:{servers[server]}", *words)
    assert (done.returncode, done.stderr.count("\n")) == (code, code), done.stderr
    assert "TLSv1.3" in done.stdout


def test_the_check_names_the_certificate_that_expires(pki, servers):
    done = dial(pki, f"localhost:{servers['soon']}", "--expires-within", "10")
    expected = f"portbook: localhost:{servers['soon']} at 127.0.0.1: CN=soon-issuer expires 20"
    assert done.stderr.startswith(expected)
    assert done.stderr.endswith(", in 9 days\n")
    assert "\n                before it, CN=soon-issuer: 20" in done.stdout


def test_a_required_client_certificate_is_shown(pki, servers):
    assert (
        "client      a client certificate is required\n" in dial(pki, f"127.0.0.1:{servers['strict']}", "--tls").stdout
    )


def test_no_tls_is_1_and_says_why(pki):
    with listening("127.0.0.1") as ((_, port),):
        done = dial(pki, f"127.0.0.1:{port}", "--tls", "--timeout", "0.3")
    assert done.returncode == 1
    start = f"portbook: 127.0.0.1:{port} at 127.0.0.1: no TLS: no answer to the TLS hello within 0."
    assert done.stderr.startswith(start)


def test_a_closed_port_is_1_without_a_second_line(pki):
    with refusing() as (_, port):
        done = dial(pki, f"127.0.0.1:{port}", "--tls-verify")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("name", ["", "a b", "127.1", "x" * 64, "http://a.test"])
def test_a_server_name_that_is_none_is_a_mistake(pki, name):
    done = dial(pki, "127.0.0.1:1", "--server-name", name)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("place", ["localhost.", "LOCALHOST", "LocalHost."])
def test_a_trailing_dot_is_no_part_of_the_name(pki, servers, place):
    done = dial(pki, f"{place}:{servers['soon']}", "--tls-verify", "--json")
    (answer,) = [each["tls"] for each in json.loads(done.stdout)["addresses"] if each["tls"]]
    assert (done.returncode, answer["server_name"].lower(), answer["trusted"]) == (0, "localhost", True)


def test_a_zone_is_no_part_of_the_name():
    assert dialing._plan("[fe80::1%lo]:443", 0, True, None).server_name == "fe80::1"
    assert dialing._plan("[fe80::1%lo]:443", 0, True, "a.test.").server_name == "a.test"


def test_a_machine_without_authorities_is_said(pki, servers):
    environment = {**os.environ, "SSL_CERT_FILE": "/nonexistent", "SSL_CERT_DIR": "/nonexistent"}
    done = portbook("dial", f"127.0.0.1:{servers['good']}", "--tls", env=environment)
    assert "CN=root; this machine has no certificate authorities at all" in done.stdout
    assert "at all" not in dial(pki, f"127.0.0.1:{servers['self']}", "--tls").stdout


def test_json_has_the_chain(pki, servers):
    tls = json.loads(dial(pki, f"127.0.0.1:{servers['soon']}", "--tls", "--json").stdout)["addresses"][0]["tls"]
    assert [each["subject"] for each in tls["chain"]] == ["CN=soon", "CN=soon-issuer", "CN=root"]
    assert (tls["first_to_expire"], tls["chain"][1]["days_left"]) == (1, 9)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (timedelta(days=2, minutes=1), "in 2 days"), (timedelta(days=1, minutes=1), "in 1 day"),
        (timedelta(hours=5, minutes=1), "in 5 hours"), (timedelta(minutes=5), "in less than an hour"),
        (timedelta(minutes=-5), "less than an hour ago"), (timedelta(hours=-23, minutes=-1), "23 hours ago"),
        (timedelta(days=-1, minutes=-1), "1 day ago"),
    ],
)  # fmt: skip
def test_distances(left, expected):
    certificate = Certificate("", "", (), None, datetime.now(UTC) + left, None, "", "", "")
    assert describe_expiry(certificate).endswith(f", {expected}")


def test_hostile_names_are_shown_escaped_and_counted():
    from portbook.render.dial import _tls

    names = ("a.test, b.test", "\x1b[31m", *(f"{n}.test" for n in range(50)))
    certificate = Certificate("CN=\x1b]0;x\x07", "", names, None, None, None, "", "", "")
    tls = Tls("TLSv1.3", None, certificate.subject, "", names, chain=(certificate,))
    lines = dict(_tls(tls, None))
    assert lines["names"].startswith(r"a.test\, b.test, \x1b[31m, 0.test")
    assert lines["names"].endswith("and 40 more")
    assert "".join(lines.values()).isprintable()
