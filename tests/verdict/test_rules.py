"""Rules over situation that this machine cannot produce: Windows, macOS, VRFs, service managers, containers."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.addresses import Endpoint
from portbook.bind.attempt import Options
from portbook.managers import publications, supervisor
from portbook.netconfig.facts import (
    Caller,
    Diversion,
    DynamicRange,
    ExcludedRange,
    HttpQueue,
    Link,
    NatRule,
    NatTarget,
    PortProxy,
    Publication,
)
from portbook.netconfig.linux import interfaces, sysctl
from portbook.records import STATES, Gap, Owner, Socket
from portbook.system import netlink
from portbook.system.users import user_name
from portbook.verdict.conflict import SHARING, conflict
from portbook.verdict.findings import CODES, SEVERITIES
from portbook.verdict.judge import predict
from portbook.verdict.rules import RULES, apply_rules
from portbook.verdict.situation import Situation

SYSTEM = Owner(4, "System")
ID = "0123456789abcdef" * 4
# The kind of which docker has one for each published port: in docker's own cgroup, and not to be stopped with docker.
PROXY = Owner(9, "docker-proxy", exe="/usr/bin/docker-proxy", user=user_name(0), cgroup="/system.slice/docker.service")


def listener(*owners: Owner, address: str = "0.0.0.0", port: int = 80, **more) -> Socket:
    family = "ipv6" if ":" in address else "ipv4"
    return Socket("tcp", family, address, port, state="LISTEN", owners=owners, **more)


def supervised(owner: Owner, platform: str) -> Situation:
    """What is read of a listener that a supervisor may start again."""
    one = supervisor.find_supervisor(owner, (), platform, 0)
    return Situation(platform, 80, sockets=(listener(owner),), supervisors={owner.pid: one} if one else {})


def found(situation: Situation) -> dict:
    return {f.code: f for f in apply_rules(situation)}


# --- Windows ---------------------------------------------------------------------------------------------------------

WINNAT = ExcludedRange("ipv4", "tcp", 50000, 50099, administered=False)


def test_an_excluded_range_of_winnat_with_its_cause_and_its_cure():
    dynamic = (DynamicRange("ipv4", "tcp", 1024, 64511),)
    situation = Situation("windows", 3000, excluded=(ExcludedRange("ipv4", "tcp", 2980, 3079, False),), dynamic=dynamic)
    one = found(situation)["excluded-range"]
    assert (one.severity, one.endpoints) == ("blocks", ("0.0.0.0",))
    assert one.evidence == {
        "first": 2980, "last": 3079, "family": "ipv4", "protocol": "tcp", "administered": False, "dynamic_start": 1024
    }  # fmt: skip
    assert "net stop winnat" in one.remedy
    assert "add excludedportrange protocol=tcp startport=3000 numberofports=1" in one.remedy
    assert "set dynamicport tcp start=49152 num=16384" in one.remedy


def test_an_excluded_range_where_the_dynamic_range_is_as_it_should_be():
    situation = Situation("windows", 50001, excluded=(WINNAT,), dynamic=(DynamicRange("ipv4", "tcp", 49152, 16384),))
    one = found(situation)["excluded-range"]
    assert "dynamic_start" not in one.evidence
    assert "set dynamicport" not in one.remedy
    assert "ephemeral-port" in found(situation)


def test_an_administered_range_is_deleted_by_its_own_command():
    situation = Situation("windows", 8081, excluded=(ExcludedRange("ipv6", "tcp", 8080, 8089, administered=True),))
    one = found(situation)["excluded-range"]
    assert (one.endpoints, one.confidence) == (("[::]",), "likely")
    assert "netsh int ipv6 delete excludedportrange protocol=tcp startport=8080 numberofports=10" in one.remedy


@pytest.mark.parametrize(
    ("port", "protocol", "endpoint"),
    [(49999, "tcp", "0.0.0.0"), (50100, "tcp", "0.0.0.0"), (50000, "udp", "0.0.0.0"), (50000, "tcp", "::1")],
)
def test_the_four_lists_are_four(port, protocol, endpoint):
    situation = Situation("windows", port, protocol, (Endpoint(endpoint),), excluded=(WINNAT,))
    assert "excluded-range" not in found(situation)


def test_a_dual_stack_socket_needs_the_port_of_ipv4_too():
    situation = Situation("windows", 50000, endpoints=(Endpoint("::", dual=True),), excluded=(WINNAT,))
    assert found(situation)["excluded-range"].endpoints == ("[::]",)


def test_http_sys_names_the_process_behind_pid_4():
    queues = (
        HttpQueue("WSMAN", ("HTTP://+:5985/WSMAN/", "HTTP://+:47001/WSMAN/"), (1234,)),
        HttpQueue(None, ("HTTPS://*:443/",), (99,)),
    )
    sockets = (listener(SYSTEM, port=5985),)
    queue_owners = {1234: Owner(1234, "svchost.exe", service="WinRM")}
    one = found(Situation("windows", 5985, sockets=sockets, queues=queues, queue_owners=queue_owners))["http-sys"]
    assert one.evidence == {
        "queue": "WSMAN", "urls": ["HTTP://+:5985/WSMAN/"], "pids": [1234], "services": ["WinRM"]
    }  # fmt: skip
    assert "svchost.exe (pid 1234) on HTTP://+:5985/WSMAN/" in one.text
    assert one.remedy.startswith("Stop-Service WinRM")
    unknown = found(Situation("windows", 5985, sockets=sockets, queues=queues))["http-sys"]
    assert "process (pid 1234)" in unknown.text


def test_http_sys_without_its_queues_is_likely_and_has_a_remedy():
    one = found(Situation("windows", 80, sockets=(listener(SYSTEM),)))["http-sys"]
    assert one.confidence == "likely"
    assert "view=requestq" in one.remedy


@pytest.mark.parametrize("url", ["", "HTTP", "HTTP://+/x", "HTTP://+:x/", "HTTP://[::1]:80", "HTTP://+:99999999/"])
def test_urls_that_name_another_port_or_none(url):
    situation = Situation("windows", 8080, queues=(HttpQueue("q", (url,), ()),))
    assert "http-sys" not in found(situation)


def test_a_portproxy_is_named_as_what_it_relays():
    proxy = PortProxy("v4tov4", "*", 8080, "172.20.0.2", 80)
    sockets = (listener(Owner(900, "svchost.exe", service="iphlpsvc"), port=8080),)
    one = found(Situation("windows", 8080, sockets=sockets, proxies=(proxy,)))["portproxy"]
    assert (one.severity, one.evidence["connect"]) == ("shadows", "172.20.0.2:80")
    assert "netsh interface portproxy delete v4tov4 listenport=8080 listenaddress=*" in one.remedy
    assert "portproxy" not in found(Situation("windows", 8081, proxies=(proxy,)))


@pytest.mark.parametrize(
    ("name", "what"),
    [("wslrelay.exe", "WSL"), ("wslhost.exe", "WSL"), ("com.docker.backend.exe", "Docker Desktop")],
)
def test_relays_of_wsl_and_docker_desktop(name, what):
    one = found(Situation("windows", 80, sockets=(listener(Owner(70, name)),)))["relay"]
    assert what in one.text


def test_the_remedy_for_a_service_of_windows():
    situation = supervised(Owner(70, "svchost.exe", service="W32Time"), "windows")
    assert found(situation)["listener"].remedy.startswith("Stop-Service -Name W32Time; or ")


# --- macOS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [5000, 7000])
def test_airplay_receiver(port):
    one = found(Situation("macos", port, sockets=(listener(Owner(400, "ControlCenter"), port=port),)))["airplay"]
    assert one.confidence == "certain"
    assert "AirPlay Receiver" in one.remedy


def test_airplay_receiver_whose_owner_is_not_visible():
    assert found(Situation("macos", 5000, sockets=(listener(port=5000),)))["airplay"].confidence == "likely"


def test_another_holder_of_port_5000_is_not_airplay():
    assert "airplay" not in found(Situation("macos", 5000, sockets=(listener(Owner(4, "python3"), port=5000),)))
    assert "airplay" not in found(Situation("macos", 5001, sockets=(listener(Owner(4, "ControlCenter"), port=5001),)))


def test_launchd_holds_sockets_for_services():
    one = found(Situation("macos", 80, sockets=(listener(Owner(1, "launchd")),)))["socket-activation"]
    assert "launchctl" in one.remedy


def test_on_macos_a_single_address_may_be_bound_beside_the_wildcard():
    situation = Situation("macos", 80, endpoints=(Endpoint("127.0.0.1"),), sockets=(listener(Owner(4, "a")),))
    assert set(found(situation)) == {"other-address"}
    assert predict(apply_rules(situation)) is True


# --- service managers and containers ---------------------------------------------------------------------------------

MANAGER = Owner(1, "systemd", cgroup="/init.scope")
USERS_MANAGER = Owner(800, "systemd", cgroup="/user.slice/user-1000.slice/user@1000.service/init.scope")


def test_the_socket_unit_is_stopped_and_not_the_service():
    sockets = (listener(MANAGER, Owner(50, "cupsd"), inode=9),)
    one = found(Situation("linux", 80, sockets=sockets, activated={9: "cups.socket"}))["socket-activation"]
    assert one.remedy.startswith("systemctl stop cups.socket")
    assert "has passed it to cupsd (pid 50)" in one.text


def test_a_users_own_manager():
    one = found(Situation("linux", 80, sockets=(listener(USERS_MANAGER, inode=9),)))["socket-activation"]
    assert one.remedy.startswith("systemctl --user list-sockets")


@pytest.mark.parametrize("owner", [Owner(1, "nginx"), Owner(70, "systemd-resolved", cgroup="/x"), Owner(9, "systemd")])
def test_pid_1_of_a_container_is_mostly_a_server(owner):
    assert "listener" in found(Situation("linux", 80, sockets=(listener(owner),)))


@pytest.mark.parametrize(
    ("owner", "command"),
    [
        (Owner(9, "nginx", cgroup="/system.slice/nginx.service"), "systemctl stop nginx.service"),
        (Owner(9, "nginx", cgroup=f"/docker/{ID}", container="docker:web"), "docker stop web"),
        (Owner(9, "nginx", cgroup=f"/machine.slice/libpod-{ID}.scope", container="podman:web"), "podman stop web"),
        (Owner(9, "nginx", cgroup="/system.slice/PORT.service"), "systemctl stop PORT.service"),
        (
            Owner(9, "nginx", cgroup="/system.slice/x; reboot.service"),
            "end the holder: portbook stop 80",
        ),  # people copy commands
        (
            PROXY,
            "docker ps --filter publish=80 shows the container; docker stop frees the port",
        ),
        (Owner(9, "nginx"), "end the holder: portbook stop 80"),
    ],
)
def test_the_remedy_names_who_would_start_it_again(owner, command):
    assert found(supervised(owner, "linux"))["listener"].remedy.startswith(command)


def test_a_service_manager_holds_udp_ports_too():
    manager = Owner(1, "systemd", exe="/usr/lib/systemd/systemd")
    one = Socket("udp", "ipv4", "0.0.0.0", 69, owners=(manager,), inode=5)
    told = found(Situation("linux", 69, "udp", sockets=(one,), activated={5: "tftp.socket"}))
    assert told["socket-activation"].remedy.startswith("systemctl stop tftp.socket")
    assert "udp-socket" not in told


@pytest.mark.parametrize("hint", ["run with sudo", "run with CAP_SYS_PTRACE, outside the container", None])
def test_the_remedy_for_an_invisible_holder_comes_from_the_gap(hint):
    gaps = (Gap("owner", 1, "the owner of 1 socket is not visible", hint),)
    remedy = found(Situation("linux", 80, sockets=(listener(),), caller=Caller(0), gaps=gaps))["listener"].remedy
    seen = f"to see the holder: {hint}; or " if hint else ""
    assert remedy == f"{seen}use another port: portbook free"


DOCKER_PROXY = ("docker-proxy", "-host-port", "80", "-container-ip", "172.17.0.2", "-container-port", "8000")
WEB = Publication("docker:web", "tcp", 80, ("172.17.0.2",))


def test_the_container_behind_docker_proxy():
    sockets = (listener(Owner(9, "docker-proxy", command_line=DOCKER_PROXY)),)
    one = found(Situation("linux", 80, sockets=sockets, publications=(WEB,)))["relay"]
    assert (one.evidence["container"], one.remedy) == ("docker:web", "docker stop web frees the port")


def test_the_container_behind_a_nat_rule():
    rule = NatRule("ipv4", "prerouting", "172.17.0.2", 8000)
    diversion = Diversion("nat", (NatTarget("172.17.0.2", 8000),), True, (rule,))
    situation = Situation("linux", 80, nat=(diversion,), publications=(WEB,))
    one = found(situation)["nat-rule"]
    assert one.evidence["container"] == "docker:web"
    assert one.remedy.startswith("docker stop web")


LISTED = b"""[{"Id": "0123456789abcdef", "Names": ["/web", "/other/alias"], "Ports": [
  {"IP": "0.0.0.0", "PrivatePort": 8000, "PublicPort": 80, "Type": "tcp"},
  {"PrivatePort": 9000, "Type": "udp"}],
  "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": ""}}}},
  {"Id": "fedcba9876543210", "Names": null}]"""  # Docker Engine API 1.43, ContainerList, shortened


def test_publications_as_docker_lists_them():
    import msgspec

    entries = msgspec.json.decode(LISTED, type=list[publications.ListedContainer])
    read = [p for entry in entries for p in publications.parse("docker", entry)]
    assert read[0] == WEB
    assert (read[1].container, read[1].host_port, read[1].protocol) == ("docker:web", 0, "udp")
    assert read[2].container == "docker:fedcba987654"


# --- VRF: replayed, because few kernels have it ----------------------------------------------------------------------

RED = (Link("red", "vrf", "red"), Link("eth1", "dummy", "red"))


@pytest.mark.parametrize("device", ["red", "eth1"])
def test_a_port_of_a_vrf_is_another_table(device):
    situation = Situation("linux", 80, sockets=(listener(Owner(4, "a"), interface=device),), links=RED)
    one = found(situation)["vrf"]
    assert (one.severity, one.evidence["vrf"]) == ("warns", "red")
    assert "ip vrf exec red" in one.remedy
    assert predict(apply_rules(situation)) is True


def test_unless_all_are_accepted():
    sockets = (listener(Owner(4, "a"), interface="red"),)
    situation = Situation("linux", 80, sockets=sockets, links=RED, vrf_accepts_all=True)
    assert found(situation)["vrf"].severity == "shadows"
    assert predict(apply_rules(situation)) is False


def attribute(kind: int, value: bytes) -> bytes:
    return netlink.attribute(kind, value)


def link(index: int, name: bytes, kind: bytes, master: int = 0) -> netlink.Message:
    body = interfaces.IFINFOMSG.pack(0, 1, index, 0, 0) + attribute(interfaces.IFLA_IFNAME, name + b"\0")
    body += attribute(interfaces.IFLA_LINKINFO, attribute(interfaces.IFLA_INFO_KIND, kind + b"\0"))
    if master:
        body += attribute(interfaces.IFLA_MASTER, struct.pack("=I", master))
    return interfaces.RTM_NEWLINK, body


def test_a_vrf_and_its_slave_as_the_kernel_would_tell_them():
    told = [link(1, b"lo", b""), link(5, b"red", b"vrf"), link(6, b"eth1", b"dummy", 5), link(7, b"br0", b"bridge")]
    assert set(interfaces.parse_links(told, frozenset(("red", "eth1")))) == set(RED)
    assert list(interfaces.parse_links(told, frozenset(("br0",)))) == [Link("br0", "bridge", None)]


@given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=80)), max_size=4))
def test_any_message_is_a_link_and_an_address_or_none(told):
    for parse in (
        lambda: interfaces.parse_links(told, frozenset(("",))),
        lambda: interfaces.parse_addresses(told, str),
    ):
        with contextlib.suppress(netlink.GarbledAnswer):
            list(parse())


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_kernel_without_ipv6_and_a_container_without_proc_sys():
    names = dict.fromkeys(sysctl.NAMES)
    assert sysctl.parse(names).ipv6 is None
    assert sysctl.parse({**names, sysctl.UNPRIVILEGED: b"1024\n"}) == (1024, frozenset(), "absent", False)
    assert sysctl.parse({**names, sysctl.DISABLE_IPV6: b"1\n", sysctl.UNPRIVILEGED: b"0"}).ipv6 == "disabled"


@given(st.dictionaries(st.sampled_from(sysctl.NAMES), st.none() | st.binary(max_size=20)))
def test_any_settings_are_read(raw):
    settings = sysctl.parse(raw)
    assert settings.privileged_below is None or settings.privileged_below >= 0


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda b: b"Name:\tx\nCapEff:\t" + b + b"\n"))
def test_any_status_is_read(status):
    caller = sysctl.parse_caller(status, 7)
    assert (caller.may_bind_low is None) is (caller.may_read_nat is None)


def test_capabilities_of_a_status():
    assert sysctl.parse_caller(b"Name:\tx\nCapEff:\t0000000000000400\n", 7) == Caller(7, True, False)


# --- all rules -------------------------------------------------------------------------------------------------------

ADDRESSES = {"ipv4": ["0.0.0.0", "127.0.0.1", "10.0.0.1"], "ipv6": ["::", "::1", "::ffff:127.0.0.1", "fe80::1"]}
OWNERS = st.builds(
    Owner,
    st.integers(1, 9),
    st.none() | st.text(max_size=5) | st.sampled_from(["systemd", "ssh", "docker-proxy", "launchd", "wslrelay.exe"]),
    command_line=st.none() | st.lists(st.text(max_size=8), max_size=4).map(tuple),
    service=st.none() | st.text(max_size=5),
    container=st.none() | st.text(max_size=8),
)


@st.composite
def sockets(draw) -> Socket:
    family = draw(st.sampled_from(["ipv4", "ipv6"]))
    return Socket(
        draw(st.sampled_from(["tcp", "udp"])),
        family,
        draw(st.sampled_from(ADDRESSES[family])),
        80,
        state=draw(st.sampled_from([*STATES, None])),
        uid=draw(st.none() | st.integers(0, 3)),
        inode=draw(st.none() | st.integers(0, 5)),
        v6only=draw(st.none() | st.booleans()) if family == "ipv6" else None,
        interface=draw(st.none() | st.just("eth0")),
        owners=tuple(draw(st.lists(OWNERS, max_size=2))),
        ends_in_ms=draw(st.none() | st.integers(0, 60_000)),
    )


ENDPOINTS = st.sampled_from([Endpoint("0.0.0.0"), Endpoint("::"), Endpoint("::", dual=True), Endpoint("127.0.0.1"),
                             Endpoint("::1"), Endpoint("fe80::1", "eth0")])  # fmt: skip


@given(
    st.sampled_from(["linux", "windows", "macos"]),
    st.lists(sockets(), max_size=4),
    st.lists(ENDPOINTS, min_size=1, max_size=2, unique=True),
    st.booleans(),
    st.none() | st.booleans(),
)
def test_whatever_the_evidence_every_finding_is_of_the_table(platform, held, endpoints, reuse_port, reuse):
    situation = Situation(
        platform, 80, endpoints=tuple(endpoints), sockets=tuple(held), options=Options("tcp", reuse, reuse_port),
        caller=Caller(0, True, True), ephemeral=(1, 99), privileged_below=1024,
    )  # fmt: skip
    for one in apply_rules(situation):
        assert one.code in CODES
        assert one.severity in SEVERITIES
        assert one.text


def test_every_system_of_the_table_has_its_rules_of_sharing():
    assert {platform for _, platforms in RULES for platform in platforms} == set(SHARING)


def test_a_connection_that_is_being_made_has_no_port_of_its_own():
    half_open = Socket("tcp", "ipv4", "127.0.0.1", 80, "127.0.0.1", 9, "SYN_RECV", inode=0)
    assert conflict(Situation("linux", 80), half_open, Endpoint("0.0.0.0")) is None
