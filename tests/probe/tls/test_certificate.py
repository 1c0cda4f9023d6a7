"""Certificates as text, compared with what openssl prints, and with hostile octets."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portbook.probe.tls import der
from portbook.probe.tls.certificate import days_between, first_to_expire, in_order, parse
from portbook.probe.tls.names import escaped
from portbook.probe.tls.records import Certificate
from tests.probe.tls.fuzz import costly
from tests.probe.tls.pki import AUTHORITY, LEAF, Pki, openssl

# As RFC 4514; openssl escapes octets above 127 besides, unless it is told not to.
OPENSSL_NAMES = ("-nameopt", "RFC2253,-esc_msb,utf8")


def parsed(pki: Pki, name: str) -> Certificate:
    return parse(ssl.PEM_cert_to_DER_cert(pki.path(name).read_text()))


@pytest.mark.parametrize(
    "subject",
    [
        "/C=DE/O=Example, Inc./CN=a.test",
        '/O=a+b "quoted" <x>; y\\\\z/CN=#1',
        "/CN= leading and trailing ",
        "/O=Straße 漢字/CN=ü",
        "/CN=one/CN=two/emailAddress=a@b.test",
        "/OU=x=y/CN=tab\there",
    ],
)
def test_subjects_are_escaped_as_openssl_does(pki, subject):
    pki.make("subject", LEAF.format(names="DNS:x"), issuer="root", subject=subject)
    printed = openssl("x509", "-in", pki.path("subject"), "-noout", "-subject", *OPENSSL_NAMES)
    assert f"subject={parsed(pki, 'subject').subject}" == printed.rstrip("\n")


@pytest.mark.parametrize("name", ["good", "small", "sha1", "root", "constrained"])
def test_fields_are_those_that_openssl_prints(pki, name):
    found = parsed(pki, name)
    words = ("-noout", "-serial", "-fingerprint", "-sha256", "-dates", "-dateopt", "iso_8601", "-issuer")
    printed = dict(line.split("=", 1) for line in openssl("x509", "-in", pki.path(name), *words).splitlines())
    assert int(found.serial, 16) == int(printed["serial"], 16)
    assert found.sha256.upper() == printed["sha256 Fingerprint"].replace(":", "")
    assert f"{found.valid_from:%Y-%m-%d %H:%M:%SZ}" == printed["notBefore"]
    assert f"{found.expires:%Y-%m-%d %H:%M:%SZ}" == printed["notAfter"]
    text = openssl("x509", "-in", pki.path(name), "-noout", "-text")
    assert f"Signature Algorithm: {found.signature}".lower() in text.lower()
    assert ("CA:TRUE" in text) == found.authority
    kind, size = found.key.split()[:2]
    assert (f"NIST CURVE: {size}" if kind == "EC" else f"Public-Key: ({size} bit)") in text


def test_every_kind_of_alternative_name_is_text(pki):
    names = "@names\n[names]\n" + "\n".join(
        [
            "DNS.1=a.test", "DNS.2=*.b.test", "IP.1=192.0.2.1", "IP.2=2001:db8::1", "email.1=who@a.test",
            "URI.1=https://a.test/x", "RID.1=1.2.3.4", "dirName.1=directory",
            "otherName.1=1.3.6.1.4.1.311.20.2.3;UTF8:who@corp.test", "otherName.2=1.2.3.5;UTF8:hello",
            "otherName.3=1.2.3.6;INT:7",
            "[directory]", "C=DE", "CN=a, b",
        ]
    )  # fmt: skip
    pki.make("names", LEAF.format(names=names), issuer="root")
    assert parsed(pki, "names").names == (
        "a.test", "*.b.test", "192.0.2.1", "2001:db8::1", "email:who@a.test", "URI:https://a.test/x", "ID:1.2.3.4",
        r"directory:CN=a\, b,C=DE", "UPN:who@corp.test", "other:1.2.3.5:hello", "other:1.2.3.6:#020107",
    )  # fmt: skip


def test_names_that_no_tool_makes():
    """X.400 and EDI names, addresses of three octets, DNS names that are not ASCII: shown as octets."""
    from portbook.probe.tls.names import general_name

    def named(tag: int, content: bytes) -> str:
        return general_name(der.DerValue(tag, content, b""))

    assert named(0xA3, b"\x30\x00") == "X400:#3000"
    assert named(0xA5, b"\xa1\x03\x0c\x01x") == "EDI:#A1030C0178"
    assert named(0x87, b"\1\2\3") == "unknown:#010203"
    assert named(0x82, b"\xff") == "unknown:#FF"
    assert named(0x81, b"\xff") == "email:#FF"
    assert named(0xA4, b"nonsense") == f"directory:#{b'nonsense'.hex().upper()}"
    assert named(0x8F, bytes(100)) == "unknown:#" + "00" * 64 + "…"


def test_usages_constraints_and_critical_extensions(pki):
    client = parsed(pki, "client")
    assert client.usages == ("clientAuth",)
    assert parsed(pki, "critical").critical == ("1.3.6.1.4.1.55555.1",)
    assert parsed(pki, "constrained").critical == ("basicConstraints", "keyUsage", "nameConstraints")
    extensions = AUTHORITY + "nameConstraints=permitted;IP:192.0.2.0/255.255.255.0,excluded;email:bad.test\n"
    pki.make("constraints", extensions, issuer="root")
    assert parsed(pki, "constraints").constraints == ("permitted 192.0.2.0/24", "excluded email:bad.test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#x", r"\#x"), (" x", r"\ x"), ("x ", r"x\ "), (" ", r"\ "), ("a\0b", r"a\00b"), ("a\nb", r"a\0Ab"),
        ("a,b", r"a\,b"), ("", ""),
    ],
)  # fmt: skip
def test_escaping(text, expected):
    assert escaped(text) == expected


NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("distance", "days"),
    [
        (timedelta(hours=23), 0), (timedelta(hours=-23), 0), (timedelta(hours=-25), -1), (timedelta(days=2), 2),
        (timedelta(days=1, hours=23), 1), (timedelta(days=-3, hours=1), -2),
    ],
)  # fmt: skip
def test_days_are_rounded_towards_zero(distance, days):
    assert days_between(NOW, NOW + distance) == days


@pytest.mark.parametrize(
    ("tag", "text", "expected"),
    [
        (der.UTC_TIME, b"491231235959Z", datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (der.UTC_TIME, b"500101000000Z", datetime(1950, 1, 1, tzinfo=UTC)),
        (der.GENERALIZED_TIME, b"99991231235959Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (der.GENERALIZED_TIME, b"00000101000000Z", None),
        (der.UTC_TIME, b"260230000000Z", None),
        (der.UTC_TIME, b"2601010000Z", None),
        (der.INTEGER, b"20260101000000Z", None),
    ],
)
def test_times(tag, text, expected):
    value = der.DerValue(tag, text, b"")
    if expected is None:
        with pytest.raises(ValueError):  # noqa: PT011  the messages are for nobody
            der.time_of(value)
    else:
        assert der.time_of(value) == expected


def certificate(subject: str, issuer: str, expires: datetime | None = None) -> Certificate:
    return Certificate(subject, issuer, (), None, expires, None, "", "", "")


def test_a_chain_of_issuers_that_name_each_other_ends():
    circle = [certificate("CN=a", "CN=b"), certificate("CN=b", "CN=a"), certificate("CN=a", "CN=b")]
    assert len(in_order(circle)) == 3
    assert in_order([]) == ()


def test_without_any_expiry_none_is_the_first():
    assert first_to_expire([certificate("CN=a", "CN=b")]) is None
    assert first_to_expire([certificate("", "", NOW), certificate("", "", NOW - timedelta(1))]) == 1


# --- hostile octets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(pki) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pki.path("constrained").read_text())


@given(st.binary(max_size=300))
def test_any_octets_are_read_without_an_error(octets):
    parse(octets)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_certificate_is_read_as_far_as_it_goes(sample, data):
    damaged = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    parse(bytes(damaged))
    parse(bytes(damaged[:cut]))


@pytest.mark.parametrize("octets", costly())
def test_a_certificate_of_the_largest_size_takes_no_time(octets):
    """OpenSSL takes a chain of 100 KB (SSL_CTX_set_max_cert_list(3)): 50,000 names in one certificate."""
    began = time.process_time()
    parse(octets)
    assert time.process_time() - began < 3  # takes 0.1 s


def test_every_name_of_many_is_read():
    assert len(parse(costly()[0]).names) == 50_000
