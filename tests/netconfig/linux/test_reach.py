"""What rules do to packets, said and seen: rule sets in a kernel, and what peers reach through them."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys

import pytest

from portbook import why
from tests import netlab
from tests.components import need
from tests.netconfig.linux import rulesets
from tests.netconfig.linux.reach import contradiction, machine, reached, said

CASES = os.path.join(os.path.dirname(__file__), "..", "..", "data", "nat")
PORTS = (22, 80, 443, 5432, 8120, 9999, 15006, 15008, 30080)
TRANSPARENT = (9999,)
PEERS = (
    ("prerouting", "ipv4", netlab.TARGET),
    ("prerouting", "ipv6", netlab.TARGET6),
    ("output", "ipv4", netlab.TARGET),
    ("output", "ipv4", "127.0.0.1"),
    ("output", "ipv6", "::1"),
)


@pytest.fixture(scope="module")
def lab():
    netlab.needed()
    need(shutil.which("nft") is not None, "nft (package nftables)")
    ports = (*PORTS, *rulesets.PORTS, *rulesets.TARGETS)
    with machine(ports, TRANSPARENT) as both:
        both.target.add("10.231.0.1")  # node address of kube.nft
        both.target.run("ip", "rule", "add", "fwmark", "1", "lookup", "100")
        both.target.run("ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "100")
        yield both


@pytest.fixture(autouse=True)
def clean(lab):
    yield
    lab.target.run("nft", "flush", "ruleset")


def check(lab, port, protocol="tcp"):
    """Compare what is said about a port with what each peer reaches; return what the peer on the link reaches."""
    diversions = said(lab, port, protocol)
    seen = {}
    for hook, family, address in PEERS:
        with lab.client if hook == "prerouting" else lab.target:
            seen[hook, address] = reached(address, port, udp=protocol == "udp")
        wrong = contradiction(diversions, hook, family, address, port, seen[hook, address])
        assert wrong is None, wrong
    return diversions, seen["prerouting", netlab.TARGET]


@pytest.mark.parametrize(
    ("name", "port", "server", "diverted"),
    [
        ("return", 15008, 15008, False),
        ("return", 22, 22, False),
        ("return", 80, 15006, True),
        ("return", 15006, 15006, False),
        ("kube", 5432, 5432, False),
        ("kube", 443, 443, False),
        ("tproxy", 8120, 9999, True),
        ("tproxy", 80, 80, False),
        ("tproxy", 9999, 9999, False),
    ],
)
def test_published_rule_sets(lab, name, port, server, diverted):
    lab.target.run("nft", "-f", os.path.join(CASES, f"{name}.nft"))
    diversions, seen = check(lab, port)
    assert seen == server
    assert [one.certain for one in diversions] == [True] * diverted


def test_a_nodeport_of_kube_proxy(lab):
    lab.target.run("nft", "-f", os.path.join(CASES, "kube.nft"))
    (one,) = said(lab, 30080)
    assert (one.certain, one.targets[0].address, one.targets[0].port) == (True, "10.231.0.2", 8080)
    assert {rule.destination for rule in one.rules} == {"10.231.0.1"}
    with lab.client:
        assert reached(netlab.TARGET, 30080) == 30080
        assert reached("10.231.0.1", 30080) is None
    with lab.target:
        assert [f.code for f in why(30080, address=netlab.TARGET).findings if f.code == "nat-rule"] == []
        (found,) = [f for f in why(30080, address="10.231.0.1").findings if f.code == "nat-rule"]
    assert (found.confidence, found.severity) == ("certain", "shadows")


IPTABLES = [
    ("-t nat -A PREROUTING -p tcp --dport 15008 -j RETURN", "-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 15006"),
    ("-t nat -N ONE", "-t nat -A PREROUTING -p tcp -m multiport ! --dports 22,80 -j ONE",
     "-t nat -A ONE -i link0 -p tcp -j REDIRECT --to-ports 9999"),
    ("-t nat -N ONE", "-t nat -A ONE -p tcp -j REDIRECT --to-ports 9999", "-t nat -A PREROUTING -g ONE"),
    ("-t nat -N ONE", "-t nat -A ONE -d 127.0.0.0/8 -j RETURN", "-t nat -A ONE -p tcp -j REDIRECT --to-ports 9999",
     "-t nat -A OUTPUT -o lo -j ONE"),
    ("-t raw -A PREROUTING -p tcp --dport 80 -j CT --notrack", "-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 22"),
    ("-t nat -A PREROUTING -p tcp --dport 22:80 -j DNAT --to-destination 10.77.0.2:15006-15064/22",),
    ("-t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.77.0.2:80",),
    ("-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 22-80",),
    ("-t nat -A PREROUTING -p tcp --dport 80 -m mac --mac-source 02:00:00:00:00:01 -j ACCEPT",
     "-t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 22"),
    ("-t mangle -A PREROUTING -p tcp --dport 80 -j TPROXY --on-port 9999 --tproxy-mark 1",),
]  # fmt: skip


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("rules", IPTABLES, ids=range(len(IPTABLES)))
def test_rules_of_iptables(lab, variant, rules):
    tool = f"iptables-{variant}"
    need(shutil.which(tool) is not None, f"{tool} (package iptables)")
    try:
        for rule in rules:
            lab.target.run(tool, *rule.split())
        for port in (22, 80, 9999, 15006, 15008):
            check(lab, port)
    finally:
        for table in ("nat", "mangle", "raw"):
            lab.target.run(tool, "-t", table, "-F")
            lab.target.run(tool, "-t", table, "-X")


COMPOUND = [
    "meta l4proto { tcp, udp } dnat ip to meta l4proto . th dport map { tcp . 80 : 10.77.0.2 . 9999 }",
    "ip protocol tcp dnat ip to ip daddr . tcp dport map { 10.77.0.2 . 80 : 10.77.0.2 . 22 }",
    "meta l4proto tcp redirect to :tcp dport map { 80 : 22, 22 : 80, 443 : 443 }",
    "ip saddr . tcp dport { 10.77.0.1 . 80, 10.77.0.9 . 22 } redirect to :9999",
    "iif link0 tcp dport 22-443 counter redirect to :5432",
    'tcp dport != { 22, 443-15006 } log prefix "x" redirect to :443',
    "ip protocol tcp ip daddr 10.77.0.0/24 tcp dport 80 dnat to 10.77.0.2:22",
    "ether type ip tcp dport 80 redirect to :22",
    "meta pkttype host tcp dport 80 limit rate 1000/second redirect to :22",
    "tcp dport 22-80 redirect to :5432-9999 fully-random",
    "fib daddr . iif type local tcp dport 80 redirect to :22",
    "ip daddr & 255.255.255.0 == 10.77.0.0 tcp dport 80 redirect to :22",
    "ct original ip daddr 10.77.0.2 tcp dport 80 redirect to :22",
    "tcp dport vmap { 22 : return, 80 : accept } meta l4proto tcp redirect to :443",
    "numgen inc mod 3 < 1 tcp dport 80 redirect to :22",
    "meta l4proto tcp dnat ip prefix to ip daddr map { 10.77.0.0/31 : 10.77.0.2/31, 10.77.0.2/32 : 10.77.0.2/32 }",
]


@pytest.mark.parametrize("rule", COMPOUND, ids=range(len(COMPOUND)))
@pytest.mark.parametrize("family", ["ip", "inet"])
def test_rules_with_several_fields(lab, rule, family):
    head = "type nat hook prerouting priority -100; policy accept;"
    text = f"table {family} x {{\nchain c {{\n{head}\n{rule}\n}}\n}}\n"
    lab.target.run("nft", "-f", "-", text=text)
    for port in (22, 80, 443):
        check(lab, port)


PRIORITIES = [
    ((-110, "tcp dport 80 accept"), (-90, "tcp dport 80 redirect to :22")),
    ((-110, "tcp dport 80 redirect to :443"), (-90, "tcp dport 80 redirect to :22")),
    ((-90, "tcp dport 80 redirect to :443"), (-110, "tcp dport 80 redirect to :22")),
    ((-100, "tcp dport 80 redirect to :443"), (-100, "tcp dport 80 redirect to :22")),
    ((-110, "tcp dport 80 redirect to :80"), (-90, "tcp dport 80 redirect to :22")),
    ((300, "tcp dport 80 redirect to :443"), (-90, "tcp dport 80 return")),
]


@pytest.mark.parametrize("chains", PRIORITIES, ids=range(len(PRIORITIES)))
def test_chains_by_their_priorities(lab, chains):
    text = ""
    for number, (priority, rule) in enumerate(chains):
        head = f"type nat hook prerouting priority {priority}; policy accept;"
        text += f"table inet t{number} {{\nchain c {{\n{head}\n{rule}\n}}\n}}\n"
    lab.target.run("nft", "-f", "-", text=text)
    check(lab, 80)


def test_udp(lab):
    rules = "udp dport 22 redirect to :80", "udp dport 80 return", "meta l4proto udp redirect to :443"
    lines = "\n".join(rules)
    lab.target.run(
        "nft", "-f", "-", text=f"table ip x {{\nchain c {{\ntype nat hook prerouting priority -100;\n{lines}\n}}\n}}\n"
    )
    assert [check(lab, port, "udp")[1] for port in (22, 80, 5432)] == [80, 80, 443]


def load(lab, text: str) -> bool:
    """Load a rule set without the lines that nft refuses."""
    for _ in range(20):
        with lab.target:
            done = subprocess.run(
                ["nft", "-f", "-"], input=text, capture_output=True, text=True, timeout=60, check=False
            )
        if done.returncode == 0:
            return True
        lines = text.split("\n")
        for number in sorted({int(at) for at in re.findall(r"/dev/stdin:(\d+):", done.stderr)}, reverse=True):
            del lines[number - 1]
        text = "\n".join(lines)
    return False


@pytest.mark.parametrize("seed", range(6))
def test_rule_sets_by_chance(lab, seed):
    assert compare(lab, seed)


def compare(lab, seed: int) -> int:
    """Say and see what a rule set does to each of its ports; return how many rule sets nft took."""
    chance = random.Random(seed)
    text = rulesets.tables(chance)
    if not load(lab, text):
        return 0
    for port in rulesets.PORTS[:5]:
        try:
            check(lab, port)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}\n{lab.target.run('nft', 'list', 'ruleset')}") from error
    return 1


def main(first: int, count: int) -> None:
    """``python -m tests.netconfig.linux.test_reach 0 1000``: many more."""
    taken = 0
    with machine((*rulesets.PORTS, *rulesets.TARGETS)) as both:
        for seed in range(first, first + count):
            taken += compare(both, seed)
            both.target.run("nft", "flush", "ruleset")
    print(f"{taken} rule sets, {taken * 5 * len(PEERS)} answers compared")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
