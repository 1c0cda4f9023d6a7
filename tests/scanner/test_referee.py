"""The same answers as nmap, and all that is open on a link that loses packets. In networks of the test's own."""

from __future__ import annotations

import shutil
import sys
from xml.etree import ElementTree

import pytest

from portbook.probe.request import Limits
from portbook.scanner.run import scan
from tests.components import need

netlab = pytest.importorskip("tests.netlab", reason="network namespaces of Linux")

# Takes connections on some ports, answers datagrams on the same ones, until it is killed.
SERVER = """
import selectors, socket, sys
kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
selector = selectors.DefaultSelector()
for port in map(int, sys.argv[2].split(",")):
    one = socket.socket(socket.AF_INET6, kinds[sys.argv[1]])
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.bind(("::", port))
    if sys.argv[1] == "tcp":
        one.listen(256)
    selector.register(one, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if sys.argv[1] == "tcp":
            key.fileobj.accept()[0].close()
        else:
            data, sender = key.fileobj.recvfrom(4096)
            key.fileobj.sendto(b"hello", sender)
"""
DROPPED, RESET, REFUSED, PROHIBITED = range(2000, 2030), range(2030, 2060), range(2060, 2090), range(2090, 2120)
PLAIN = range(2120, 2200)
OPEN = [*range(2121, 2200, 8)]
BEHIND = [2005, 2035, 2065, 2095]  # a listener behind a firewall rule
PORTS = [*DROPPED, *RESET, *REFUSED, *PROHIBITED, *PLAIN]


def rules(protocol):
    def rule(ports, verdict):
        return f"{protocol} dport {ports[0]}-{ports[-1]} {verdict}"

    reset = "reject with tcp reset" if protocol == "tcp" else "reject"
    return [
        rule(DROPPED, "drop"),
        rule(RESET, reset),
        rule(REFUSED, "reject with icmpx type port-unreachable"),
        rule(PROHIBITED, "reject with icmpx type admin-prohibited"),
    ]


@pytest.fixture(scope="module")
def lab():
    """A target 20 ms away with every kind of rule. It refuses as often as asked: no answer is a matter of luck."""
    need(shutil.which("nmap") is not None, "nmap")
    with netlab.pair(rtt_ms=20) as lab:
        lab.target.sysctl("net.ipv4.icmp_ratelimit", 0)
        lab.target.sysctl("net.ipv4.icmp_msgs_per_sec", 100000)
        lab.target.sysctl("net.ipv6.icmp.ratelimit", 0)
        lab.target.nft(*rules("tcp"), *rules("udp"))
        for protocol in ("tcp", "udp"):
            lab.target.start(sys.executable, "-c", SERVER, protocol, ",".join(map(str, [*OPEN, *BEHIND])))
            lab.target.wait_for(OPEN[-1], protocol)
            lab.target.wait_for(BEHIND[-1], protocol)
        yield lab


# What nmap has no word for: it calls all of them filtered.
STATES = {"unreachable": "filtered", "timeout": "filtered"}
# What nmap's connect scan takes for a reset, because connect(2) has one error for both: an ICMP port unreachable, which
# its SYN scan, as this engine, takes for a firewall's word (nmap reference guide, "Port Scanning Techniques").
BY_CONNECTING = dict.fromkeys(REFUSED, "closed")


def ours(lab, address, udp):
    with lab.client:
        answers = scan(address, PORTS, udp=udp, limits=Limits(deadline_s=100))
        return {a.port: STATES.get(a.outcome, a.outcome) for a in answers}


def nmaps(lab, address, technique):
    command = ["nmap", technique, "-Pn", "-n", "-d", "-p", ",".join(map(str, PORTS)), "-oX", "-"]
    text = lab.client.run(*command, *(["-6"] if ":" in address else []), address)
    states = {int(p.get("portid")): p.find("state").get("state") for p in ElementTree.fromstring(text).iter("port")}
    assert set(states) == set(PORTS), "with -d it names every port"
    return states


@pytest.mark.parametrize("address", [netlab.TARGET, netlab.TARGET6])
def test_tcp_has_the_same_answers_as_nmap(lab, address):
    mine = ours(lab, address, udp=False)
    assert mine == nmaps(lab, address, "-sS")
    assert mine | BY_CONNECTING == nmaps(lab, address, "-sT")
    assert {p for p, state in mine.items() if state == "open"} == set(OPEN)
    assert {p for p, state in mine.items() if state == "filtered"} == {*DROPPED, *REFUSED, *PROHIBITED}


@pytest.mark.parametrize("address", [netlab.TARGET, netlab.TARGET6])
def test_udp_has_the_same_answers_as_nmap(lab, address):
    mine = ours(lab, address, udp=True)
    assert mine == nmaps(lab, address, "-sU")
    assert {p for p, state in mine.items() if state == "open"} == set(OPEN)
    assert {p for p, state in mine.items() if state == "open|filtered"} == set(DROPPED)
    assert {p for p, state in mine.items() if state == "filtered"} == set(PROHIBITED)


# --- loss ----------------------------------------------------------------------------------------------------------

THOUSAND = range(3000, 4000)
HUNDRED = [*range(3003, 4000, 10)]


@pytest.mark.parametrize(("others", "runs"), [("closed", 20), ("dropped", 5)])  # a run takes 1 and 7 seconds
def test_on_a_link_that_loses_a_twentieth_all_open_ports_are_found_every_time(others, runs):
    """Each packet in each direction: a tenth of all questions stays without an answer."""
    with netlab.pair(rtt_ms=2, loss=0.05, seed=7) as lab:
        if others == "dropped":
            opened = ", ".join(map(str, HUNDRED))
            lab.target.nft(f"tcp dport {{ {opened} }} accept", "meta l4proto tcp drop")
        lab.target.start(sys.executable, "-c", SERVER, "tcp", ",".join(map(str, HUNDRED)))
        lab.target.wait_for(HUNDRED[-1])
        found = []
        with lab.client:
            for _ in range(runs):
                running = scan(netlab.TARGET, THOUSAND, limits=Limits(deadline_s=120), only_open=True)
                found.append([a.port for a in running])
                assert running.report.partial is None
                assert running.report.repeated > 0, "packets were lost"
    assert [sorted(set(HUNDRED) - set(ports)) for ports in found] == [[]] * runs
    assert all(len(ports) == len(HUNDRED) for ports in found)


# --- zones ---------------------------------------------------------------------------------------------------------


def test_link_local_addresses_need_their_interface_and_are_found_through_it():
    with netlab.pair() as lab:
        lab.target.start(sys.executable, "-c", SERVER, "tcp", "2000")
        lab.target.wait_for(2000)
        theirs, own = (link_local(space) for space in (lab.target, lab.client))
        with lab.client:
            remote = list(scan(f"{theirs}%link0", [2000, 2001]))
            running = scan(f"{own}%link0", [2000])
            mine = list(running)
    assert {(a.address, a.port, a.outcome) for a in remote} == {(theirs, 2000, "open"), (theirs, 2001, "closed")}
    assert [(a.address, a.outcome) for a in mine] == [(own, "closed")]
    check = running.report.self_check
    assert check is not None
    assert (check.canaries, check.canaries_missed) == (4, 0)


def link_local(space):
    """The address that the kernel gave to a device, from its Ethernet address (RFC 4862 section 5.3)."""
    (line,) = [
        line for line in space.run("ip", "-6", "-o", "address", "show", "dev", "link0").splitlines() if "fe80" in line
    ]
    return line.split()[3].partition("/")[0]
