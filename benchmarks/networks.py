"""The networks that are scanned, with what each port is to answer: all of them made here, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from answers import States
from tests import netlab

PEERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers.py")
LOOPBACK = "127.0.0.1"
RTT_MS = 20


class Load(NamedTuple):
    """Where scanners run, and what is to be answered."""

    space: netlab.Namespace
    truth: States
    address: str


def listed(ports: Iterable[int]) -> str:
    return ",".join(map(str, ports))


def serve(space: netlab.Namespace, protocol: str, ports: Sequence[int]) -> None:
    space.start(sys.executable, PEERS, "serve", protocol, listed(ports))
    for port in ports:
        space.wait_for(port, protocol)


@contextlib.contextmanager
def loopback(opened: Sequence[int]) -> Iterator[Load]:
    """Nothing but loopback, and these ports."""
    netlab.needed()
    with contextlib.closing(netlab.Namespace()) as space:
        if opened:
            serve(space, "tcp", opened)
        yield Load(space, {(LOOPBACK, port): "open" for port in opened}, LOOPBACK)


FIREWALL = range(3000, 4000)


@contextlib.contextmanager
def firewall() -> Iterator[Load]:
    """1000 ports, 20 ms away: 950 are dropped, 25 open and 25 closed."""
    opened = [*range(3005, 4000, 40)]
    closed = [port + 1 for port in opened]
    with netlab.pair(rtt_ms=RTT_MS) as lab:
        lab.target.nft(f"tcp dport {{ {listed([*opened, *closed])} }} accept", "meta l4proto tcp drop")
        serve(lab.target, "tcp", opened)
        states = dict.fromkeys(FIREWALL, "filtered") | dict.fromkeys(opened, "open") | dict.fromkeys(closed, "closed")
        yield Load(lab.client, {(netlab.TARGET, port): state for port, state in states.items()}, netlab.TARGET)


@contextlib.contextmanager
def lossy() -> Iterator[Load]:
    """1000 ports, 20 ms away, every tenth open, the others closed; each packet is lost with a probability of 5 %."""
    opened = [*range(3003, 4000, 10)]
    states = dict.fromkeys(FIREWALL, "closed") | dict.fromkeys(opened, "open")
    with netlab.pair(rtt_ms=RTT_MS, loss=0.05) as lab:
        serve(lab.target, "tcp", opened)
        yield Load(lab.client, {(netlab.TARGET, port): state for port, state in states.items()}, netlab.TARGET)


# --- every kind of rule --------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """A range of ports, what nftables does with them, and the answer that those without a listener have to give."""

    ports: range
    tcp: str  # "": no rule
    udp: str
    tcp_state: str
    udp_state: str
    opened: Sequence[int] = ()  # a server listens here, and the rule does not hide it


RESET, REFUSE = "reject with tcp reset", "reject with icmpx type port-unreachable"
PROHIBIT, LIMIT = "reject with icmpx type admin-prohibited", "limit rate over 100/second burst 20 packets drop"
RULES = {
    "no rule": Rule(range(2000, 2030), "", "", "closed", "closed", range(2001, 2030, 6)),
    "drop": Rule(range(2030, 2060), "drop", "drop", "filtered", "open|filtered"),
    "reject with tcp reset": Rule(range(2060, 2090), RESET, REFUSE, "closed", "closed"),
    "reject with port-unreachable": Rule(range(2090, 2120), REFUSE, REFUSE, "filtered", "closed"),
    "reject with admin-prohibited": Rule(range(2120, 2150), PROHIBIT, PROHIBIT, "filtered", "filtered"),
    "over 100 a second: drop": Rule(range(2150, 2250), LIMIT, LIMIT, "closed", "closed", range(2155, 2250, 10)),
}


def truth_of(rules: dict[str, Rule], protocol: str, address: str) -> States:
    states: States = {}
    for rule in rules.values():
        state = rule.tcp_state if protocol == "tcp" else rule.udp_state
        states |= {(address, port): "open" if port in rule.opened else state for port in rule.ports}
    return states


@contextlib.contextmanager
def ruled(rules: dict[str, Rule], protocol: str, rtt_ms: float = RTT_MS, limited: bool = False) -> Iterator[Load]:
    """A target 20 ms away with rules; it refuses every probe, or with ``limited`` as many as Linux does."""
    with netlab.pair(rtt_ms=rtt_ms) as lab:
        if not limited:
            lab.target.sysctl("net.ipv4.icmp_ratelimit", 0)
            lab.target.sysctl("net.ipv4.icmp_msgs_per_sec", 100_000)
            lab.target.sysctl("net.ipv4.icmp_msgs_burst", 100_000)  # else 50 in 20 ms
        verdicts = [(rule.ports, rule.tcp if protocol == "tcp" else rule.udp) for rule in rules.values()]
        lab.target.nft(*(f"{protocol} dport {p[0]}-{p[-1]} {verdict}" for p, verdict in verdicts if verdict))
        serve(lab.target, protocol, [port for rule in rules.values() for port in rule.opened])
        yield Load(lab.client, truth_of(rules, protocol, netlab.TARGET), netlab.TARGET)


# A hundred UDP ports; what is dropped is dropped, and the rest refuses, as on a host with a few services.
MIXED = {
    "no rule": Rule(range(2000, 2070), "", "", "", "closed", range(2003, 2070, 7)),
    "drop": Rule(range(2070, 2085), "", "drop", "", "open|filtered"),
    "prohibited": Rule(range(2085, 2100), "", PROHIBIT, "", "filtered"),
}

# --- a network of dead hosts ---------------------------------------------------------------------------------------

NETWORK = "10.79.0.0/24"
LIVE = tuple(f"10.79.0.{host}" for host in (7, 40, 80, 130, 199, 254))
HOST_PORTS = [80, *range(1000, 1099)]


@contextlib.contextmanager
def many_hosts(drop: str = f"ip daddr != {{ {', '.join(LIVE)} }}", rtt_ms: float | None = RTT_MS) -> Iterator[Load]:
    """256 addresses; what is sent to all but six is dropped. There port 80 is open, all else closed."""
    with netlab.pair(rtt_ms=rtt_ms) as lab:
        lab.client.run("ip", "route", "add", NETWORK, "via", netlab.TARGET)
        lab.target.run("ip", "route", "add", "local", NETWORK, "dev", "lo")
        lab.target.nft(f"ip daddr {NETWORK} {drop} drop")
        serve(lab.target, "tcp", [80])
        truth = {(host, port): "open" if port == 80 else "closed" for host in LIVE for port in HOST_PORTS}
        yield Load(lab.client, truth, NETWORK)
