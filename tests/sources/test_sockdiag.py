"""The netlink source: its pure half against an encoder written here from the headers, the other against the kernel."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import SourceDenied, SourceError, SourceGarbled, SourceMissing, SourceTimeout
from portbook.records import STATES, Gap, Socket
from portbook.sources.base import Wanted
from portbook.testing import identity
from tests.components import need
from tests.conftest import ROOT

if sys.platform != "linux":
    pytest.skip("sock_diag is a part of Linux", allow_module_level=True)

from portbook.sources import sockdiag
from portbook.system import netlink
from tests.system.test_netlink import Answers, attribute, message

pytestmark = pytest.mark.usefixtures("own_network")

# --- an encoder ----------------------------------------------------------------------------------------------------

# include/net/tcp_states.h and what net/ipv4/inet_diag.c answers for bound sockets.
NUMBERS = {
    "ESTABLISHED": 1, "SYN_SENT": 2, "SYN_RECV": 3, "FIN_WAIT1": 4, "FIN_WAIT2": 5, "TIME_WAIT": 6, "BOUND": 7,
    "CLOSE_WAIT": 8, "LAST_ACK": 9, "LISTEN": 10, "CLOSING": 11,
}  # fmt: skip
AF = {"ipv4": 2, "ipv6": 10}
INTERFACES = {1: "lo", 2: "eth0", 77: "wlan0"}
NETNS = 4026531833
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3


def encode(s, kind=20, attributes=b""):
    """A socket as struct inet_diag_msg, include/uapi/linux/inet_diag.h."""
    index = next((i for i, name in INTERFACES.items() if name == (s.zone or s.interface)), 0)
    number = NUMBERS[s.state] if s.protocol == "tcp" else {None: 7, "ESTABLISHED": 1}[s.state]
    listening = s.state == "LISTEN"
    body = struct.pack("=BBBB", AF[s.family], number, 0, 0)
    body += struct.pack("!HH", s.local_port, s.remote_port or 0)
    for address in (s.local_address, s.remote_address or {"ipv4": "0.0.0.0", "ipv6": "::"}[s.family]):
        body += ipaddress.ip_address(address).packed.ljust(16, b"\0")
    body += struct.pack("=III", index, s.cookie & 0xFFFFFFFF, s.cookie >> 32)
    queues = (s.accept_queue, s.backlog) if listening else (s.recv_queue, s.send_queue)
    body += struct.pack("=IIIII", 0, *queues, s.uid or 0, s.inode)
    if s.v6only is not None:
        body += attribute(11, bytes([s.v6only]))
    if s.cgroup_id is not None:
        body += attribute(21, struct.pack("=Q", s.cgroup_id))
    return message(kind, body + attributes)


DONE = message(NLMSG_DONE, struct.pack("=i", 0))


def dump(protocol, data, interrupted=False):
    return sockdiag.SockdiagDump((sockdiag.SockdiagTable(protocol, data, interrupted),), NETNS, (), INTERFACES)


def reach(address):
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    kinds = {"any": ip.is_unspecified, "loopback": ip.is_loopback, "multicast": ip.is_multicast}
    kinds["broadcast"] = str(ip) == "255.255.255.255"
    return next((kind for kind, is_it in kinds.items() if is_it), "address")


NOTABLE = ["0.0.0.0", "127.0.0.1", "127.255.255.255", "128.0.0.1", "255.255.255.255"]
NOTABLE6 = [
    "::",
    "::1",
    "::2",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0.0.0.0",
    "fe80::1",
    "febf::1",
    "fec0::1",
]


@st.composite
def rows(draw):
    protocol = draw(st.sampled_from(["tcp", "udp"]))
    family = draw(st.sampled_from(["ipv4", "ipv6"]))
    version = int(family[3])
    addresses = st.sampled_from(NOTABLE if version == 4 else NOTABLE6) | st.ip_addresses(v=version).map(str)
    state = draw(st.sampled_from(list(NUMBERS) if protocol == "tcp" else ["ESTABLISHED", None]))
    listening = state == "LISTEN"
    peer = not listening and draw(st.booleans())
    canonical = {4: socket.AF_INET, 6: socket.AF_INET6}[version]

    def text():
        return socket.inet_ntop(canonical, ipaddress.ip_address(draw(addresses)).packed)

    local = text()
    scope = draw(st.sampled_from([None, *INTERFACES.values()]))
    link_local = version == 6 and ipaddress.ip_address(local).is_link_local
    number = st.integers(0, 2**32 - 1)
    uid, inode = draw(st.just(0) | number), draw(st.just(0) | number)
    queues = draw(number), draw(number)
    return Socket(
        protocol=protocol,
        family=family,
        local_address=local,
        local_port=draw(st.integers(0, 65535)),
        remote_address=text() if peer else None,
        remote_port=draw(st.integers(1, 65535)) if peer else None,
        state=state,
        reach="none" if state == "BOUND" else reach(local),
        zone=scope if link_local else None,
        interface=None if link_local else scope,
        uid=uid if uid or inode else None,
        inode=inode,
        recv_queue=None if listening else queues[0],
        send_queue=None if listening else queues[1],
        accept_queue=queues[0] if listening else None,
        backlog=queues[1] if listening else None,
        v6only=draw(st.none() | st.booleans()),
        cookie=draw(st.integers(0, 2**64 - 1)),
        cgroup_id=draw(st.none() | st.integers(0, 2**64 - 1)),
        netns=NETNS,
    )


PADDING = st.sampled_from([b"", attribute(8, b"\3"), attribute(22, b"\1\2\3"), attribute(999, b"x" * 7)])
NOISE = st.sampled_from([b"", message(NLMSG_NOOP, b""), message(NLMSG_NOOP, b"abc"), DONE])


@given(st.lists(st.tuples(rows(), PADDING, NOISE, st.sampled_from([20, 18]))))
def test_what_is_encoded_is_parsed(several):
    for protocol in ("tcp", "udp"):
        of_it = [entry for entry in several if entry[0].protocol == protocol]
        data = b"".join(noise + encode(row, kind, attributes) for row, attributes, noise, kind in of_it) + DONE
        reading = sockdiag.parse(dump(protocol, data))
        assert reading.sockets == [row for row, *_ in of_it]
        assert reading.gaps == []


@given(
    st.binary(max_size=400) | st.lists(rows(), max_size=3).map(lambda several: b"".join(map(encode, several))),
    st.data(),
)
def test_any_bytes_are_sockets_or_garbled(data, more):
    damaged = bytearray(data)
    for _ in range(more.draw(st.integers(0, 4)) if damaged else 0):
        damaged[more.draw(st.integers(0, len(damaged) - 1))] = more.draw(st.integers(0, 255))
    cut = bytes(damaged[: more.draw(st.integers(0, len(damaged)))])
    for protocol in ("tcp", "udp"):
        try:
            reading = sockdiag.parse(dump(protocol, cut))
        except SourceGarbled:
            continue
        assert len(reading.sockets) <= len(cut) // 72


ROW = encode(
    Socket("tcp", "ipv4", "127.0.0.1", 80, uid=0, inode=1, state="LISTEN", accept_queue=0, backlog=1, cookie=1)
)


@pytest.mark.parametrize(
    ("protocol", "data"),
    [
        ("tcp", ROW[:-1]),
        ("tcp", ROW[:40]),
        ("tcp", b"\0" * 16),
        ("tcp", b"\1"),
        ("tcp", message(20, ROW[16:60]) + ROW),  # a row cut short takes nothing from the next one
        ("tcp", ROW.replace(b"\2\n\0\0", b"\1\n\0\0", 1)),  # AF_UNIX
        ("tcp", ROW.replace(b"\2\n\0\0", b"\2\x0d\0\0", 1)),  # a state that is in requests only
        ("udp", ROW),  # a UDP socket that listens
    ],
)
def test_what_makes_no_sense_is_garbled(protocol, data):
    with pytest.raises(SourceGarbled, match="sock_diag"):
        sockdiag.parse(dump(protocol, data))


def test_a_dump_that_stayed_interrupted_is_a_gap():
    reading = sockdiag.parse(dump("tcp", ROW + DONE, interrupted=True))
    assert len(reading.sockets) == 1
    ((what, count, why, _),) = [(g.what, g.count, g.why, g.hint) for g in reading.gaps]
    assert (what, count) == ("socket", None)
    assert "interrupted" in why


# --- what the kernel filters ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ports():
    """The ports of forty UDP sockets and of forty listeners."""
    opened = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(40)]
    opened += [socket.create_server(("127.0.0.1", 0)) for _ in range(40)]
    for one in opened[:40]:
        one.bind(("127.0.0.1", 0))
    yield {
        "udp": sorted(one.getsockname()[1] for one in opened[:40]),
        "tcp": sorted(one.getsockname()[1] for one in opened[40:]),
    }
    for one in opened:
        one.close()


def read(**wanted):
    return sockdiag.parse(sockdiag.read(Wanted(**wanted))).sockets


@given(
    st.sampled_from(["udp", "tcp"]),
    st.lists(
        st.tuples(st.integers(0, 39), st.integers(-1, 1), st.integers(0, 39), st.integers(-1, 1)),
        min_size=1,
        max_size=12,
    ),
)
def test_the_kernel_returns_exactly_the_ports_in_the_ranges(ports, protocol, corners):
    """The corners of a range lie on, just below or just above ports that are open."""
    mine = ports[protocol]
    ranges = tuple(tuple(sorted((mine[i] + d, mine[j] + e))) for i, d, j, e in corners)

    def inside(port):
        return any(low <= port <= high for low, high in ranges)

    returned = [s.local_port for s in read(protocols=(protocol,), families=("ipv4",), ports=ranges)]
    assert [port for port in returned if not inside(port)] == []
    assert sorted(set(returned) & set(mine)) == [port for port in mine if inside(port)]


def test_ports_are_filtered_in_one_pass_over_both_families_too(ports):
    low, high = ports["tcp"][10], ports["tcp"][20]
    returned = [s.local_port for s in read(protocols=("tcp",), ports=((low, high),))]
    assert set(ports["tcp"][10:21]) <= set(returned)
    assert min(returned) >= low
    assert max(returned) <= high


@pytest.mark.parametrize("port", [1, 65535])
def test_the_outermost_ports_are_valid_bounds(ports, port):
    assert {s.local_port for s in read(ports=((port, port),))} <= {port}
    assert set(ports["udp"]) <= {s.local_port for s in read(ports=((1, 65535),))}


@pytest.mark.parametrize("count", [99, 100, 101, 40_000])
def test_many_ranges_lose_nothing(ports, count):
    """From so many on the pipeline filters, not the kernel: more may come back, never less."""
    others = tuple((port, port) for port in range(1, 65536) if port not in ports["udp"])[: count - 40]
    ranges = tuple((port, port) for port in ports["udp"]) + others
    assert set(ports["udp"]) <= {s.local_port for s in read(protocols=("udp",), ports=ranges)}


def waiting(number, **changes):
    """A row in TIME_WAIT, as inet_twsk_diag_fill() makes it."""
    family, address = (("ipv4", f"192.0.2.{number % 200}"), ("ipv6", f"2001:db8::{number:x}"))[number % 2]
    values = {"local_address": address, "remote_address": address, "local_port": 1 + number, "remote_port": 9 + number}
    kept = {"state": "TIME_WAIT", "inode": 0, "recv_queue": 0, "send_queue": 0, "cookie": number << 30, "cgroup_id": 7}
    row = bytearray(encode(Socket("tcp", family, **{**values, **kept, **changes})))
    row[18] = 3  # the timer; behind the queues' places: idiag_expires
    row[68:72] = struct.pack("=I", number)
    return bytes(row)


ODD = {"interface": "eth0", "remote_port": 0, "recv_queue": 5, "uid": 9, "cgroup_id": 8, "state": "FIN_WAIT2"}


@pytest.mark.parametrize("odd", [None, *ODD])
def test_rows_that_are_alike_are_read_as_each_alone(odd):
    rows = [waiting(number) for number in range(100)]
    if odd is not None:
        rows[60] = waiting(60, **{odd: ODD[odd]})
    end = message(NLMSG_DONE, bytes(4))
    alone = [s for row in rows for s in sockdiag.parse(dump("tcp", row + end)).sockets]
    together = sockdiag.parse(dump("tcp", b"".join(rows) + end)).sockets
    assert sorted(together, key=lambda s: s.cookie) == alone
    assert len({s.local_address for s in alone}) == len({s.ends_in_ms for s in alone}) == 100


@pytest.mark.parametrize("state", [*(s for s in STATES if s not in ("CLOSE", "UNKNOWN")), None])
def test_only_the_wanted_state_comes_back(zoo, brief_zoo, state):
    animals = [e for kind in (*zoo.values(), *brief_zoo.values()) for e in kind if e.state == state]
    returned = read(states=frozenset((state,)))
    assert {s.state for s in returned} == {state}
    bound_is_known = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 8)
    need(state != "BOUND" or bound_is_known, "Linux 6.8, which lists bound sockets")
    assert {e.identity for e in animals} <= {identity(s) for s in returned}
    assert animals


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_only_the_wanted_protocol_and_family_come_back(zoo, protocol, family):
    returned = read(protocols=(protocol,), families=(family,))
    assert {(s.protocol, s.family) for s in returned} == {(protocol, family)}


def test_nothing_is_requested_when_no_state_is_wanted():
    raw = sockdiag.read(Wanted(states=frozenset()))
    assert raw.tables == ()


def test_the_cookie_is_the_sockets():
    so_cookie = 57  # include/uapi/asm-generic/socket.h
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cookie = struct.unpack("=Q", listener.getsockopt(socket.SOL_SOCKET, so_cookie, 8))[0]
        (row,) = read(ports=((listener.getsockname()[1],) * 2,))
    assert row.cookie == cookie


def test_the_network_namespace_is_ours():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (row,) = read(ports=((listener.getsockname()[1],) * 2,))
    assert f"net:[{row.netns}]" == os.readlink("/proc/self/ns/net")


# --- another namespace: link-local addresses, interfaces -----------------------------------------------------------

IN_A_NAMESPACE = """
import json, socket
from portbook.sources import sockdiag
from portbook.sources.base import Wanted
opened = [socket.socket(socket.AF_INET6), socket.socket(), socket.socket(socket.AF_INET6)]
opened[0].bind(("fe80::7", 0, 0, socket.if_nametoindex("one")))
for one in opened[1:]:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"one")
    one.bind(("", 0))
