"""What nft and iptables print, as what happens to packets to one port: by the tools, and with text nobody would print.

tests/netconfig/linux/test_reach.py compares that with what peers reach.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.netconfig.facts import Diversion, LocalAddress
from portbook.netconfig.linux import iptables, nat, nftables
from portbook.netconfig.linux.nat import NatOutput, parse
from portbook.netconfig.linux.packets import Machine, survey
from portbook.system import netlink, program
from tests import netlab
from tests.components import need


@pytest.fixture
def network():
    netlab.needed()
    need(shutil.which("nft") is not None, "nft (package nftables)")
    space = netlab.Namespace()
    try:
        space.run("ip", "link", "add", "link0", "type", "veth", "peer", "name", "link1")
        for address in ("10.77.0.1", "203.0.113.9", "fd77::1"):
            space.add(address)
        with space:
            yield space
    finally:
        space.close()


EVERYWHERE = ("0.0.0.0", "::")


def destinations(diversions: tuple[Diversion, ...]) -> set[tuple[str, str | None, int | None]]:
    """Where packets go, and from where they come."""
    return {(rule.hook, rule.to_address, rule.to_port) for one in diversions for rule in one.rules}


RULESET = """
table ip nat {
  set web { type inet_service; flags interval; elements = { 7000, 7100-7199 }; }
  map hosts { type inet_service : ipv4_addr; elements = { 6000 : 10.0.0.6, 6001 : 10.0.0.7 }; }
  chain one { tcp dport 8080 dnat to 10.0.0.2:80; }
  chain by_list { tcp dport { 8101, 8102-8103 } dnat to 10.0.0.3; }
  chain vmapped { meta l4proto tcp dnat to 10.0.0.63:63; }
  chain prerouting {
    type nat hook prerouting priority -100;
    fib daddr type local jump one
    jump by_list
    tcp dport 8200 redirect to :82
    meta l4proto { tcp, udp } th dport 8300 dnat to 10.0.0.4:83
    ip saddr 192.0.2.0/24 tcp dport 8400 dnat to 10.0.0.5:84
    ip daddr 203.0.113.9 tcp dport 8500 dnat to 10.0.0.8:85
    tcp dport @web dnat to 10.0.0.9:70
    dnat to tcp dport map @hosts
    dnat to tcp dport map { 6100 : 10.0.0.61, 6101 : 10.0.0.62 }
    tcp dport vmap { 6200 : jump vmapped, 6201 : goto vmapped }
    tcp dport 9995-9999 tcp dport != 9996-9999 dnat to 10.0.0.22
    udp dport 53 redirect to :5353
  }
  chain output {
    type nat hook output priority -100;
    tcp dport 8080 dnat to 10.0.0.2:80
  }
  chain postrouting {
    type nat hook postrouting priority 100;
    tcp dport 9999 masquerade
  }
  chain unused { tcp dport 9998 dnat to 10.0.0.1; }
}
table ip other {
  chain one { tcp dport 9997 dnat to 10.0.0.1; }
}
table inet filter {
  chain input {
    type filter hook input priority 0;
    tcp dport 9996 drop
  }
}
"""


@pytest.mark.parametrize(
    ("port", "protocol", "expected"),
    [
        (8080, "tcp", {("prerouting", "10.0.0.2", 80), ("output", "10.0.0.2", 80)}),
        (8080, "udp", set()),
        (8101, "tcp", {("prerouting", "10.0.0.3", None)}),
        (8103, "tcp", {("prerouting", "10.0.0.3", None)}),
        (8200, "tcp", {("prerouting", None, 82)}),
        (8300, "udp", {("prerouting", "10.0.0.4", 83)}),
        (8400, "tcp", {("prerouting", "10.0.0.5", 84)}),
        (8500, "tcp", {("prerouting", "10.0.0.8", 85)}),
        (22, "tcp", set()),
        (9995, "tcp", {("prerouting", "10.0.0.22", None)}),
        (7150, "tcp", {("prerouting", "10.0.0.9", 70)}),
        (7200, "tcp", set()),
        (6001, "tcp", {("prerouting", "10.0.0.7", None)}),
        (6100, "tcp", {("prerouting", "10.0.0.61", None)}),
        (6200, "tcp", {("prerouting", "10.0.0.63", 63)}),
        (6201, "tcp", {("prerouting", "10.0.0.63", 63)}),
        (53, "udp", {("prerouting", None, 5353)}),
        (53, "tcp", set()),
        (9999, "tcp", set()),
        (9998, "tcp", set()),
        (9997, "tcp", set()),
        (9996, "tcp", set()),
    ],
)
def test_nft_rules_that_redirect_a_port(network, port, protocol, expected):
    network.run("nft", "-f", "-", text=RULESET)
    diversions, gaps = nat.take(port, protocol, EVERYWHERE)
    assert gaps == []
    assert destinations(diversions) == expected


def test_conditions_and_destinations_are_kept(network):
    network.run("nft", "-f", "-", text=RULESET)
    (conditional,) = nat.take(8400, "tcp", EVERYWHERE)[0]
    assert not conditional.certain
    assert "192.0.2.0" in conditional.rules[0].conditions[0]
    (other,) = nat.take(8500, "tcp", EVERYWHERE)[0]
    assert (other.certain, other.rules[0].destination) == (True, "203.0.113.9")
    assert nat.take(8500, "tcp", ["10.77.0.1"])[0] == ()


def test_where_nothing_does_nat_no_program_is_run(network, monkeypatch):
    network.nft("tcp dport 80 drop")
    monkeypatch.setattr(program, "run", lambda command, *_: pytest.fail(f"{command} was run"))
    assert not nat.may_divert()
    assert nat.take(80, "tcp", EVERYWHERE) == ((), [])


def test_a_tool_that_is_missing_is_a_gap(network, monkeypatch):
    network.run("nft", "-f", "-", text=RULESET)
    monkeypatch.setattr(program, "DIRECTORIES", ())
    rules, (gap,) = nat.take(8080, "tcp", EVERYWHERE)
    assert (rules, gap.what) == ((), "nat")
    assert "nft is not installed" in gap.why


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exec sleep 60", "did not finish within"),
        ("exec yes", "printed more than"),
        ("echo {; exit 3", "exit code 3"),
    ],
)
def test_a_tool_that_does_not_answer_well_is_a_gap(network, monkeypatch, tmp_path, script, why):
    network.run("nft", "-f", "-", text=RULESET)
    tool = tmp_path / "nft"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(program, "DIRECTORIES", (str(tmp_path),))
    monkeypatch.setattr(nat, "TIME_LIMIT_S", 0.3 if "sleep" in script else 30.0)
    monkeypatch.setattr(nat, "MOST_BYTES", 1 << 20)
    rules, (gap,) = nat.take(8080, "tcp", EVERYWHERE)
    assert rules == ()
    assert why in gap.why


def test_without_the_capability_the_kernel_refuses(network):
    def other():
        os.setresuid(65534, 65534, 65534)
        try:
            nat.may_divert()
        except PermissionError:
            return nat.take(8080, "tcp", EVERYWHERE)

    network.run("ip", "link", "add", "docker0", "type", "bridge")
    rules, (gap,) = netlab.call(other)
    assert (rules, gap.hint) == ((), "run with sudo")


def test_rules_of_iptables_without_its_program_are_not_certain(network, monkeypatch, tmp_path):
    """nft prints that there is a target, and not which address it leads to."""
    need(shutil.which("iptables-nft") is not None, "iptables-nft (package iptables)")
    network.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-j", "DNAT",
                "--to-destination", "10.0.0.1:80")  # fmt: skip
    (tmp_path / "nft").symlink_to(shutil.which("nft"))
    tmp_path.chmod(0o755)
    monkeypatch.setattr(program, "DIRECTORIES", (str(tmp_path),))
    diversions, gaps = nat.take(80, "tcp", EVERYWHERE)
    assert not any(one.certain for one in diversions)
    assert any("not understood: DNAT of iptables" in gap.why for gap in gaps)
    assert any("is not installed" in gap.why for gap in gaps)


# --- iptables: pure ------------------------------------------------------------------------------------------------

# Docker's userland-proxy=false, CNI portmap, and a Kubernetes NodePort, as their documentation and issues show them.
SAVED = b"""# Generated by iptables-save v1.8.9
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 172.17.0.3:81
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"x\\" id: \\"1\\"" -m multiport --dports 9090,9100:9110 \
-j CNI-DN-1
-A CNI-DN-1 -p tcp -m tcp --dport 9090 -j DNAT --to-destination 10.85.0.3:90
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-1
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-SVC-1
-A KUBE-SVC-1 -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:8443
-A PREROUTING -p tcp -m tcp --dport 8088 -j REDIRECT --to-ports 80
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
"""
SAVED6 = b"-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00::2]:80\n"


MINE = (LocalAddress("127.0.0.1", "lo"), LocalAddress("10.0.0.9", "eth0"), LocalAddress("fd00::9", "eth0"))


def diversions_of(
    text: bytes, port: int, protocol: str = "tcp", family: str = "ipv4", requested: tuple[str, ...] = EVERYWHERE,
    mine: tuple[LocalAddress, ...] = MINE, interfaces: tuple[str, ...] = ("eth0",),
) -> tuple[Diversion, ...]:  # fmt: skip
    ruleset, gaps = parse(NatOutput(b"", ((family, text),)))  # type: ignore[arg-type]
    assert gaps == []
    return survey(ruleset, port, protocol, Machine(requested, mine, interfaces)).diversions  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (8080, {("prerouting", "172.17.0.2", 80), ("output", "172.17.0.2", 80)}),
        (8081, set()),  # to 127.0.0.1, but not what this machine sends there: OUTPUT leaves that out
        (9090, {("prerouting", "10.85.0.3", 90)}),
        (9101, set()),
        (443, set()),
        (30080, {("prerouting", "10.244.0.5", 8443)}),
        (8088, {("prerouting", None, 80)}),
        (80, set()),
    ],
)
def test_iptables_rules_that_redirect_a_port(port, expected):
    assert destinations(diversions_of(SAVED, port)) == expected


def test_a_part_of_the_packets_is_not_certain():
    (one,) = diversions_of(SAVED, 30080)
    assert not one.certain
    assert "--mode random" in one.rules[0].conditions[0]


def test_a_service_address_that_this_machine_has():
    (one,) = diversions_of(SAVED, 443, mine=(*MINE, LocalAddress("10.96.0.1", "kube-ipvs0")))
    assert one.rules[0].destination == "10.96.0.1"


def test_addresses_of_ipv6_stand_in_brackets():
    (one,) = diversions_of(SAVED6, 8080, family="ipv6")
    assert (one.rules[0].to_address, one.rules[0].to_port, one.rules[0].family) == ("fd00::2", 80, "ipv6")


# --- order, verdicts and what is not known: every line with a port to itself ----------------------------------------

# What iptables-save prints in an Istio sidecar (istio.io, "Debugging Envoy and Istiod"), shortened.
ISTIO = b"""*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 22 -j RETURN
-A ISTIO_INBOUND -p tcp -m multiport --dports 15090,15021 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
"""


@pytest.mark.parametrize(
    ("port", "certain", "likely"),
    [
        (8080, {("prerouting", 15006)}, {("output", 15001)}),
        (15008, set(), {("output", 15001)}),
        (22, set(), {("output", 15001)}),
        (15021, set(), {("output", 15001)}),
        (15006, set(), {("output", 15001)}),  # redirected to itself
    ],
)
def test_what_returns_before_a_rule_for_everything(port, certain, likely):
    found = diversions_of(ISTIO, port)
    assert {(rule.hook, rule.to_port) for one in found if one.certain for rule in one.rules} == certain
    assert {(rule.hook, rule.to_port) for one in found if not one.certain for rule in one.rules} == likely
    assert diversions_of(ISTIO, port, "udp") == ()


RULES = [
    ("-p tcp --dport 80 -j REDIRECT --to-ports 81", {81}, True),
    ("-p tcp ! --dport 80 -j REDIRECT --to-ports 81", None, None),
    ("-p tcp ! --dport 79 -j REDIRECT --to-ports 81", {81}, True),
    ("-p tcp -m multiport ! --dports 79,81:90 -j REDIRECT --to-ports 81", {81}, True),
    ("-p tcp -m multiport --ports 79:81 -j REDIRECT --to-ports 81", {81}, True),
    ("-p tcp -m multiport --ports 81:82 -j REDIRECT --to-ports 81", {81}, False),  # it may be the source
    ("-p tcp --dport 80 -j REDIRECT --to-ports 80", None, None),
    ("-p tcp --dport 80 -j REDIRECT", None, None),
    ("-p tcp --dport 80 -j REDIRECT --to-ports 70-90", None, None),  # it stays, as it is in the range
    ("-p tcp --dport 80 -j REDIRECT --to-ports 70-90 --random", {70}, True),
    ("-p tcp --dport 80:89 -j DNAT --to-destination 10.1.1.1:180-189/80", {180}, True),
    ("-p tcp --dport 75:84 -j DNAT --to-destination 10.1.1.1:180-189/75", {185}, True),
    ("-p tcp --dport 80 -j DNAT --to-destination 10.0.0.9:80", None, None),  # to this machine
    ("-p tcp --dport 80 -j DNAT --to-destination 10.0.0.9:81", {81}, True),
    ("-p tcp --dport 80 -j DNAT --to-destination 10.0.0.8", {None}, True),
    ("-p 6 --dport 80 -j REDIRECT --to-ports 81", {81}, True),
    ("! -p udp -j REDIRECT --to-ports 81", {81}, True),
    ("-p udp --dport 80 -j REDIRECT --to-ports 81", None, None),
    ("-i eth0 -p tcp -j REDIRECT --to-ports 81", {81}, True),
    ("-i eth+ -p tcp -j REDIRECT --to-ports 81", {81}, True),
    ("-i wlan0 -p tcp -j REDIRECT --to-ports 81", None, None),
    ("! -i docker0 -p tcp -j REDIRECT --to-ports 81", {81}, True),
    ("-s 192.0.2.0/24 -p tcp -j REDIRECT --to-ports 81", {81}, False),
    ("-m set --match-set blocked src -p tcp -j REDIRECT --to-ports 81", {81}, False),
    ("-m recent --rcheck --seconds 60 --name x --rsource -p tcp -j REDIRECT --to-ports 81", {81}, False),
    ("-m mark ! --mark 0x1/0x1 -p tcp -j REDIRECT --to-ports 81", {81}, False),
    ("-m something --new 5 -p tcp -j REDIRECT --to-ports 81", {81}, False),
    ('-m comment --comment "-j ACCEPT" -p tcp -j REDIRECT --to-ports 81', {81}, True),
    ("-m comment --comment -j -p tcp -j REDIRECT --to-ports 81", {81}, True),
    ("-m conntrack --ctstate NEW,RELATED -p tcp -j REDIRECT --to-ports 81", {81}, True),
    ("-m conntrack ! --ctstate NEW -p tcp -j REDIRECT --to-ports 81", None, None),
    ("-p tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports 81", {81}, True),
    ("-m addrtype --dst-type LOCAL -p tcp -j REDIRECT --to-ports 81", {81}, True),
    ("-m addrtype ! --dst-type LOCAL -p tcp -j REDIRECT --to-ports 81", None, None),
    ("-m iprange --dst-range 10.0.0.1-10.0.0.9 -p tcp -j REDIRECT --to-ports 81", {81}, True),
    ("-m iprange --dst-range 10.0.0.1-10.0.0.8 -p tcp -j REDIRECT --to-ports 81", None, None),
    ("-d 10.0.0.0/29 -p tcp -j REDIRECT --to-ports 81", None, None),
    ("-d 10.0.0.0/28 -j NETMAP --to 10.5.0.0/28", {None}, True),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "ports", "certain"), RULES)
def test_one_rule_of_iptables(rule, ports, certain):
    found = diversions_of(f"*nat\n:PREROUTING ACCEPT\n-A PREROUTING {rule}\n".encode(), 80)
    assert {target.port for one in found for target in one.targets} == (ports or set())
    assert {one.certain for one in found} == (set() if certain is None else {certain})


BEFORE = [
    ("-j RETURN", None),
    ("-j ACCEPT", None),
    ("-j DROP", None),
    ("-p udp -j ACCEPT", True),
    ("-s 192.0.2.1/32 -j ACCEPT", False),
    ("-i wlan0 -j RETURN", True),
    ("-i eth0 -j RETURN", None),
    ("-j LOG", True),
    ("-j MARK --set-xmark 0x1/0x1", True),
    ("-j OTHER", True),
    ("-g OTHER", None),
    ("-j SURPRISE", False),
]


@pytest.mark.parametrize(("before", "certain"), BEFORE)
def test_what_stands_before_a_redirection(before, certain):
    text = f"*nat\n:PREROUTING ACCEPT\n:OTHER -\n-A PREROUTING {before}\n-A OTHER -p udp -j DROP\n"
    found = diversions_of(f"{text}-A PREROUTING -p tcp -j REDIRECT --to-ports 81\n".encode(), 80)
    assert {one.certain for one in found} == (set() if certain is None else {certain})


def test_what_is_not_understood_is_a_gap():
    statement = {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [{"teleport": {"to": 5}}]}}
    ruleset = nftables.parse(json.dumps({"nftables": [{"chain": CHAIN}, statement]}).encode())
    rules = nat.Rules(ruleset, Machine(EVERYWHERE, MINE, ("eth0",)))
    diversions, (gap,) = rules.diversions(80, "tcp")
    assert diversions == ()
    assert "teleport" in gap.why


# --- which addresses are in question -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "requested", "hooks"),
    [
        ("", ("0.0.0.0",), {"prerouting", "output"}),
        ("", ("::",), set()),
        ("", ("10.0.0.9",), {"prerouting", "output"}),
        ("", ("127.0.0.1",), {"output"}),  # nothing comes there from outside
        ("-d 10.0.0.9/32", ("0.0.0.0",), {"prerouting", "output"}),
        ("-d 10.96.0.0/12", ("0.0.0.0",), set()),
        ("-d 127.0.0.0/8", ("0.0.0.0",), {"output"}),
        ("-o lo", ("0.0.0.0",), {"output"}),
    ],
)
def test_rules_for_other_addresses_do_not_concern(rule, requested, hooks):
    action = "-p tcp -j REDIRECT --to-ports 81"
    text = f"*nat\n:PREROUTING ACCEPT\n-A PREROUTING {rule} {action}\n-A OUTPUT {rule} {action}\n"
    found = diversions_of(text.encode(), 80, requested=requested)
    assert {r.hook for one in found for r in one.rules} == hooks


def test_a_redirect_changes_the_address_too():
    """A socket on one address does not get what is redirected to the same port of another one."""
    text = b"*nat\n-A PREROUTING -p tcp -j REDIRECT\n-A OUTPUT -p tcp -j REDIRECT\n"
    mine = (*MINE, LocalAddress("10.0.0.10", "eth0"))
    assert diversions_of(text, 80, mine=mine) == ()
    assert {r.hook for one in diversions_of(text, 80, requested=("10.0.0.10",), mine=mine) for r in one.rules} == {
        "prerouting",
        "output",
    }
    assert {r.hook for one in diversions_of(text, 80, requested=("10.0.0.9",), mine=mine) for r in one.rules} == {
        "output"
    }


# --- what nobody would print ---------------------------------------------------------------------------------------


def test_chains_that_jump_in_circles_come_to_an_end():
    """The kernel refuses them; a program that prints rules may not."""
    text = (
        b"*nat\n-A PREROUTING -j A\n-A A -j A\n-A A -j A\n-A A -j A\n-A A -p tcp --dport 80 -j REDIRECT --to-ports 81\n"
    )
    ruleset, _ = parse(NatOutput(b"", (("ipv4", text),)))
    answer = survey(ruleset, 80, "tcp", Machine(EVERYWHERE, MINE, ("eth0",)))
    assert not answer.complete
    assert not any(one.certain for one in answer.diversions)


def test_rules_that_were_not_followed_are_a_gap(network, monkeypatch):
    network.run("nft", "-f", "-", text=RULESET)
    monkeypatch.setattr("portbook.netconfig.linux.packets.MOST_STEPS", 3)
    diversions, (gap,) = nat.take(8080, "tcp", EVERYWHERE)
    assert gap.why == "NAT rules after the first 3 steps were not followed"
    assert not any(one.certain for one in diversions)


def test_thousands_of_services_are_followed_within_the_limit():
    """Kubernetes has a chain for each service and each of its servers."""
    lines = ["*nat", ":PREROUTING ACCEPT", "-A PREROUTING -j SERVICES"]
    for number in range(5000):
        lines += [f"-A SERVICES -d 10.96.{number >> 8}.{number & 255}/32 -p tcp --dport {number + 1} -j S{number}"]
        lines += [f"-A S{number} -j E{number}", f"-A E{number} -p tcp -j DNAT --to-destination 10.1.0.1:80"]
    mine = (*MINE, LocalAddress("10.96.1.1", "kube"))
    (one,) = diversions_of("\n".join(lines).encode(), 258, mine=mine)
    assert (one.certain, one.rules[0].chain) == (True, "E257")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["nftables", "chain", "rule", "expr", "match", "left", "right", "payload", "field", "dport",
                         "dnat", "addr", "port", "map", "key", "data", "set", "elem", "vmap", "jump", "target",
                         "family", "table", "name", "type", "hook", "range", "prefix", "redirect", "concat", "op",
                         "tproxy", "mangle", "xt", "goto", "accept", "return", "numgen", "mod", "elem", "val"]),
        inner, max_size=4),
    max_leaves=30,
)  # fmt: skip
RULE = st.fixed_dictionaries(
    {"family": st.just("ip"), "table": st.just("t"), "chain": st.just("c"), "expr": st.lists(JSON, max_size=4)}
)
CHAIN = {"family": "ip", "table": "t", "name": "c", "type": "nat", "hook": "prerouting"}


@given(st.lists(st.fixed_dictionaries({"rule": RULE | JSON}), max_size=4), JSON)
def test_any_json_is_a_ruleset_or_none(rules, more):
    document = {"nftables": [{"chain": CHAIN}, *rules, more]}
    ruleset = nftables.parse(json.dumps(document).encode())
    for one in survey(ruleset, 80, "tcp", Machine(EVERYWHERE, MINE, ("eth0",))).diversions:
        assert all(isinstance(target.address, str | None) for target in one.targets)
        assert all(target.port is None or 0 <= target.port <= 65535 for target in one.targets)
    assert ruleset.port_limits() == sorted(set(ruleset.port_limits()))


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_ruleset_is_a_gap(text):
    ruleset, gaps = parse(NatOutput(text))
    assert not ruleset.bases or not gaps


WORDS = st.sampled_from(
    ["-A", "PREROUTING", "DOCKER", "-p", "tcp", "--dport", "80", "80:90", "1,2:3", "-j", "DNAT", "--to-destination",
     "10.0.0.1:80", "[::1]:1", ":", "!", "-d", "-m", "REDIRECT", "--to-ports", '"', "\\", "-g", "COMMIT", "9" * 9]
)  # fmt: skip


@given(st.lists(WORDS | st.text(max_size=6), max_size=30))
def test_any_text_of_iptables_is_read_or_passed_over(words):
    text = "-A PREROUTING " + " ".join(words)
    ruleset = iptables.parse(text.encode("utf-8", "surrogatepass"), "ipv4")
    for one in survey(ruleset, 80, "tcp", Machine(EVERYWHERE, MINE, ("eth0",))).diversions:
        assert all(target.port is None or 0 <= target.port <= 65535 for target in one.targets)


@given(st.binary(max_size=200))
def test_any_bytes_of_netlink_are_messages_or_none(data):
    with contextlib.suppress(netlink.GarbledAnswer):
        for _, body in netlink.messages(data):
            nat.is_diverting(body)


def test_the_programs_are_not_taken_from_path(network, monkeypatch, tmp_path):
    """As root, what stands first in somebody's PATH would be run."""
    network.run("nft", "-f", "-", text=RULESET)
    planted = tmp_path / "nft"
    planted.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    planted.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert nat.take(8080, "tcp", EVERYWHERE)[0]
    assert os.listdir(tmp_path) == ["nft"]
