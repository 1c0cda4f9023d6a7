"""Linux: parts of the kernel that have ports themselves: tunnels, file servers, storage. No process has their sockets.

Each reader reports what is configured in the network namespace of the calling thread. What is not there, or may not be
read, is left out.

Facts: rtnetlink(7), include/uapi/linux/{if_link,amt,wireguard,fou,l2tp,genetlink}.h; nfsd(7);
Documentation/filesystems/nfs; drivers/target/iscsi, drivers/nvme/target (configfs);
Documentation/networking/ip-sysctl.rst, net.sctp.
"""

from __future__ import annotations

import glob
import os
import struct
from _socket import AF_UNSPEC
from collections.abc import Iterable, Iterator
from contextlib import suppress

from portbook.netconfig.facts import KernelUser
from portbook.netconfig.linux.interfaces import (
    IFINFOMSG,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    RTM_GETLINK,
    RTM_NEWLINK,
)
from portbook.numerals import UINT16, number_or_none
from portbook.records import PROTOCOLS
from portbook.system import netlink
from portbook.system.netlink import Message

IFLA_INFO_DATA = 2
# Kinds of interfaces: the attributes of IFLA_INFO_DATA that are local UDP ports, in network byte order.
PORT_ATTRIBUTES = {"vxlan": (15,), "geneve": (5,), "bareudp": (1,), "amt": (2, 3)}
# Kinds whose ports are fixed: 3GPP TS 29.060 and 29.281, TS 29.244.
FIXED_PORTS = {"gtp": (2152, 3386), "pfcp": (8805,)}

GENERIC = 16  # NETLINK_GENERIC
CTRL_FAMILY, CTRL_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
GENERIC_HEADER = struct.Struct("=BBxx")  # command, version
NUMBER16, NUMBER32 = struct.Struct("=H"), struct.Struct("=I")
WG_GET_DEVICE, WGDEVICE_IFNAME, WGDEVICE_LISTEN_PORT = 0, 2, 6
FOU_GET, FOU_PORT = 3, 1
L2TP_TUNNEL_GET, L2TP_ENCAP_TYPE, L2TP_CONN_ID, L2TP_UDP_SPORT = 4, 2, 9, 26
L2TP_ENCAP_UDP = 0

MOST_BYTES = 1 << 16
# Files that have the port of a service, or 0: path, protocol, name.
PORT_FILES = (
    ("/proc/sys/fs/nfs/nlm_tcpport", "tcp", "lockd"),
    ("/proc/sys/fs/nfs/nlm_udpport", "udp", "lockd"),
    ("/sys/module/nfs/parameters/callback_tcpport", "tcp", "nfs callbacks"),
    ("/proc/sys/net/sctp/udp_port", "udp", "sctp over UDP"),
    ("/sys/kernel/config/dlm/cluster/tcp_port", "tcp", "dlm"),
)
# What exists when a part of the kernel is in use, and the port that it then has: path, protocol, port, name.
FIXED_FILES = (
    ("/sys/class/ksmbd-control", "tcp", 445, "ksmbd"),
    ("/sys/module/rds_tcp", "tcp", 16385, "rds"),
    ("/sys/module/rdma_rxe", "udp", 4791, "rdma_rxe"),
    ("/sys/module/tipc", "udp", 6118, "tipc"),
    ("/proc/net/rxrpc", "udp", 7001, "rxrpc (afs)"),
)


def read() -> tuple[KernelUser, ...]:
    """What has ports in the network namespace of the calling thread."""
    users: list[KernelUser] = []
    for reader in (_links, _fou, _l2tp, _nfsd, _files, _iscsi, _nvme):
        with suppress(OSError, ValueError, struct.error):
            users += reader()
    return tuple(users)


# --- interfaces ----------------------------------------------------------------------------------------------------


def _links() -> Iterator[KernelUser]:
    body = IFINFOMSG.pack(AF_UNSPEC, 0, 0, 0, 0)
    messages = netlink.dump(netlink.ROUTE, RTM_GETLINK, body)
    yield from parse_links(messages)
    for kind, name in _kinds(messages):
        if kind == "wireguard":
            with suppress(OSError):  # it needs CAP_NET_ADMIN
                yield from _wireguard(name)


def parse_links(messages: Iterable[Message]) -> Iterator[KernelUser]:
    """Read RTM_NEWLINK messages: the tunnels over UDP. Raises OSError for attributes that are cut short. Pure."""
    for kind, name, data in _rows(messages):
        values = netlink.attributes(data) if kind in PORT_ATTRIBUTES else {}
        ports = [int.from_bytes(values.get(number, b"")[:2], "big") for number in PORT_ATTRIBUTES.get(kind, ())]
        for port in (*ports, *FIXED_PORTS.get(kind, ())):
            if port:
                yield KernelUser("udp", port, f"{kind} {name}")


def _kinds(messages: Iterable[Message]) -> Iterator[tuple[str, str]]:
    return ((kind, name) for kind, name, _ in _rows(messages))


