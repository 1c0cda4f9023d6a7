"""What nft and iptables print, as rules about one port: by the tools, and with text nobody would print."""

from __future__ import annotations

import contextlib
import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.netconfig.facts import LocalAddress, NatRule
from portbook.netconfig.linux import iptables, nat, nftables
from portbook.netconfig.linux.nat import NatOutput, parse
from portbook.netconfig.linux.steps import Step, follow_packet, hook_name, select_rules
from portbook.system import netlink, program
from tests import netlab
from tests.components import need


@pytest.fixture
def network():
    netlab.needed()
    need(shutil.which("nft") is not None, "nft (package nftables)")
    space = netlab.Namespace()
    try:
        with space:
            yield space
    finally:
        space.close()


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
    tcp dport != 22 ip daddr 203.0.113.10 dnat to 10.0.0.22
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
    rules, gaps = nat.take(port, protocol, may_read=True)
    assert gaps == []
    found = {(r.hook, r.to_address, r.to_port) for r in rules if r.to_address != "10.0.0.22"}
    assert found == expected


def test_conditions_and_destinations_are_kept(network):
    network.run("nft", "-f", "-", text=RULESET)
    (conditional,) = [r for r in nat.take(8400, "tcp", may_read=True)[0] if r.to_port == 84]
    assert "192.0.2.0" in conditional.conditions[0]
    (other,) = [r for r in nat.take(8500, "tcp", may_read=True)[0] if r.to_port == 85]
    assert other.destination == "203.0.113.9"


def test_where_nothing_does_nat_no_program_is_run(network, monkeypatch):
    network.nft("tcp dport 80 drop")
    monkeypatch.setattr(program, "run", lambda command, *_: pytest.fail(f"{command} was run"))
    assert not nat.has_nat_chains()
    assert nat.take(80, "tcp", may_read=True) == ((), [])


def test_a_tool_that_is_missing_is_a_gap(network, monkeypatch):
    network.run("nft", "-f", "-", text=RULESET)
    monkeypatch.setattr(program, "DIRECTORIES", ())
    rules, (gap,) = nat.take(8080, "tcp", may_read=True)
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
    rules, (gap,) = nat.take(8080, "tcp", may_read=True)
    assert rules == ()
    assert why in gap.why


def test_without_the_capability_the_kernel_refuses(network):
    def other():
        os.setresuid(65534, 65534, 65534)
        try:
            nat.has_nat_chains()
        except PermissionError:
            return nat.take(8080, "tcp", may_read=True)

    network.run("ip", "link", "add", "docker0", "type", "bridge")
    rules, (gap,) = netlab.call(other)
    assert (rules, gap.hint) == ((), "run with sudo")


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


def rules_of(text: bytes, port: int, protocol: str = "tcp", family: str = "ipv4") -> tuple[NatRule, ...]:
    return parse(NatOutput(b"", ((family, text),)), port, protocol)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (8080, {("prerouting", "172.17.0.2", 80, None), ("output", "172.17.0.2", 80, None)}),
        (8081, {("prerouting", "172.17.0.3", 81, "127.0.0.1/32"), ("output", "172.17.0.3", 81, "127.0.0.1/32")}),
        (9090, {("prerouting", "10.85.0.3", 90, None)}),
        (9101, set()),
        (443, {("prerouting", "10.244.0.5", 8443, "10.96.0.1/32")}),
        (30080, {("prerouting", "10.244.0.5", 8443, None)}),
        (8088, {("prerouting", None, 80, None)}),
        (80, set()),
    ],
)
def test_iptables_rules_that_redirect_a_port(port, expected):
    found = {(r.hook, r.to_address, r.to_port, r.destination) for r in rules_of(SAVED, port)}
    assert found == expected


def test_addresses_of_ipv6_stand_in_brackets():
    (rule,) = rules_of(SAVED6, 8080, family="ipv6")
    assert (rule.to_address, rule.to_port, rule.family) == ("fd00::2", 80, "ipv6")


# --- which rules concern what was asked ----------------------------------------------------------------------------

MINE = (LocalAddress("127.0.0.1", "lo"), LocalAddress("10.0.0.9", "eth0"))


