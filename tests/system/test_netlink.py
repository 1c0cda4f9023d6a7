"""Netlink: whole answers or an error, against ip(8), with tables that change, and with a foreign sender."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import struct
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.testing import child

if sys.platform != "linux":
    pytest.skip("netlink is a part of Linux", allow_module_level=True)

from portbook.netconfig.linux import interfaces
from portbook.system import netlink
from tests import netlab

RTM_GETADDR = 22
NLMSG_ERROR, NLMSG_DONE = 2, 3
ROW = b"entry" * 20  # an answer of a kind that is not parsed here
KIND = 20


def message(kind, body, flags=2, sequence=1):
    """A netlink message, padded to four bytes (include/uapi/linux/netlink.h)."""
    header = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, os.getpid())
    return header + body + b"\0" * (-len(body) % 4)


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


# --- the pure half -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(2, 0xFFFF), st.binary(max_size=40))))
def test_messages_are_read_as_they_were_written(several):
    data = b"".join(message(kind, body) for kind, body in several)
    assert list(netlink.messages(data)) == several


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40), max_size=5))
def test_attributes_are_read_as_they_were_written(values):
    data = b"".join(netlink.attribute(kind, value) for kind, value in values.items())
    assert data == b"".join(attribute(kind, value) for kind, value in values.items())
    assert netlink.attributes(data) == values


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1), st.data())
def test_a_message_cut_short_is_an_error_and_no_shorter_answer(bodies, more):
    whole = [message(KIND, body) for body in bodies]
    data = b"".join(whole)
    cut = more.draw(st.integers(1, len(data) - 1))
    boundaries = {sum(map(len, whole[:n])) for n in range(len(whole))}
    padding = {at for n, body in enumerate(bodies) for at in range(sum(map(len, whole[:n])) + 16 + len(body), len(data))
               if at < sum(map(len, whole[: n + 1]))}  # fmt: skip
    if cut in boundaries | padding:
        return
    with pytest.raises(netlink.GarbledAnswer):
        list(netlink.messages(data[:cut]))


@given(st.binary(max_size=300))
def test_any_bytes_are_messages_and_attributes_or_garbled(data):
    for parse in (lambda: list(netlink.messages(data)), lambda: netlink.attributes(data)):
        with contextlib.suppress(netlink.GarbledAnswer):
            parse()
    with contextlib.suppress(OSError):
        netlink.raise_error(data)


@given(st.binary(max_size=300), st.sampled_from([0, NLMSG_ERROR, NLMSG_DONE, KIND]), st.integers(0, 0xFFFF))
def test_any_datagram_of_the_kernel_is_an_answer_or_an_error(data, kind, flags):
    """Whatever follows, the dump ends, in an answer or in one of the documented errors."""
    answers = [
        lambda sequence: message(kind, data, flags, sequence),
        data,
        lambda n: message(NLMSG_DONE, bytes(4), 2, n),
    ]
    with Channel(*answers) as channel, contextlib.suppress(OSError):
        answer = channel.dump(KIND, b"")
        assert struct.unpack_from("=IH", answer.data, len(answer.data) - 20) == (20, NLMSG_DONE)


# --- answers that cannot be ordered from the kernel ----------------------------------------------------------------


class Answers:
    """A socket on which prepared datagrams arrive; after them nothing does."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.receive_buffer = 0
        self.timeout = None
        self.sender = (0, 0)

    def settimeout(self, timeout):
        self.timeout = timeout

    def send(self, request):
        self.requests.append(request)

    def setsockopt(self, _level, _option, value):
        self.receive_buffer = value

    def close(self):
        pass

    def recvmsg(self, size):
        if not self.answers:
            time.sleep(self.timeout)
            raise TimeoutError("timed out")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        (sequence,) = struct.unpack_from("=I", self.requests[-1], 8)
        data = answer(sequence) if callable(answer) else answer
        return data[:size], [], 0x20 if len(data) > size else 0, self.sender


