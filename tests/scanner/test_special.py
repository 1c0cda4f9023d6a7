"""Which addresses need --allow-public: the registries of IANA, whatever version of Python runs."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.scanner import special

# Addresses at both ends of blocks and beside them, as the registries have them.
PUBLIC = [
    *("9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "128.0.0.0", "172.15.255.255", "172.32.0.0"),
    *(
        "192.0.0.9",
        "192.0.0.10",
        "192.0.1.0",
        "192.31.196.1",
        "192.52.193.1",
        "192.88.99.1",
        "192.175.48.1",
        "198.17.255.255",
    ),
    *("198.20.0.0", "224.0.0.1", "239.255.255.255", "1.1.1.1"),
    *("2001::1", "2001:0:ffff::1", "2001:1::1", "2001:1::2", "2001:1::3", "2001:3::1", "2001:4:112::1", "2001:10::1"),
    *("2001:20::1", "2001:2f:ffff::1", "2001:30::1", "2001:200::", "2002:a00:1::", "2620:4f:8000::1", "64:ff9b::a00:1"),
    *("ff02::1", "fec0::1", "100:0:0:2::", "4000::", "2606:4700::1", "::2", "fbff:ffff::", "fe00::"),
]
LOCAL = [
    *("0.0.0.0", "10.0.0.0", "10.255.255.255", "100.64.0.0", "127.255.255.255", "169.254.169.254", "172.16.0.0"),
    *("192.0.0.0", "192.0.0.8", "192.0.0.11", "192.0.0.170", "192.0.2.255", "192.168.255.255", "198.19.255.255"),
    *("198.51.100.7", "203.0.113.7", "240.0.0.0", "255.255.255.255"),
    *("::", "::1", "64:ff9b:1::a00:1", "100::", "100:0:0:1::1", "2001:1::", "2001:1::4", "2001:2::1", "2001:4:111::"),
    *("2001:1ff::1", "2001:db8::1", "3fff:fff::1", "5f00::1", "fc00::", "fdff::1", "fe80::1", "febf::1"),
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address):
    parsed = ip_address(address)
    assert special.is_public(parsed.version, int(parsed), int(parsed))


@pytest.mark.parametrize("address", LOCAL)
def test_local(address):
    parsed = ip_address(address)
    assert not special.is_public(parsed.version, int(parsed), int(parsed))


BLOCKS = [
    ip_network(block)
    for blocks in (special.NOT_GLOBAL, special.GLOBAL_WITHIN)
    for each in blocks.values()
    for block in each
]


def by_the_longest_prefix(address) -> bool:
    """Whether an address is public, by the most specific block that has it: another way to read the same table."""
    matching = [block for block in BLOCKS if address in block]
    if not matching:
        return True
    longest = max(matching, key=lambda block: block.prefixlen)
    return str(longest) in special.GLOBAL_WITHIN[address.version]


EDGES = [edge + step for block in BLOCKS for edge in (int(block[0]), int(block[-1])) for step in (-1, 0, 1)]


@given(st.sampled_from([4, 6]), st.one_of(st.sampled_from(EDGES), st.integers(0, 2**128 - 1)))
def test_a_single_address_is_what_its_most_specific_block_is(version, number):
    number %= 2**32 if version == 4 else 2**128
    address = ip_address(number.to_bytes(4 if version == 4 else 16, "big"))
    assert special.is_public(version, number, number) == by_the_longest_prefix(address)


@pytest.mark.parametrize(
    ("first", "last", "public"),
    [("10.0.0.0", "10.255.255.255", False), ("9.255.255.255", "10.0.0.1", True), ("192.0.0.8", "192.0.0.9", True),
     ("10.255.255.255", "11.0.0.0", True), ("fc00::", "fdff:ffff::", False), ("100::", "100:0:0:1:ffff::", False),
     ("fe80::", "fec0::", True), ("2001:db7:ffff::", "2001:db8::", True)],
)  # fmt: skip
def test_a_range_is_public_if_one_of_its_addresses_is(first, last, public):
    a, b = ip_address(first), ip_address(last)
    assert special.is_public(a.version, int(a), int(b)) is public