for one in opened:
    one.listen()
rows = {s.local_port: s for s in sockdiag.parse(sockdiag.read(Wanted())).sockets}
ours = [rows[one.getsockname()[1]] for one in opened]
print(json.dumps([[row.local_address, row.zone, row.interface] for row in ours]))
"""


def test_zones_and_devices_of_a_namespace():
    need(ROOT, "root, for a network namespace")
    setup = "ip link set lo up && ip link add one type veth peer name two && ip link set one up && ip link set two up"
    address = "ip addr add fe80::7/64 dev one nodad"
    run = subprocess.run(
        ["unshare", "--net", "sh", "-c", f'{setup} && {address} && exec "$0" -c "$1"', sys.executable, IN_A_NAMESPACE],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert run.stderr == ""
    assert run.stdout.strip() == '[["fe80::7", "one", null], ["0.0.0.0", null, "one"], ["::", null, "one"]]'


# --- what the kernel may answer ------------------------------------------------------------------------------------


def ask(monkeypatch, *answers):
    """Read TCP of IPv4 from a kernel that answers so: errors and interruptions cannot be ordered from the real one."""
    monkeypatch.setattr(netlink, "connect", lambda _: Answers(*answers))
    return sockdiag.read(Wanted(protocols=("tcp",), families=("ipv4",)))


def done(status=0, flags=2):
    return lambda sequence: message(NLMSG_DONE, struct.pack("=i", status), flags, sequence)


def test_a_dump_that_was_interrupted_every_time_keeps_its_rows_and_is_a_gap(monkeypatch):
    part = lambda sequence: message(20, ROW[16:], 0x12, sequence) + done()(sequence)  # noqa: E731
    reading = sockdiag.parse(ask(monkeypatch, *[part] * 20))
    assert len(reading.sockets) == 1
    assert any("interrupted" in gap.why for gap in reading.gaps)


def error(number):
    """NLMSG_ERROR carries a negative errno and the request (include/uapi/linux/netlink.h)."""
    return lambda sequence: message(NLMSG_ERROR, struct.pack("=i", -number) + b"\0" * 16, sequence=sequence)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT])
def test_an_error_is_a_missing_source(monkeypatch, number):
    with pytest.raises(SourceMissing, match=os.strerror(number)):
        ask(monkeypatch, error(number))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_refusal_is_an_error_of_the_source(monkeypatch, number):
    with pytest.raises(SourceError, match=os.strerror(number)):
        ask(monkeypatch, error(number))


def test_a_kernel_without_the_module_ends_the_dump_with_an_error(monkeypatch):
    with pytest.raises(SourceMissing, match="tcp_diag"):
        ask(monkeypatch, done(-errno.ENOENT))


def test_no_answer_is_a_timeout(monkeypatch):
    monkeypatch.setattr(sockdiag, "TIME_LIMIT_S", 0.05)
    with pytest.raises(SourceTimeout, match=r"no answer within 0\.05 s"):
        ask(monkeypatch)


def test_a_datagram_that_is_no_message_is_garbled(monkeypatch):
    with pytest.raises(SourceGarbled, match="no netlink message"):
        ask(monkeypatch, b"abc")


def test_a_dump_without_its_end_is_garbled():
    with pytest.raises(SourceGarbled, match="no end"):
        sockdiag.parse(dump("tcp", ROW))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EPROTONOSUPPORT, SourceMissing), (errno.EAFNOSUPPORT, SourceDenied), (errno.EACCES, SourceDenied)],
)
def test_a_system_without_netlink(monkeypatch, number, expected):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(netlink, "socket", refused)
    with pytest.raises(expected):
        sockdiag.read(Wanted())
    assert os.strerror(number) in sockdiag.missing()


@pytest.mark.parametrize(
    ("release", "states", "protocols", "told"),
    [
        ("6.1.0-13-amd64", {"BOUND"}, ("tcp",), True),
        ("6.7.12", {"BOUND", "LISTEN"}, ("tcp", "udp"), True),
        ("6.8.0", {"BOUND"}, ("tcp",), False),
        ("6.18.44-fc", {"BOUND"}, ("tcp",), False),
        ("7.0", {"BOUND"}, ("tcp",), False),
        ("5.10.0", {"LISTEN"}, ("tcp",), False),
        ("5.10.0", {"BOUND"}, ("udp",), False),
    ],
)
def test_a_kernel_that_hides_bound_sockets_is_a_gap(monkeypatch, release, states, protocols, told):
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((real[0], real[1], release, real[3], real[4])))
    gaps = sockdiag.read(Wanted(states=frozenset(states), protocols=protocols)).gaps
    assert bool(gaps) is told
    assert all(isinstance(gap, Gap) and gap.what == "socket" and release in gap.why for gap in gaps)