@contextlib.contextmanager
def Channel(*answers, time_limit_s=0.2, size_limit=1 << 20):  # noqa: N802  in place of the class
    fake = Answers(*answers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(netlink, "connect", lambda _: fake)
        with netlink.Channel(netlink.ROUTE, time_limit_s, size_limit) as channel:
            channel.fake = fake
            yield channel


def part(flags=2, end=True, body=ROW):
    """One answer to the latest request: an entry, perhaps with a flag, perhaps the end."""

    def make(sequence):
        done = message(NLMSG_DONE, struct.pack("=i", 0), flags, sequence) if end else b""
        return message(KIND, body, flags, sequence) + done

    return make


def entries(data):
    return [body for kind, body in netlink.messages(data) if kind == KIND]


def test_a_dump_of_several_datagrams_is_put_together():
    with Channel(part(end=False), part(end=False), part()) as channel:
        answer = channel.dump(KIND, b"")
        assert (entries(answer.data), answer.interrupted, len(channel.fake.requests)) == ([ROW] * 3, False, 1)


@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_an_interrupted_dump_is_repeated(where):
    interrupted = [part(flags=0x12 if i == where else 2, end=False) for i in range(3)]
    end = lambda sequence: message(NLMSG_DONE, bytes(4), 0x12 if where == 3 else 2, sequence)  # noqa: E731
    with Channel(*interrupted, end, part()) as channel:
        answer = channel.dump(KIND, b"")
        assert (entries(answer.data), answer.interrupted, len(channel.fake.requests)) == ([ROW], False, 2)


def test_a_dump_that_is_always_interrupted_is_marked():
    with Channel(*[part(flags=0x12)] * 20) as channel:
        answer = channel.dump(KIND, b"")
        assert answer.interrupted
        assert entries(answer.data) == [ROW]
        assert len(channel.fake.requests) == netlink.MOST_TRIES


def test_readers_of_whole_tables_take_no_interrupted_dump(monkeypatch):
    monkeypatch.setattr(netlink, "connect", lambda _: Answers(*[part(flags=0x12)] * 20))
    with pytest.raises(netlink.InterruptedDump, match=f"changed each of the {netlink.MOST_TRIES} times"):
        netlink.dump(netlink.ROUTE, KIND, b"")


def test_another_sequence_number_is_passed_over():
    old = message(KIND, b"old", sequence=99) + message(NLMSG_DONE, bytes(4), sequence=99)
    with Channel(old, part()) as channel:
        assert entries(channel.dump(KIND, b"").data) == [ROW]
    with Channel(old, lambda n: message(KIND, ROW, 0, n)) as channel:
        assert channel.request(KIND, b"") == [(KIND, ROW)]


def test_a_lost_datagram_grows_the_buffer_and_the_dump_is_repeated():
    with Channel(part(end=False), OSError(errno.ENOBUFS, "No buffer space available"), part()) as channel:
        assert entries(channel.dump(KIND, b"").data) == [ROW]
        assert channel.fake.receive_buffer > 212_992  # net.core.rmem_default


def test_a_datagram_longer_than_the_buffer_is_not_cut():
    long = part(body=b"x" * 60_000 + ROW + b"y" * 60_000)
    with Channel(long, long) as channel:
        assert [len(body) for body in entries(channel.dump(KIND, b"").data)] == [120_000 + len(ROW)]


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EMSGSIZE])
def test_a_buffer_that_is_never_enough_ends(number):
    with Channel(*[OSError(number, os.strerror(number))] * 50) as channel:
        with pytest.raises(OSError, match=os.strerror(number)):
            channel.dump(KIND, b"")
        assert len(channel.fake.requests) == netlink.MOST_TRIES


def test_an_answer_longer_than_the_limit_is_an_error():
    with Channel(*[part(end=False)] * 50, size_limit=20 * len(ROW)) as channel:
        with pytest.raises(OSError, match="the answer is longer than") as caught:
            channel.dump(KIND, b"")
        assert caught.value.errno == errno.EFBIG
        assert len(channel.fake.answers) > 20


def test_a_dump_that_does_not_end_is_late():
    with Channel(part(end=False), part(end=False)) as channel:
        before = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
            channel.dump(KIND, b"")
        assert 0.15 < time.monotonic() - before < 5


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOENT, errno.EBUSY])
@pytest.mark.parametrize("closing", [NLMSG_ERROR, NLMSG_DONE])
def test_the_error_of_the_kernel_is_raised_with_its_number(number, closing):
    answer = lambda sequence: message(closing, struct.pack("=i", -number), sequence=sequence)  # noqa: E731
    with Channel(part(end=False), answer) as channel, pytest.raises(OSError, match=os.strerror(number)) as caught:
        channel.dump(KIND, b"")
    assert caught.value.errno == number
    if closing == NLMSG_ERROR:
        with Channel(answer) as channel, pytest.raises(OSError, match=os.strerror(number)):
            channel.request(KIND, b"")


def test_a_datagram_without_a_header_is_garbled():
    with Channel(b"abc") as channel, pytest.raises(netlink.GarbledAnswer, match="3 bytes"):
        channel.dump(KIND, b"")


# --- the kernel ----------------------------------------------------------------------------------------------------

STABLE = [f"10.{64 + n // 250}.{n % 250}.1/32" for n in range(1000)] + [f"fd77:1::{n:x}/128" for n in range(1, 1001)]
PASSING = [f"10.9.{n}.1/32" for n in range(200)] + [f"fd77:9::{n:x}/128" for n in range(1, 201)]


@pytest.fixture
def network():
    """A network namespace with many addresses, in which the calling thread is."""
    netlab.needed()
    space = netlab.Namespace()
    try:
        space.run("ip", "link", "add", "many0", "type", "veth", "peer", "name", "many1")
        space.run("ip", "-batch", "-", text=batch("add", STABLE))
        with space:
            wait_until_quiet()
            yield space
    finally:
        space.close()


def wait_until_quiet():
    """The kernel finishes new IPv6 addresses later (addrconf_dad_work()), which changes the table again."""
    for _ in range(200):
        with contextlib.suppress(netlink.InterruptedDump):
            read_addresses()
            return
        time.sleep(0.05)
    raise AssertionError("the new addresses are not finished")


