"""Which numbers are tried, and in which order."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.bind import choice
from portbook.errors import UsageError
from portbook.names import service_name
from portbook.netconfig import ephemeral
from portbook.netconfig.ephemeral import Ephemeral
from portbook.scanner import ports


@given(st.lists(st.integers(1, 65535), unique=True, max_size=300))
def test_every_number_comes_once(numbers):
    assert sorted(choice.shuffled(numbers)) == sorted(numbers)


def test_every_number_is_as_likely_to_be_the_first_and_the_second():
    """3,000 drawings of 5 numbers: 600 each, standard deviation 22; a fair choice misses 400 to 800 never."""
    drawn = [tuple(islice(choice.shuffled(range(5)), 2)) for _ in range(3000)]
    for place in (0, 1):
        counts = Counter(pair[place] for pair in drawn)
        assert set(counts) == set(range(5))
        assert all(400 < n < 800 for n in counts.values())


def test_no_port_with_a_name_is_chosen():
    pool = choice.pool()
    tried = {port for port, reason in pool.shuffled() if reason is None}
    assert not any(service_name(port, protocol) for port in tried for protocol in ("tcp", "udp"))
    assert not tried & {port for group in ports.TCP for port in ports.parse_ports(f"@{group}")}
    assert min(tried) >= 1024
    assert len(tried) > 50_000


def test_the_ephemeral_range_is_passed_over_on_request(monkeypatch):
    monkeypatch.setattr(ephemeral, "take", lambda: Ephemeral(32768, 60999, "a test", ((40000, 40001),)))
    tried = {port for port, reason in choice.pool(avoid_ephemeral=True).shuffled() if reason is None}
    assert tried
    assert not any(32768 <= port <= 60999 for port in tried)


def test_reserved_ports_are_for_those_who_ask_by_number(monkeypatch):
    monkeypatch.setattr(ephemeral, "take", lambda: Ephemeral(32768, 60999, "a test", ((18900, 18999), (40000, 40001))))
    anything = {port for port, reason in choice.pool().shuffled() if reason is None}
    assert not any(18900 <= port <= 18999 for port in anything)
    named = choice.pool(range(18890, 19010), avoid_ephemeral=True)
    assert {port for port, reason in named.shuffled() if reason is None} == set(range(18890, 19010))
    assert choice.pool([40000, 40002], avoid_ephemeral=True).skip_reason(40000) is None  # no connection gets it
    assert choice.pool([40000, 40002], avoid_ephemeral=True).skip_reason(40002) == "ephemeral"


@pytest.mark.parametrize("numbers", [[], [0], [65536], [-1, 80]])
def test_what_is_no_port_is_refused(numbers):
    with pytest.raises(UsageError):
        choice.pool(numbers)
