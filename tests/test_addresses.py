"""Addresses as text, against the ipaddress module, the socket module and the kernel."""

from __future__ import annotations

import errno
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.addresses import (
    DUAL,
    EVERYWHERE,
    Endpoint,
    address_text,
    canonical,
    family_of,
    format_endpoint,
    is_link_local,
    is_mapped,
    is_own,
    parse_endpoint,
    reach_of,
    scope_id,
    socket_address,
    split_host_port,
    split_zone,
    unmapped,
    zone_name,
)
from tests.windows.conftest import lacks

ADDRESSES = st.ip_addresses() | st.lists(
    st.sampled_from([b"\0\0", b"\0\1", b"\xff\xff", b"\x5e\xfe"]), min_size=8, max_size=8
).map(lambda groups: ipaddress.IPv6Address(b"".join(groups)))


def expected_text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """RFC 5952: section 5 recommends mixed notation for IPv4-mapped addresses alone."""
    mapped = getattr(address, "ipv4_mapped", None)
    return f"::ffff:{mapped}" if mapped is not None else address.compressed


@given(ADDRESSES)
def test_text_is_canonical(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert address_text(address.packed) == expected_text(address)
    assert canonical(address.exploded) == expected_text(address)


@given(ADDRESSES)
def test_scope_agrees_with_the_standard_library(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    text = address_text(address.packed)
    mapped = getattr(address, "ipv4_mapped", None)
    assert is_link_local(text) == (address.version == 6 and address.is_link_local and mapped is None)
    assert is_mapped(text) == (mapped is not None)
    assert unmapped(text) == str(mapped or text)
    inner = mapped or address
    kinds = {"any": inner.is_unspecified, "loopback": inner.is_loopback, "multicast": inner.is_multicast}
    kinds |= {"broadcast": str(inner) == "255.255.255.255", "address": True}
    assert reach_of(text) == next(kind for kind, is_so in kinds.items() if is_so)
    assert family_of(text) == (socket.AF_INET6 if address.version == 6 else socket.AF_INET)


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("224.0.0.251", "multicast"),
        ("239.255.255.250", "multicast"),
        ("240.0.0.1", "address"),
        ("255.255.255.255", "broadcast"),
        ("ff02::fb", "multicast"),
        ("ff::1", "address"),
        ("ffa::1", "address"),
        ("::ffff:ff02:0:1", "address"),
        ("::ffff:224.0.0.1", "multicast"),
        ("fe80::1", "address"),
    ],
)
def test_groups_and_broadcasts(text: str, reach: str) -> None:
    assert reach_of(text) == reach


@pytest.mark.parametrize("text", ["fe8::1", "fec0::1", "ff02::1", "feb", "169.254.0.1", "::fe80:1"])
def test_not_link_local(text: str) -> None:
    assert not is_link_local(text)


def test_the_prefix_of_mapped_addresses_without_ipv4_inside() -> None:
    """::ffff:1 is the address with 0xffff and 1 in its last groups."""
    assert unmapped("::ffff:1") == "::ffff:1"


ZONES = st.none() | st.text("abcdefgh0123456789.-@", min_size=1, max_size=15)


@given(ADDRESSES, ZONES, st.integers(0, 65535))
def test_what_is_printed_can_be_read(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, zone: str | None, port: int
) -> None:
    zone = zone if address.version == 6 else None
    endpoint = Endpoint(address_text(address.packed), zone)
    assert parse_endpoint(str(endpoint)) == endpoint
    assert parse_endpoint(str(endpoint).strip("[]")) == endpoint
    host, text = split_host_port(format_endpoint(endpoint.address, port, zone))
    assert (parse_endpoint(host), int(text)) == (endpoint, port)
    assert split_zone(host) == (endpoint.address, zone)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[::1",
        "::1]",
        "1.2.3",
        "1.2.3.4.5",
        "a\0b",
        "\udc80",
        "::1%",
        "%lo",
        "1.2.3.4%lo",
        "::1/64",
        "name",
        "::1::",
    ],
)
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an IP address|names no interface"):
        parse_endpoint(text)


@pytest.mark.parametrize(
    "text", ["", ":", "80", ":80", "name", "::1", "::1:80", "[::1]", "fe80::1%lo:80", "[]:80", "[::1:80"]
)
def test_no_host_and_port(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|brackets"):
        split_host_port(text)


@given(st.text(max_size=40))
def test_whatever_is_given(text: str) -> None:
    for parse in (parse_endpoint, split_host_port, canonical):
        try:
            parse(text)
        except ValueError as error:
            assert type(error) is ValueError  # noqa: PT017  no subclass that says something else


def test_endpoints_as_text() -> None:
    assert [str(e) for e in (*EVERYWHERE, *DUAL)] == ["0.0.0.0", "[::]", "[::]"]
    assert f"{Endpoint('fe80::1', 'eth0')}" == "[fe80::1%eth0]"
    assert Endpoint("::1").family == socket.AF_INET6


def test_the_socket_module_takes_it() -> None:
    index, name = socket.if_nameindex()[0]
    assert socket_address("127.0.0.1", 80) == ("127.0.0.1", 80)
    assert socket_address("fe80::1", 80, str(index)) == ("fe80::1", 80, 0, index)
    assert scope_id(None) == scope_id("") == 0
    assert zone_name(index) in (name, str(index))
    assert scope_id(zone_name(index)) == index
    assert zone_name(2**31 - 1) == str(2**31 - 1)
    assert zone_name(2**80) == str(2**80)


def test_addresses_of_this_machine() -> None:
    for address in ("127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"):
        assert is_own(address)


@lacks("binds IPv4 addresses of other machines", until=10)
def test_addresses_of_other_machines() -> None:
    assert not is_own("203.0.113.77")  # RFC 5737: for documentation
    assert not is_own("2001:db8::1")  # RFC 3849
    assert not is_own("fe80::1", "nosuchinterface")


@pytest.mark.parametrize("zone", ["nosuchinterface", "٣", "9" * 30, "a\0b", "x" * 5000])
def test_no_such_interface(zone: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  the number is looked at
        scope_id(zone)
    assert caught.value.errno == errno.ENODEV
