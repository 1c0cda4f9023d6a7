"""Whatever a feed reports, in whatever order: each socket is reported once, and ends at most once."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

import portbook
from portbook.testing.watching import START, listener
from portbook.watching.feeds.base import Change
from portbook.watching.judging import Judging
from portbook.watching.policy import parse
from portbook.watching.records import Moment, Settings
from portbook.watching.register import Register

OTHERS = ["bound", "connected", "failed", "owners", "lost", "tick", "compare", "policy"]
KINDS = ["listening", "ended"] * 5 + OTHERS
POLICIES = [
    None,
    Judging(parse("version = 1\n[[allow]]\nport = 80\n")),
    Judging(parse('version = 1\ndefault = "allow"\n[[deny]]\nport = 80\n[[require]]\nport = 443\n')),
]
OPENS = {"opened", "present", "restarted"}
step = st.tuples(
    st.sampled_from(KINDS),
    st.integers(1, 4),  # which socket
    st.sampled_from([0, 0, 0, 2, 1]),  # who
    st.sampled_from([0.0, 0.001, 0.05, 0.5, 2.0, 6.0, 61.0]),  # seconds until then
)


def socket_of(key, who, kind, generation):
    address, port = {1: ("0.0.0.0", 80), 2: ("::", 80), 3: ("127.0.0.1", 443), 4: ("0.0.0.0", 53)}[key]
    fields = {"protocol": "udp"} if key == 4 else {"state": "BOUND" if kind == "bound" else "LISTEN"}
    fields["cookie"] = key + 10 * generation
    return listener(port, address, pid=who + 1, exe=f"/bin/{who % 2}", uid=who, **fields)


def play(steps, query=None, policy=None):
    """The events, and which sockets are open in the end."""
    register = Register(Settings(query=query), policy, feed="fake")
    events = []
    ns = 0
    tables = {}
    generations = Counter()  # no cookie is used twice
    for kind, key, who, seconds in steps:
        ns += int(seconds * 1e9)
        now = Moment(START + timedelta(microseconds=ns // 1000), ns)
        socket = socket_of(key, who, kind, generations[key])
        if kind == "tick":
            events += register.tick(now)
        elif kind == "compare":
            events += register.compare(tables.values(), now)[0]
        elif kind == "policy":
            events += register.replace_policy(POLICIES[who % 3], now)
        else:
            if kind in ("bound", "listening"):
                tables[key] = socket
            elif kind in ("ended", "connected"):
                tables.pop(key, None)
            events += register.apply(Change(kind, ns, socket.cookie, socket), now)
            generations[key] += kind in ("ended", "connected")
    last = Moment(START + timedelta(days=9), ns + 10**15)
    events += register.tick(last)
    events += register.finish(last)
    return events, register


@settings(max_examples=150, deadline=None)
@given(st.lists(step, min_size=5, max_size=80), st.sampled_from(POLICIES))
def test_each_socket_is_reported_once_and_ends_once(steps, policy):
    events, register = play(steps, policy=policy)
    is_open = Counter()
    pending_ends = Counter()  # by identity
    for event in events:
        if event.event == "opened" and event.state == "LISTEN" and is_open[event.cookie]:
            continue  # it was only bound before
        if event.event in OPENS:
            is_open[event.cookie] += 1
        elif event.event in ("closed", "short_lived"):
            pending_ends[event.cookie] += 1
    listening = Counter(each.socket.cookie for each in register.listeners())
    restarts = sum(event.event == "restarted" for event in events)
    opens, ends = sum(is_open.values()), sum(pending_ends.values())
    assert all(pending_ends[cookie] <= is_open[cookie] for cookie in pending_ends)
    assert opens == ends + restarts + sum(listening.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(step, min_size=5, max_size=80), st.sampled_from(POLICIES))
def test_what_is_kept_is_consistent(steps, policy):
    _, register = play(steps, policy=policy)
    held = [f for each in register._held.values() for f in each.sockets.values()]
    assert {f.key for f in held} == register._sockets.keys()
    assert {key for group in register._on_port.values() for key in group} == register._sockets.keys()
    assert not register._withheld
    assert not register._bound
    assert not register._by_program
    lasting = [v for each in register._held.values() for v in each.violations.values()]
    assert register.counts()[1] == len(lasting)
    assert all(violation.sockets > 0 for violation in lasting)
    for each in register._held.values():
        assert Counter(f.rule for f in each.sockets.values() if f.rule) == {
            rule: violation.sockets for rule, violation in each.violations.items()
        }


@settings(max_examples=50, deadline=None)
@given(st.lists(step, min_size=5, max_size=80), st.sampled_from(POLICIES))
def test_the_same_changes_make_the_same_events(steps, policy):
    assert play(steps, policy=policy)[0] == play(steps, policy=policy)[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(step, min_size=5, max_size=80), st.sampled_from(POLICIES))
def test_a_query_only_leaves_out(steps, policy):
    query = portbook.parse("port:80")
    whole, _ = play(steps, policy=policy)
    part, _ = play(steps, query=query, policy=policy)
    about_sockets = [e for e in whole if e.local_address is None or e.local_port == 80]
    assert part == about_sockets
