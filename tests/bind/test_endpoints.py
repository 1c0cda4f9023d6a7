"""Addresses as they are written."""

from __future__ import annotations

import pytest

from portbook.addresses import DUAL, EVERYWHERE, Endpoint
from portbook.bind import endpoints
from portbook.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", Endpoint("192.0.2.1")),
        ("::1", Endpoint("::1")),
        ("[::1]", Endpoint("::1")),
        ("0:0:0:0:0:0:0:1", Endpoint("::1")),
        ("fe80::1%eth0", Endpoint("fe80::1", "eth0")),
        ("[fe80::1%2]", Endpoint("fe80::1", "2")),
        ("0.0.0.0", Endpoint("0.0.0.0")),
    ],
)
def test_one_address(text, expected):
    assert endpoints.parse(text) == (expected,)


def test_several():
    assert endpoints.parse() == EVERYWHERE
    assert endpoints.parse(dual=True) == endpoints.parse("::", dual=True) == DUAL
    assert endpoints.parse("LocalHost") == (Endpoint("127.0.0.1"), Endpoint("::1"))


@pytest.mark.parametrize(
    "text", ["", "example.org", "a\0b", "\udc80", "127.1", "1.2.3.4.5", "127.0.0.1%eth0", "fe80::1%", "::1/64"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError):
        endpoints.parse(text)


def test_dual_stack_is_the_wildcard():
    with pytest.raises(UsageError, match="dual-stack"):
        endpoints.parse("127.0.0.1", dual=True)


def test_shown_as_people_write_it():
    assert [str(place) for place in endpoints.parse()] == ["0.0.0.0", "[::]"]
    assert str(Endpoint("fe80::1", "eth0")) == "[fe80::1%eth0]"
