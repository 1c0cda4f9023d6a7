"""What a policy says about sockets: pure, by records that are made here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from portbook.addresses import reach_of
from portbook.errors import PolicyError
from portbook.records import Owner, Socket
from portbook.watching.judge import Judgement, judge, requirements
from portbook.watching.policy import Policy, parse, proposal
from portbook.watching.policy.matching import PolicyEvidence, ProgramFile

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
OWNER = Owner(7, "nginx", "/usr/sbin/nginx", user="www", service="nginx.service", cgroup="/system.slice/nginx.service")


def socket(port: int = 80, address: str = "0.0.0.0", protocol: str = "tcp", *owners: Owner, **more: Any) -> Socket:
    made = Socket(
        "udp" if protocol == "udp" else "tcp",
        "ipv6" if ":" in address else "ipv4",
        address,
        port,
        state=None if protocol == "udp" else "LISTEN",
        reach=reach_of(address),
        owners=owners or (OWNER,),
        inode=4,
        netns=1,
    )
    return replace(made, **more)


def policy(*rules: str, default: str = "deny") -> Policy:
    return parse("\n".join(["version = 1", f'default = "{default}"', *rules]), now=NOW)


def say(rules: str, *args: Any, evidence: PolicyEvidence | None = None, **more: Any) -> bool | None:
    return judge(policy(*rules.split("; ")), socket(*args, **more), NOW, evidence).allowed


# --- each key ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("port = 80", True),
        ("port = 81", False),
        ('port = "70-90"', True),
        ('port = "80/udp"', False),
        ('protocol = "tcp"', True),
        ('protocol = "udp"', False),
        ('name = "nginx"', True),
        ('name = "ngin*"', True),
        ('name = "Nginx"', False),
        ('exe = "/usr/sbin/nginx"', True),
        ('exe = "/usr/*/nginx"', True),
        ('exe = "/usr/*"', False),
        ('exe = "*"', True),
        ('exe = ["/bin/x", "/usr/sbin/nginx"]', True),
        ('user = "www"', True),
        ('user = ["root", "www"]', True),
        ('user = "root"', False),
        ('service = "nginx.service"', True),
        ('service = "none"', False),
        ('container = "none"', True),
        ('container = "docker:*"', False),
        ('image = "nginx"', False),
        ('port = 80\nname = "nginx"\nuser = "root"', False),
    ],
)
def test_a_key_of_a_rule(keys, expected):
    assert say(f"[[allow]]; {keys}") is expected
    denying = judge(policy("[[deny]]", keys, default="allow"), socket(), NOW).allowed
    assert denying is not expected


REACHES = ("127.0.0.1", "::1", "0.0.0.0", "::", "10.1.2.3", "192.0.2.1", "fd00::1", "224.0.0.251", "::ffff:10.1.2.3")
# reach of the rule: the addresses that it is about as [[allow]], [[deny]] and [[require]].
MEANINGS = {
    '"loopback"': ({"127.0.0.1", "::1"}, {"127.0.0.1", "::1"}, {"127.0.0.1", "::1", "0.0.0.0", "::"}),
    '"any"': (set(REACHES), {"0.0.0.0", "::"}, {"0.0.0.0", "::"}),
    '"10.0.0.0/8"': (
        {"127.0.0.1", "::1", "10.1.2.3", "::ffff:10.1.2.3"},
        {"10.1.2.3", "::ffff:10.1.2.3", "0.0.0.0", "::"},
        {"10.1.2.3", "::ffff:10.1.2.3", "0.0.0.0", "::"},
    ),
    '"fd00::/8"': ({"127.0.0.1", "::1", "fd00::1"}, {"fd00::1", "::"}, {"fd00::1", "0.0.0.0", "::"}),
    '["0.0.0.0/0", "::/0"]': (
        set(REACHES) - {"0.0.0.0", "::"},
        set(REACHES) - {"127.0.0.1", "::1"},
        set(REACHES) - {"127.0.0.1", "::1"},
    ),
}


@pytest.mark.parametrize("reach", MEANINGS)
def test_reach_is_at_most_for_allow_any_of_it_for_deny_and_at_least_for_require(reach):
    allow, deny, require = (
        policy(f"[[{kind}]]", "port = 80", f"reach = {reach}", default=default)
        for kind, default in (("allow", "deny"), ("deny", "allow"), ("require", "deny"))
    )
    assert {a for a in REACHES if judge(allow, socket(80, a), NOW).allowed} == MEANINGS[reach][0]
    assert {a for a in REACHES if not judge(deny, socket(80, a), NOW).allowed} == MEANINGS[reach][1]
    assert {a for a in REACHES if requirements(require, [socket(80, a)], NOW)[0].met} == MEANINGS[reach][2]


def test_a_wildcard_of_ipv6_alone_is_not_reached_by_ipv4():
    rules = policy("[[deny]]", "port = 80", 'reach = "10.0.0.0/8"', default="allow")
    assert judge(rules, socket(80, "::", v6only=True), NOW).allowed is True
    assert judge(rules, socket(80, "::", v6only=False), NOW).allowed is False


def test_what_is_only_bound_is_judged_by_its_address():
    rules = policy("[[allow]]", "port = 80", 'reach = "loopback"')
    assert judge(rules, socket(80, "0.0.0.0", state="BOUND", reach="none"), NOW).allowed is False
    assert judge(rules, socket(80, "127.0.0.1", state="BOUND", reach="none"), NOW).allowed is True


@pytest.mark.parametrize(
    ("keys", "netns", "name", "expected"),
    [
        ('netns = "own"', 1, None, True),
        ('netns = "own"', 2, "blue", False),
        ('netns = "blue"', 2, "blue", True),
        ("netns = 2", 2, None, True),
        ('netns = "own"', None, None, True),
        ('netns = ["own", "b*"]', 2, "blue", True),
    ],
)
def test_network_namespaces(keys, netns, name, expected):
    evidence = PolicyEvidence(own_netns=1)
    assert say(f"[[allow]]; {keys}", netns=netns, netns_name=name, evidence=evidence) is expected


# --- several rules, several holders --------------------------------------------------------------------------------


def test_deny_wins_and_the_rule_is_named():
    rules = policy("[[allow]]", "port = 80", "[[deny]]", 'name = "ng*"', 'severity = "critical"')
    found = judge(rules, socket(), NOW)
    assert (found.allowed, found.severity) == (False, "critical")
    assert found.why == "deny[1] (policy.toml:5) denies it"


def test_the_nearest_rule_is_named_and_its_severity_counts():
    rules = policy(
        "[[allow]]", "port = 80", 'user = "root"', "[[allow]]", "port = 80", 'user = "www"', 'exe = "/x"',
        'severity = "critical"',
    )  # fmt: skip
    found = judge(rules, socket(), NOW)
    assert found.why == "no rule allows it: allow[2] (policy.toml:6) differs in the executable"
    assert (found.rule, found.severity) == (None, "critical")


def test_a_rule_that_has_ended_does_not_apply():
    rules = policy("[[allow]]", "port = 80", "until = 2026-11-28T12:00:00Z")
    assert judge(rules, socket(), NOW - timedelta(seconds=1)).allowed is True
    found = judge(rules, socket(), NOW)
    assert (found.allowed, found.why) == (
        False,
        "no rule allows it: allow[1] (policy.toml:3) ended with 2026-11-28 12:00:00+00:00",
    )


def test_every_holder_of_a_shared_socket_counts():
    other = Owner(9, "nc", "/usr/bin/nc", user="bob", cgroup="/")
    rules = policy("[[allow]]", "port = 80", 'exe = "/usr/sbin/nginx"')
    found = judge(rules, socket(80, "0.0.0.0", "tcp", OWNER, other), NOW)
    assert (found.allowed, found.pid) == (False, 9)
    rules = policy("[[allow]]", "port = 80", 'exe = ["/usr/sbin/nginx", "/usr/bin/nc"]')
    assert judge(rules, socket(80, "0.0.0.0", "tcp", OWNER, other), NOW).allowed is True


def test_systemd_that_keeps_the_socket_of_a_service_is_left_out():
    init = Owner(1, "systemd", "/usr/lib/systemd/systemd", user="root", service="init.scope", cgroup="/init.scope")
    rules = policy("[[allow]]", "port = 80", 'exe = "/usr/sbin/nginx"')
    assert judge(rules, socket(80, "0.0.0.0", "tcp", init, OWNER), NOW).allowed is True
    assert judge(rules, socket(80, "0.0.0.0", "tcp", init), NOW).allowed is False
    other = replace(init, name="app")  # the first process of a container in which portbook runs, too
    assert judge(rules, socket(80, "0.0.0.0", "tcp", other, OWNER), NOW).allowed is False


@pytest.mark.parametrize(
    ("exe", "expected"),
    [
        (r"C:\Windows\System32\svchost.exe", True),
        (r"c:\windows\system32\SVCHOST.EXE", True),
        ("C:/Windows/System32/svchost.exe", True),
        (r"C:\Windows\*\svchost.exe", True),
        (r"C:\*\svchost.exe", False),
        (r"D:\Windows\System32\svchost.exe", False),
    ],
)
def test_in_a_path_of_windows_case_does_not_matter(exe, expected):
    owner = Owner(7, "svchost.exe", r"C:\Windows\System32\svchost.exe")
    rules = policy("[[allow]]", "port = 135", f"exe = '{exe}'")
    assert judge(rules, socket(135, "0.0.0.0", "tcp", owner), NOW).allowed is expected


# --- what is not known ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ['name = "x"', 'exe = "/x"', 'service = "x.service"', 'container = "none"'])
def test_without_an_owner_it_is_undecided_and_says_what_is_missing(keys):
    found = judge(policy("[[allow]]", "port = 80", keys), replace(socket(), owners=()), NOW)
    assert (found.allowed, found.unknown) == (None, keys.partition(" ")[0])
    assert "could not be read" in found.why
    assert found.severity == "quiet"


def test_what_could_be_denied_is_not_allowed():
    rules = policy("[[allow]]", "port = 80", "[[deny]]", 'exe = "/x"')
    found = judge(rules, replace(socket(), owners=()), NOW)
    assert (found.allowed, found.unknown) == (None, "exe")


def test_another_rule_decides_in_spite_of_what_is_not_known():
    rules = policy("[[allow]]", "port = 80", 'exe = "/x"', "[[allow]]", "port = 80", 'user = "www"')
    assert judge(rules, replace(socket(), owners=(), user="www", uid=33), NOW).allowed is True
    assert judge(rules, replace(socket(81), owners=(), user="www", uid=33), NOW).allowed is False


def test_a_socket_of_the_kernel_has_a_name_and_no_executable():
    kernel = replace(socket(51820, "0.0.0.0", "udp"), owners=(), kernel="wireguard wg0")
    assert judge(policy("[[allow]]", 'name = "wireguard *"', 'service = "none"'), kernel, NOW).allowed is True
    assert judge(policy("[[allow]]", "port = 51820", 'exe = "/x"'), kernel, NOW).allowed is False


@pytest.mark.parametrize(
    ("keys", "state", "expected"),
    [
        ("", "same", True),
        ("", "deleted", False),
        ("", "replaced", False),
        ("", "elsewhere", False),
        ("", "unknown", None),
        ('container = "none"', "elsewhere", True),
        ('container = "none"', "deleted", False),
        ('sha256 = "%s"' % ("ab" * 32), "deleted", True),
        ('sha256 = "%s"' % ("cd" * 32), "same", False),
    ],
)  # fmt: skip
def test_a_path_counts_if_the_process_runs_its_file(keys, state, expected):
    evidence = PolicyEvidence(programs={7: ProgramFile(state, "ab" * 32)})
    rules = policy("[[allow]]", "port = 80", 'exe = "/usr/sbin/nginx"', keys)
    assert judge(rules, socket(), NOW, evidence).allowed is expected
    denying = policy("[[deny]]", 'exe = "/usr/sbin/nginx"', default="allow")
    assert judge(denying, socket(), NOW, evidence).allowed is False, "what is denied stays denied"


def test_the_reason_says_that_the_executable_was_deleted():
    evidence = PolicyEvidence(programs={7: ProgramFile("deleted")})
    found = judge(policy("[[allow]]", "port = 80", 'exe = "/usr/sbin/nginx"'), socket(), NOW, evidence)
    assert "deleted or replaced since it started" in found.why


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("nginx", True), ("nginx:1.27", True), ("nginx:1.2*", True), ("docker.io/library/nginx:1.27", True),
     ("nginx:1.26", False), ("sha256:00", True), ("other", False)],
)  # fmt: skip
def test_images(rule, expected):
    inside = replace(OWNER, container="docker:web")
    evidence = PolicyEvidence(images={"docker:web": ("nginx:1.27", "nginx", "sha256:00")})
    rules = policy("[[allow]]", f'image = "{rule}"')
    assert judge(rules, socket(80, "0.0.0.0", "tcp", inside), NOW, evidence).allowed is expected
    assert judge(rules, socket(80, "0.0.0.0", "tcp", inside), NOW, PolicyEvidence()).allowed is None


# --- requirements --------------------------------------------------------------------------------------------------


def test_each_port_of_a_list_is_required_and_one_of_a_range():
    rules = policy("[[require]]", 'port = [80, "443/tcp", "8000-8100"]')
    found = requirements(rules, [socket(80), socket(8050, "0.0.0.0", "udp")], NOW)
    assert [(each.entry, each.met) for each in found] == [("80", True), ("443/tcp", False), ("8000-8100", True)]
    assert found[1].why == "nothing listens, and require[1] (policy.toml:3) requires it"


def test_what_is_bound_or_of_another_program_meets_no_requirement():
    rules = policy("[[require]]", "port = 80", 'exe = "/usr/sbin/nginx"')
    assert requirements(rules, [socket(state="BOUND")], NOW)[0].met is False
    other = replace(OWNER, exe="/usr/bin/nc")
    (found,) = requirements(rules, [socket(80, "0.0.0.0", "tcp", other)], NOW)
    assert (found.met, found.why) == (False, "what listens differs from require[1] (policy.toml:3) in the executable")
    assert requirements(rules, [replace(socket(), owners=())], NOW)[0].met is None


def test_a_requirement_allows_what_it_requires_and_ends():
    rules = policy("[[require]]", "port = 80", "until = 2026-11-28T12:00:00Z")
    assert judge(rules, socket(), NOW - timedelta(1)).allowed is True
    assert len(requirements(rules, [], NOW - timedelta(1))) == 1
    assert requirements(rules, [], NOW) == []


# --- laws ----------------------------------------------------------------------------------------------------------

OWNERS = st.builds(
    Owner,
    st.integers(1, 9),
    st.sampled_from(["nginx", "nc", None]),
    st.sampled_from(["/usr/sbin/nginx", "/usr/bin/nc", None]),
    user=st.sampled_from(["root", "www", None]),
    service=st.sampled_from(["nginx.service", None]),
    container=st.sampled_from(["docker:web", None]),
    cgroup=st.sampled_from(["/", None]),
)
SOCKETS = st.builds(
    lambda port, address, protocol, owners, state: replace(
        socket(port, address, protocol), owners=tuple(owners), state=state if protocol == "tcp" else None
    ),
    st.integers(78, 83),
    st.sampled_from(REACHES),
    st.sampled_from(["tcp", "udp"]),
    st.lists(OWNERS, max_size=3),
    st.sampled_from(["LISTEN", "BOUND"]),
)
KEYS = st.sampled_from(
    [
        "port = 80", 'port = "79-82"', 'port = ["80/tcp", "81/udp"]', 'protocol = "udp"', 'reach = "loopback"',
        'reach = "any"', 'reach = "10.0.0.0/8"', 'name = "nginx"', 'exe = "/usr/sbin/nginx"', 'exe = "/usr/*/n*"',
        'user = "www"', 'service = "nginx.service"', 'container = "docker:*"', 'container = "none"', 'image = "x"',
        'netns = "own"',
    ]
)  # fmt: skip
RULES = st.lists(KEYS, min_size=1, max_size=3, unique_by=lambda key: key.partition(" ")[0]).map("\n".join)
ORDER = (False, None, True)


def parsed(rules: list[tuple[str, str]], default: str) -> Policy | None:
    try:
        return policy(*(f"[[{kind}]]\n{keys}" for kind, keys in rules), default=default)
    except PolicyError:
        return None  # a contradiction


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["allow", "deny"]), RULES), max_size=5),
    RULES, SOCKETS, st.sampled_from(["allow", "deny"]),
)  # fmt: skip
def test_one_more_rule_that_denies_never_allows_more(rules, denied, judged, default):
    before, after = parsed(rules, default), parsed([*rules, ("deny", denied)], default)
    if before is not None and after is not None:
        allowed = judge(before, judged, NOW).allowed, judge(after, judged, NOW).allowed
        assert ORDER.index(allowed[1]) <= ORDER.index(allowed[0])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["allow", "deny"]), RULES), max_size=5), RULES, SOCKETS)
def test_one_more_rule_that_allows_never_denies_more(rules, allowed, judged):
    before, after = parsed(rules, "deny"), parsed([*rules, ("allow", allowed)], "deny")
    if before is not None and after is not None:
        found = judge(before, judged, NOW).allowed, judge(after, judged, NOW).allowed
        assert ORDER.index(found[1]) >= ORDER.index(found[0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["allow", "deny"]), RULES), max_size=4), SOCKETS)
def test_the_order_of_rules_never_matters(rules, judged):
    found = {
        (each.allowed, each.severity)
        for order in permutations(rules)
        if (made := parsed(list(order), "deny")) is not None
        for each in [judge(made, judged, NOW)]
    }
    assert len(found) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["allow", "deny"]), RULES), max_size=6), SOCKETS)
def test_the_index_finds_every_rule_about_a_port(rules, judged):
    made = parsed(rules, "deny")
    if made is None:
        return
    found = {each.rule for part in made.index.candidates(judged.protocol, judged.local_port) for each in part}
    ranges = {rule: rule.selector.ports(judged.protocol) for rule in made.rules}
    about = {rule for rule, each in ranges.items() if any(a <= judged.local_port <= b for a, b in each)}
    assert {rule.label for rule in found} == {rule.label for rule in about}


# --- proposals -----------------------------------------------------------------------------------------------------

HOSTILE = st.one_of(
    st.sampled_from(
        ["*", "[*]", "none", "own", 'a"b', "a\\", "\n[[deny]]", "\x00", "\x7f", "\u202e", "é😀", " ", "a*b"]
    ),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12),
)
HOLDERS = st.builds(
    Owner,
    st.integers(2, 9),
    st.none() | HOSTILE,
    st.none() | HOSTILE.map("/opt/{}".format),
    user=st.sampled_from(["root", "anna"]),
    service=st.none() | HOSTILE.map("{}.service".format),
    container=st.none() | HOSTILE.map("docker:{}".format),
    cgroup=st.just("/"),
)
LISTENERS = st.builds(
    lambda port, address, protocol, owners, kernel, uid: replace(
        socket(port, address, protocol),
        owners=tuple({owner.pid: owner for owner in owners}.values()),
        kernel=None if owners else kernel,
        uid=uid,
        user="root",
    ),
    st.integers(1, 65535),
    st.sampled_from(REACHES),
    st.sampled_from(["tcp", "udp"]),
    st.lists(HOLDERS, max_size=3),
    st.none() | HOSTILE,
    st.just(0),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LISTENERS, max_size=6), st.sets(st.integers(2, 9)))
def test_a_proposed_policy_is_valid_and_allows_what_listens(sockets, untrusted):
    rules = proposal.collect(sockets, lambda owner: owner.pid not in untrusted, (32768, 60999))
    text = proposal.head("host\n[[deny]]", NOW, "a test") + proposal.text_of(rules)
    made = parse(text, now=NOW)
    programs = {pid: ProgramFile("deleted" if pid in untrusted else "same") for pid in range(10)}
    for each in sockets:
        found: Judgement = judge(made, each, NOW, PolicyEvidence(programs=programs, own_netns=1))
        assert found.allowed is True, (found.why, text)


def test_a_process_called_asterisk_gets_no_rule_for_every_process():
    star = Owner(7, "*", None, user="root", cgroup="/")
    made = parse(proposal.head("h", NOW, "x") + proposal.text_of(
        proposal.collect([socket(80, "0.0.0.0", "tcp", star)], lambda owner: True)
    ))  # fmt: skip
    assert judge(made, socket(80, "0.0.0.0", "tcp", star), NOW).allowed is True
    other = replace(star, name="nc")
    assert judge(made, socket(80, "0.0.0.0", "tcp", other), NOW).allowed is False


def test_a_udp_port_that_the_system_chose_becomes_the_range():
    rules = proposal.collect([socket(45123, "0.0.0.0", "udp")], lambda owner: True, (32768, 60999))
    made = parse(proposal.head("h", NOW, "x") + proposal.text_of(rules))
    assert judge(made, socket(50000, "0.0.0.0", "udp"), NOW).allowed is True
    assert judge(made, socket(50000, "0.0.0.0", "tcp"), NOW).allowed is False