def batch(action, addresses):
    """Input of ``ip -batch``."""
    return "".join(f"address {action} {address} dev many0\n" for address in addresses)


def addresses_of_ip(space):
    """What ip(8) says: address and interface."""
    links = [link for link in json.loads(space.run("ip", "-j", "address")) if link]
    return sorted((info["local"], link["ifname"]) for link in links for info in link["addr_info"])


def read_addresses():
    return sorted((address.address, address.interface) for address in interfaces.read_addresses())


def test_ip_agrees_with_a_dump(network):
    rows = read_addresses()
    assert rows == addresses_of_ip(network)
    assert len(rows) >= len(STABLE)


def test_addresses_that_come_and_go_while_they_are_read_make_no_answer_short(network, tmp_path):
    """The addresses that stay are in each answer, or there is none."""
    files = []
    for action in ("add", "del"):
        files.append(tmp_path / action)
        files[-1].write_text(batch(action, PASSING))
    network.start("sh", "-c", 'while ip -batch "$0"; do ip -batch "$1"; done', *map(str, files))
    expected = {address.partition("/")[0] for address in STABLE}
    whole = interrupted = 0
    until = time.monotonic() + 30
    while (interrupted < 20 or whole < 20) and time.monotonic() < until:
        try:
            rows = {address for address, _ in read_addresses()}
        except netlink.InterruptedDump:
            interrupted += 1
            continue
        assert expected - rows == set()
        whole += 1
    assert interrupted, "nothing was changed during a dump, so that nothing was tried"
    assert whole, "no dump was ever whole"


def test_the_kernel_reports_that_a_dump_was_interrupted(network, tmp_path):
    """The assumption behind the repetition. IPv4 alone: see interfaces.read_addresses."""
    passing = tmp_path / "add", tmp_path / "del"
    for file in passing:
        file.write_text(batch(file.name, PASSING))
    network.start("sh", "-c", 'while ip -batch "$0"; do ip -batch "$1"; done', *map(str, passing))
    repeated = 0
    until = time.monotonic() + 30
    with netlink.Channel(netlink.ROUTE, 10) as channel:
        while not repeated and time.monotonic() < until:
            before = channel._sequence
            channel.dump(RTM_GETADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0))
            repeated = (channel._sequence - before) % 2**32 - 1
    assert repeated


def test_the_errors_of_the_kernel(network):
    with netlink.Channel(netlink.ROUTE) as channel:
        with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
            channel.request(9999, b"")
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            channel.request(26, bytes((socket.AF_INET, 0, 0, 0)))  # RTM_GETROUTE, too short
        (answer,) = channel.request(
            26, struct.pack("=BBBBBBBBI", 2, 32, *bytes(6), 0) + attribute(1, bytes((127, 0, 0, 1)))
        )
    assert answer[0] == 24  # RTM_NEWROUTE


def test_a_channel_belongs_to_the_namespace_of_its_thread(network):
    assert ("10.64.0.1", "many0") in read_addresses()
    outside = []
    thread = threading.Thread(target=lambda: outside.append(len(read_addresses())))
    with network:
        thread.start()  # a thread begins where its parent is
        thread.join(30)
    assert outside == [len(read_addresses())]


# --- a foreign sender ----------------------------------------------------------------------------------------------

# Answers in place of the kernel: an address that nobody has, and the end. It takes the sequence number of the request.
FORGER = """
import errno, struct, sys
port_id, sequence = int(sys.argv[1]), int(sys.argv[2])
def message(kind, body):
    return struct.pack("=IHHII", 16 + len(body), kind, 2, sequence, port_id) + body
address = struct.pack("=BBBBI", 2, 32, 0, 0, 1) + struct.pack("=HH4s", 8, 2, bytes((192, 0, 2, 99)))
sender = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
try:
    sent = sender.sendto(message(20, address) + message(3, bytes(4)), (port_id, 0)) and "sent"
except OSError as error:
    sent = errno.errorcode[error.errno]
say(sent)
wait()
"""


def forge(channel):
    """What became of a forged answer to the next request, which another process sent."""
    port_id, _ = channel._socket.getsockname()
    with child(FORGER, str(port_id), str((channel._sequence + 1) & 0xFFFFFFFF)) as process:
        return process.said


def local_addresses(channel):
    answer = channel.dump(RTM_GETADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0))
    return {row.address for row in interfaces.parse_addresses(netlink.messages(answer.data), str)}


def test_the_kernel_refuses_what_others_send(network):
    with netlink.Channel(netlink.ROUTE) as channel:
        assert forge(channel) == "ECONNREFUSED"
        assert "192.0.2.99" not in local_addresses(channel)


def test_what_others_have_sent_is_dropped(network):
    """Between socket() and connect() a message may arrive: it lies in the queue, before the kernel's own answer."""
    unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
    with netlink.Channel(netlink.ROUTE) as channel:
        assert ctypes.CDLL(None).connect(channel._socket.fileno(), unspecified, len(unspecified)) == 0
        assert forge(channel) == "sent"
        rows = local_addresses(channel)
        assert "192.0.2.99" not in rows
        assert "10.64.0.1" in rows