@pytest.mark.parametrize(
    ("rule", "asked", "concerns"),
    [
        (NatRule("ipv4", "prerouting", "10.1.1.1", 80), ["0.0.0.0"], True),
        (NatRule("ipv4", "prerouting", "10.1.1.1", 80), ["::"], False),
        (NatRule("both", "prerouting", None, 80), ["::"], True),
        (NatRule("ipv4", "prerouting", "10.1.1.1", 80, "10.0.0.9"), ["0.0.0.0"], True),
        (NatRule("ipv4", "prerouting", "10.1.1.1", 80, "10.96.0.0/12"), ["0.0.0.0"], False),
        (NatRule("ipv4", "prerouting", "10.1.1.1", 80, "10.0.0.0/24"), ["10.0.0.9"], True),
        (NatRule("ipv4", "prerouting", "10.1.1.1", 80), ["127.0.0.1"], False),
        (NatRule("ipv4", "output", "10.1.1.1", 80), ["127.0.0.1"], True),
        (NatRule("ipv4", "output", "10.1.1.1", 80, "not an address"), ["0.0.0.0"], True),
    ],
)
def test_rules_for_other_addresses_do_not_concern(rule, asked, concerns):
    assert bool(select_rules([rule], asked, MINE)) is concerns


# --- what nobody would print ---------------------------------------------------------------------------------------


def test_chains_that_jump_in_circles_come_to_an_end():
    table = ("nft", "ipv4", "nat")
    steps = [Step(table, hook_name("prerouting"), "jump", "a")]
    steps += [Step(table, one, "jump", other) for one in "abc" for other in "abc"]
    steps.append(Step(table, "c", "dnat", "10.0.0.1", 1))
    walked = follow_packet(steps, 80, "tcp")
    assert len(walked.rules) == 1
    assert not walked.complete
    assert follow_packet(steps[:1], 80, "tcp") == ((), True)


def test_rules_that_were_not_followed_are_a_gap():
    """A chain that jumps to itself three times: the kernel refuses it, a program that prints rules may not."""
    text = b"-A PREROUTING -j A\n-A A -j A\n-A A -j A\n-A A -j A\n-A A -p tcp --dport 80 -j REDIRECT --to-ports 81\n"
    rules, gaps = parse(NatOutput(b"", (("ipv4", text),)), 80, "tcp")
    assert {rule.to_port for rule in rules} == {81}
    assert [gap.why for gap in gaps] == ["NAT rules after the first 50,000 steps were not followed"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["nftables", "chain", "rule", "expr", "match", "left", "right", "payload", "field", "dport",
                         "dnat", "addr", "port", "map", "key", "data", "set", "elem", "vmap", "jump", "target",
                         "family", "table", "name", "type", "hook", "range", "prefix", "redirect", "concat", "op"]),
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
    for rule in follow_packet(nftables.parse(json.dumps(document).encode()), 80, "tcp").rules:
        assert isinstance(rule.to_address, str | None)
        assert isinstance(rule.to_port, int | None)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_ruleset_is_a_gap(text):
    rules, gaps = parse(NatOutput(text), 80, "tcp")
    assert rules == () or not gaps


WORDS = st.sampled_from(
    ["-A", "PREROUTING", "DOCKER", "-p", "tcp", "--dport", "80", "80:90", "1,2:3", "-j", "DNAT", "--to-destination",
     "10.0.0.1:80", "[::1]:1", ":", "!", "-d", "-m", "REDIRECT", "--to-ports", '"', "\\", "-g", "COMMIT", "9" * 9]
)  # fmt: skip


@given(st.lists(WORDS | st.text(max_size=6), max_size=30))
def test_any_text_of_iptables_is_read_or_passed_over(words):
    text = "-A PREROUTING " + " ".join(words)
    for rule in follow_packet(iptables.parse(text.encode("utf-8", "surrogatepass"), "ipv4"), 80, "tcp").rules:
        assert rule.to_port is None or 0 <= rule.to_port <= 65535


@given(st.binary(max_size=200))
def test_any_bytes_of_netlink_are_messages_or_none(data):
    with contextlib.suppress(netlink.GarbledAnswer):
        for _, body in netlink.messages(data):
            nat.is_nat(body)


def test_the_programs_are_not_taken_from_path(network, monkeypatch, tmp_path):
    """As root, what stands first in somebody's PATH would be run."""
    network.run("nft", "-f", "-", text=RULESET)
    planted = tmp_path / "nft"
    planted.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    planted.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert nat.take(8080, "tcp", may_read=True)[0]
    assert os.listdir(tmp_path) == ["nft"]
