"""Linux: NAT rules by which packets to a port never reach a socket here. Two halves: read, parse.

A redirection needs a base chain of type nat, a transparent proxy one in prerouting. One request to the kernel shows
whether there is one; only then are nft and iptables-save run, which take longer than everything else in a verdict.

Sources: nft(8), libnftables-json(5), iptables-save(8), iptables-extensions(8) (DNAT, REDIRECT, multiport, addrtype);
include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h. NAT happens in prerouting for what comes in, in output for what
this machine sends: nft(8), "CHAINS".
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from portbook.errors import SourceError
from portbook.netconfig.facts import Diversion
from portbook.records import Family, Gap, Protocol

if TYPE_CHECKING:
    from portbook.netconfig.linux.packets import Machine
    from portbook.netconfig.linux.ruleset import Ruleset

NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETCHAIN = 4
NFGENMSG = struct.Struct("=BBH")  # family, version, resource
NFTA_CHAIN_HOOK, NFTA_CHAIN_TYPE = 4, 7
NFTA_HOOK_HOOKNUM = 1
NF_INET_PRE_ROUTING = b"\0\0\0\0"  # a number of 32 bits, most significant byte first
INTERNET = (b"\x01", b"\x02", b"\x0a")  # NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 of linux/netfilter.h
# The answers of a kernel without netlink for netfilter, or without nf_tables behind it (nfnetlink_rcv_msg).
ABSENT = frozenset((errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT))
# The older iptables: the file of /proc/net that names its tables, and the program that prints them.
LEGACY: dict[Family, tuple[str, str]] = {
    "ipv4": ("ip_tables_names", "iptables-legacy-save"),
    "ipv6": ("ip6_tables_names", "ip6tables-legacy-save"),
}
LEGACY_TABLES = frozenset((b"nat", b"mangle"))
TIME_LIMIT_S = 3.0
MOST_NAMED = 4
MOST_BYTES = 16 << 20
# Interfaces of container runtimes and hypervisors: without them nothing is missing for an ordinary user.
BRIDGES = ("docker", "br-", "cni", "podman", "nerdctl", "virbr", "lxcbr", "lxdbr", "incusbr", "cbr", "flannel", "cali")


class NatOutput(Struct, frozen=True):
    """What the tools printed."""

    nft: bytes = b""
    saved: tuple[tuple[Family, bytes], ...] = ()  # family, and what iptables-save printed for it
    gaps: tuple[Gap, ...] = ()


def take(
    port: int, protocol: Protocol, requested: Sequence[str], *, may_read: bool = True
) -> tuple[tuple[Diversion, ...], list[Gap]]:
    """The diversions of packets to the port. Where nothing diverts any, this is one request to the kernel.

    :param requested: the addresses at which the port is bound, wildcards too
    """
    rules, gaps = take_rules(requested, may_read=may_read)
    if rules is None:
        return (), gaps
    diversions, more = rules.diversions(port, protocol)
    return diversions, [*gaps, *more]


class Rules(Struct):
    """The rules of this network namespace, to be asked about ports."""

    ruleset: Ruleset
    machine: Machine

    def diversions(self, port: int, protocol: Protocol) -> tuple[tuple[Diversion, ...], list[Gap]]:
        """What diverts packets to a port."""
        from portbook.netconfig.linux.packets import MOST_STEPS, survey

        answer = survey(self.ruleset, port, protocol, self.machine)
        gaps: list[Gap] = []
        if not answer.complete:
            gaps.append(Gap("nat", None, f"NAT rules after the first {MOST_STEPS:,} steps were not followed"))
        if answer.unknown:
            actions = ", ".join(answer.unknown[:MOST_NAMED])
            gaps.append(Gap("nat", None, f"packets to the port meet rules that are not understood: {actions}"))
        return answer.diversions, gaps


def take_rules(requested: Sequence[str], *, may_read: bool = True) -> tuple[Rules | None, list[Gap]]:
    """Read the rules; None if nothing can divert packets, or a gap says why that is not known."""
    if not may_read:
        return None, _denied()
    try:
        output = read()
    except PermissionError:  # the capability is one of another user namespace
        return None, _denied()
    except OSError as error:
        return None, [Gap("nat", None, f"whether NAT rules redirect packets is not known: nf_tables: {error}")]
    gaps = list(output.gaps)
    if not output.nft and not output.saved:
        return None, gaps
    ruleset, parse_gaps = parse(output)
    return Rules(ruleset, _machine(requested, gaps)), [*gaps, *parse_gaps]


def _machine(requested: Sequence[str], gaps: list[Gap]) -> Machine:
    from portbook.netconfig.linux import interfaces
    from portbook.netconfig.linux.packets import Machine

    try:
        return Machine(tuple(requested), interfaces.read_addresses(), interfaces.read_names())
    except OSError as error:
        gaps.append(Gap("address", None, f"cannot read the addresses of this machine: {error}"))
        return Machine(tuple(requested))


def _denied() -> list[Gap]:
    """A gap, where something probably does NAT."""
    if not _has_bridge():
        return []
    why = f"whether NAT rules (published container ports) redirect packets is not visible to uid {os.geteuid()}"
    return [Gap("nat", None, why, _privilege_hint())]


def _privilege_hint() -> str:
    """What lets a process read the rules. Root has no capability left in some containers, and sudo none to give."""
    if os.geteuid() == 0:
        return "run with CAP_NET_ADMIN in the user namespace of this network, or on the host"
    return "run with sudo"


def _has_bridge() -> bool:
    from socket import if_nameindex

    try:
        return any(name.startswith(BRIDGES) for _, name in if_nameindex())
    except OSError:
        return False


# --- read ----------------------------------------------------------------------------------------------------------


def read() -> NatOutput:
    """Run the tools, if the kernel has anything that they could print; raises OSError."""
    gaps: list[Gap] = []
    nft = b""
    saved: list[tuple[Family, bytes]] = []
    if may_divert():
        nft = _output(("nft", "-j", "list", "ruleset"), gaps)
    if b'"xt"' in nft:  # rules of iptables on top of nf_tables, which nft cannot print
        saved.append(("ipv4", _output(("iptables-nft-save",), gaps)))
        saved.append(("ipv6", _output(("ip6tables-nft-save",), gaps)))
    for family, (name, command) in LEGACY.items():
        if not LEGACY_TABLES.isdisjoint(_legacy_tables(name, gaps)):
            saved.append((family, _output((command,), gaps)))
    return NatOutput(nft, tuple(saved), tuple(gaps))


def may_divert() -> bool:
    """Whether nf_tables has a base chain that could divert packets; raises OSError, PermissionError without
    CAP_NET_ADMIN.
    """
    from portbook.system import netlink

    kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN
    try:
        answers = netlink.dump(netlink.NETFILTER, kind, NFGENMSG.pack(0, 0, 0))
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    return any(is_diverting(body) for _, body in answers)


def is_diverting(body: bytes) -> bool:
    """Whether a message describes a chain of type nat, or one of another type before routing, where a transparent
    proxy takes packets. Pure; raises OSError if the message is truncated.
    """
    from portbook.system import netlink

    values = netlink.attributes(body[NFGENMSG.size :])
    if netlink.text(values.get(NFTA_CHAIN_TYPE)) == "nat":
        return True
    if NFTA_CHAIN_HOOK not in values or body[:1] not in INTERNET:
        return False
    number = netlink.attributes(values[NFTA_CHAIN_HOOK]).get(NFTA_HOOK_HOOKNUM)
    return number == NF_INET_PRE_ROUTING


def _legacy_tables(name: str, gaps: list[Gap]) -> list[bytes]:
    """The tables of the older iptables; only root can read the file, whatever capabilities a process has."""
    try:
        with open(f"/proc/thread-self/net/{name}", "rb") as file:
            return file.read(4096).split()
    except PermissionError:
        why = f"NAT rules of iptables-legacy are not visible to uid {os.geteuid()}"
        gaps.append(Gap("nat", None, why, "run as root" if os.geteuid() else _privilege_hint()))
    except OSError:
        pass  # this kernel does not have them
    return []


def _output(command: Sequence[str], gaps: list[Gap]) -> bytes:
    """What a program of the system prints; nothing and a gap if it fails."""
    from portbook.system import program

    path = program.find(command[0])
    if path is None:
        why = f"{command[0]} is not installed: NAT rules made with it cannot be read"
        gaps.append(Gap("nat", None, why, "install nftables or iptables"))
        return b""
    try:
        return program.run((path, *command[1:]), TIME_LIMIT_S, most_bytes=MOST_BYTES).successful()
    except SourceError as error:
        gaps.append(Gap("nat", None, f"NAT rules could not be read: {error}"))
        return b""


# --- parse ---------------------------------------------------------------------------------------------------------


def parse(output: NatOutput) -> tuple[Ruleset, list[Gap]]:
    """The rules that the tools printed, in one form."""
    from portbook.netconfig.linux import iptables, nftables
    from portbook.netconfig.linux.ruleset import Ruleset

    ruleset = Ruleset([], {})
    gaps: list[Gap] = []
    for family, text in output.saved:
        ruleset.merge(iptables.parse(text, family))
    if output.nft:
        # nft prints the tables of iptables too, without its extensions.
        # Where its own program is missing, that is better than nothing: what nft does not print is unknown.
        printed = b'"xt"' in output.nft and any(text for _, text in output.saved)
        without = nftables.OF_IPTABLES if printed else frozenset[str]()
        try:
            ruleset.merge(nftables.parse(output.nft, without))
        except ValueError as error:
            gaps.append(Gap("nat", None, f"the output of nft could not be parsed: {error}"))
    return ruleset, gaps