def _rows(messages: Iterable[Message]) -> Iterator[tuple[str, str, bytes]]:
    """The kind of each interface, its name and what belongs to its kind."""
    for kind, body in messages:
        if kind == RTM_NEWLINK and len(body) >= IFINFOMSG.size:
            values = netlink.attributes(body[IFINFOMSG.size :])
            info = netlink.attributes(values.get(IFLA_LINKINFO, b""))
            name = netlink.text(values.get(IFLA_IFNAME))
            yield netlink.text(info.get(IFLA_INFO_KIND)), name, info.get(IFLA_INFO_DATA, b"")


# --- generic netlink -----------------------------------------------------------------------------------------------


def _family(channel: netlink.Channel, name: str) -> int:
    """The number of a family of generic netlink; raises OSError, ENOENT for one that is not loaded."""
    body = GENERIC_HEADER.pack(CTRL_GETFAMILY, 1) + netlink.attribute(CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")
    for _, answer in channel.request(CTRL_FAMILY, body):
        values = netlink.attributes(answer[GENERIC_HEADER.size :])
        if CTRL_ATTR_FAMILY_ID in values:
            return int(NUMBER16.unpack_from(values[CTRL_ATTR_FAMILY_ID])[0])
    raise OSError(f"{name} has no number")


def _generic(family: str, command: int, body: bytes = b"") -> Iterator[dict[int, bytes]]:
    """The attributes of each message of a dump."""
    with netlink.Channel(GENERIC) as channel:
        number = _family(channel, family)
        answer = channel.dump(number, GENERIC_HEADER.pack(command, 1) + body)
    for _, message in answer.messages():
        yield netlink.attributes(message[GENERIC_HEADER.size :])


def _wireguard(name: str) -> Iterator[KernelUser]:
    body = netlink.attribute(WGDEVICE_IFNAME, name.encode() + b"\0")
    for values in _generic("wireguard", WG_GET_DEVICE, body):
        if WGDEVICE_LISTEN_PORT in values:
            (port,) = NUMBER16.unpack_from(values[WGDEVICE_LISTEN_PORT])
            yield KernelUser("udp", port, f"wireguard {name}")


def _fou() -> Iterator[KernelUser]:
    for values in _generic("fou", FOU_GET):
        port = int.from_bytes(values.get(FOU_PORT, b"")[:2], "big")
        if port:
            yield KernelUser("udp", port, "fou")


def _l2tp() -> Iterator[KernelUser]:
    for values in _generic("l2tp", L2TP_TUNNEL_GET):
        kind = values.get(L2TP_ENCAP_TYPE, b"\0\0")
        if L2TP_UDP_SPORT in values and NUMBER16.unpack_from(kind)[0] == L2TP_ENCAP_UDP:
            (port,) = NUMBER16.unpack_from(values[L2TP_UDP_SPORT])
            (tunnel,) = NUMBER32.unpack_from(values.get(L2TP_CONN_ID, bytes(4)))
            yield KernelUser("udp", port, f"l2tp tunnel {tunnel}")


# --- files ---------------------------------------------------------------------------------------------------------


def _text(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(MOST_BYTES).decode("utf-8", "replace")


def _nfsd() -> Iterator[KernelUser]:
    """Lines such as ``tcp 2049``."""
    for line in _text("/proc/fs/nfsd/portlist").splitlines():
        word, _, digits = line.partition(" ")
        port = number_or_none(digits, UINT16, 1)
        for protocol in PROTOCOLS:
            if port is not None and word == protocol:
                yield KernelUser(protocol, port, "nfsd")


def _files() -> Iterator[KernelUser]:
    for path, word, name in PORT_FILES:
        with suppress(OSError):
            port = number_or_none(_text(path).strip(), UINT16, 1)
            for protocol in PROTOCOLS:
                if port is not None and word == protocol:
                    yield KernelUser(protocol, port, name)
    for path, word, port, name in FIXED_FILES:
        for protocol in PROTOCOLS:
            if word == protocol and os.path.exists(path):
                yield KernelUser(protocol, port, name)


def _iscsi() -> Iterator[KernelUser]:
    """Directories such as ``.../iqn.2003-01.org.example/tpgt_1/np/0.0.0.0:3260``."""
    for path in glob.iglob("/sys/kernel/config/target/iscsi/*/tpgt_*/np/*"):
        port = number_or_none(path.rpartition(":")[2], UINT16, 1)
        if port is not None:
            yield KernelUser("tcp", port, f"iscsi target {path.split('/')[6]}")


def _nvme() -> Iterator[KernelUser]:
    for path in glob.iglob("/sys/kernel/config/nvmet/ports/*"):
        port = number_or_none(_text(f"{path}/addr_trsvcid").strip(), UINT16, 1)
        if port is not None and _text(f"{path}/addr_trtype").strip() == "tcp":
            yield KernelUser("tcp", port, f"nvmet port {os.path.basename(path)}")
