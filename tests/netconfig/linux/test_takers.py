"""What takes packets besides NAT: BPF programs that choose sockets, in a kernel; IPVS by what kernels print."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook import why
from portbook.addresses import Endpoint
from portbook.netconfig.facts import IpvsService, LocalAddress
from portbook.netconfig.linux import ipvs, socket_lookup
from portbook.system import bpf
from portbook.verdict.rules import apply_rules
from portbook.verdict.situation import Situation
from tests import netlab
from tests.components import need
from tests.verdict.network import as_user, bound
from tests.verdict.verdicts import codes, finding

MAP_CREATE, MAP_UPDATE, PROG_LOAD, LINK_CREATE = 0, 2, 5, 28  # bpf(2)
SOCKMAP, SK_LOOKUP = 15, 30
LICENSE = bytearray(b"GPL\0")


@pytest.fixture
def network():
    with netlab.namespace() as space, space:
        yield space


def instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, to | source << 4, offset, value)


def program(port: int, sockets: int) -> bytearray:
    """Packets to the port go to the first socket of a map; all others as usual (RFC 9669 for the codes)."""
    code = [
        instruction(0xBF, 6, 1),  # r6 = context
        instruction(0x61, 2, 1, 60),  # r2 = its local port
        instruction(0x55, 2, 0, 13, port),  # another: to the end
        instruction(0x62, 10, 0, -4, 0),  # key 0
        instruction(0x18, 1, 1, 0, sockets), instruction(0),  # r1 = the map
        instruction(0xBF, 2, 10), instruction(0x07, 2, 0, 0, -4),
        instruction(0x85, value=1),  # bpf_map_lookup_elem
        instruction(0x15, 0, 0, 6),
        instruction(0xBF, 7, 0),
        instruction(0xBF, 1, 6), instruction(0xBF, 2, 7), instruction(0xB7, 3),
        instruction(0x85, value=124),  # bpf_sk_assign
        instruction(0xBF, 1, 7),
    ]  # fmt: skip
    release = [instruction(0x85, value=86)]  # bpf_sk_release
    end = [instruction(0xB7, 0, 0, 0, 1), instruction(0x95)]  # SK_PASS
    code[9] = instruction(0x15, 0, 0, len(code) + len(release) - 10)
    code[2] = instruction(0x55, 2, 0, len(code) + len(release) - 3, port)
    return bytearray(b"".join((*code, *release, *end)))


@contextlib.contextmanager
def attached(port: int, target: socket.socket) -> Iterator[None]:
    """The program in the network namespace of this thread, with the socket that it chooses."""
    with contextlib.ExitStack() as stack:

        def keep(file: int) -> int:
            stack.callback(os.close, file)
            return file

        sockets = keep(bpf.call(MAP_CREATE, bytearray(struct.pack("=IIII", SOCKMAP, 4, 8, 1).ljust(72, b"\0"))))
        key, value = bytearray(4), bytearray(struct.pack("=Q", target.fileno()))
        update = struct.pack("=I4xQQQ", sockets, bpf.address_of(key), bpf.address_of(value), 0)
        bpf.call(MAP_UPDATE, bytearray(update))
        code = program(port, sockets)
        load = struct.pack("=IIQQIIQIi16sII", SK_LOOKUP, len(code) // 8, bpf.address_of(code), bpf.address_of(LICENSE),
                           0, 0, 0, 0, 0, b"steer", 0, 36)  # fmt: skip
        loaded = keep(bpf.call(PROG_LOAD, bytearray(load.ljust(128, b"\0"))))
        namespace = keep(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        keep(bpf.call(LINK_CREATE, bytearray(struct.pack("=IIII", loaded, namespace, 36, 0).ljust(48, b"\0"))))
        yield


@pytest.fixture
def steered(network):
    """Port 8080 leads to the server on 9090."""
    with bound("127.0.0.1", 9090, listens=True) as target:
        try:
            with attached(8080, target):
                yield target
        except OSError as error:
            need(False, f"a kernel with sk_lookup programs, Linux 5.9 ({error})")


def test_a_program_that_chooses_another_socket(steered):
    with bound("127.0.0.1", 8080, listens=True) as asked:
        verdict = why(8080)
        with socket.create_connection(("127.0.0.1", 8080)):  # what the finding says, seen by a client
            steered.settimeout(10)
            steered.accept()[0].close()
            asked.setblocking(False)
            with pytest.raises(BlockingIOError):
                asked.accept()
    found = finding(verdict, "sk-lookup")
    assert (found.severity, found.evidence["name"]) == ("shadows", "steer")
    assert "gives packets to another socket for port 8080" in found.text


def test_a_port_that_it_leaves_alone_is_not_certain(steered):
    verdict = why(8081)
    found = finding(verdict, "sk-lookup")
    assert (verdict.can_have, found.severity, found.confidence) == (True, "warns", "likely")


def test_the_socket_that_it_chooses_is_the_ports_own(steered):
    assert "sk-lookup" not in codes(why(9090), "shadows")


def test_without_such_a_program_nothing_is_said(network):
    assert socket_lookup.read_programs() == []
    assert why(8080).findings == ()


def test_an_ordinary_user_is_not_told_of_programs(steered):
    assert as_user(socket_lookup.read_programs) == []
    assert codes(as_user(why, 8081)) == []


# --- IPVS: this kernel has none ------------------------------------------------------------------------------------

# As "Virtual Server via NAT" on linuxvirtualserver.org and issues of Kubernetes show /proc/net/ip_vs.
TABLE = b"""IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> 0A4D0002:192B      Masq    1      0          0
UDP  0A60000A:0035 wrr persistent 360 FFFFFFFF
TCP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0050 sh
FWM  00000001 rr
"""


def test_the_services_of_ipvs():
    assert ipvs.parse(TABLE) == [
        IpvsService("tcp", "10.96.0.1", 443, "rr"),
        IpvsService("udp", "10.96.0.10", 53, "wrr"),
        IpvsService("tcp", "fd00::1", 80, "sh"),
    ]


@pytest.mark.parametrize(
    ("requested", "local", "taken"),
    [
        ("10.96.0.1", "10.96.0.1", True),
        ("0.0.0.0", "10.96.0.1", True),
        ("0.0.0.0", "10.0.0.1", False),
        ("10.0.0.1", "10.96.0.1", False),
        ("::", "10.96.0.1", False),
    ],
)
def test_a_virtual_service_with_the_port(requested, local, taken):
    situation = Situation(
        "linux",
        443,
        endpoints=(Endpoint(requested),),
        addresses=(LocalAddress(local, "kube-ipvs0"),),
        ipvs=(IpvsService("tcp", "10.96.0.1", 443, "rr"),),
    )
    assert ("ipvs" in [found.code for found in apply_rules(situation)]) is taken


@given(st.binary(max_size=120) | st.sampled_from([b"TCP 0A600001:01BB", b"UDP :0", b"TCP [::]:FFFFF x", b"TCP"]))
def test_any_table_is_read_or_passed_over(text):
    for service in ipvs.parse(text):
        assert 0 < service.port <= 65535
