"""UDP ports of real services and real firewalls, in networks that the tests create; nothing outside them is probed."""

from __future__ import annotations

import collections
import itertools
import os
import re
import resource
import shutil
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from portbook.probe.outcome import Answer
from portbook.probe.request import Limits, Probe, ScanEvent, Tally
from portbook.scanner.udp import payloads, wire
from portbook.scanner.udp.engine import scan_udp
from portbook.scanner.udp.state import PROVEN
from tests import netlab
from tests.components import need
from tests.netlab import FAR_TARGET, FAR_TARGET6, ROUTER, ROUTER6, TARGET, TARGET6, Lab

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")

DEFAULTS, QUICK = Limits(), Limits(timeout_s=0.3)
BOTH = pytest.mark.parametrize("target", [TARGET, TARGET6])


def scan(
    address: str, ports: Iterable[int], limits: Limits = DEFAULTS, zone: str | None = None, **options: object
) -> dict[int, Answer]:
    """Probe each port once; return the answer of each."""
    answers = list(scan_udp((Probe(address, address, port, zone) for port in ports), limits, **options))
    by_port = {answer.port: answer for answer in answers}
    assert len(by_port) == len(answers)
    return by_port


def outcomes(answers: dict[int, Answer]) -> dict[int, str]:
    return {port: answer.outcome for port, answer in sorted(answers.items())}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with netlab.pair() as made:
        yield made


@pytest.fixture
def eager(lab) -> Lab:
    """A target that refuses as many ports as are probed."""
    lab.target.sysctl("net.ipv4.icmp_ratemask", 0)
    lab.target.sysctl("net.ipv6.icmp.ratelimit", 0)
    return lab


# --- real services -------------------------------------------------------------------------------------------------


CHRONY = "local stratum 3\nallow\ncmdport 0\npidfile {path}/pid\ndriftfile {path}/drift\n"
SNMPD = "agentaddress udp:161,udp6:161\nrocommunity public\nrocommunity6 public\n"
AVAHI = "[server]\nenable-dbus=no\n[publish]\npublish-workstation=yes\n[rlimits]\n"
KDC = """[kdcdefaults]
kdc_ports=88
kdc_tcp_ports=""
[realms]
LAB.TEST = {{
  database_name={path}/principal
  key_stash_file={path}/stash
}}
"""
# Answers clients of netlab's network with the secret of RFC 5997's examples.
RADIUSD = """name = radiusd
libdir = /usr/lib/freeradius
logdir = {path}
raddbdir = {path}
run_dir = {path}
security {{
  status_server = yes
}}
client lab {{
  ipaddr = 10.77.0.0/24
  secret = xyzzy5461
}}
modules {{
}}
server default {{
  listen {{
    type = auth
    ipaddr = *
    port = 1812
  }}
  authorize {{
  }}
}}
"""
KRB5 = "[libdefaults]\ndefault_realm = LAB.TEST\n"


class Service(NamedTuple):
    """How a daemon of Debian is started on its own port, with a minimal configuration."""

    port: int
    command: str  # {path} is a directory of the test
    expected: str  # what is recognised
    files: tuple[tuple[str, str], ...] = ()  # name and text


SERVICES = {
    "dnsmasq": Service(
        53, "dnsmasq -k -u root --no-resolv --no-hosts -C /dev/null -x {path}/pid", r"domain: version dnsmasq-\d"
    ),
    "chrony": Service(
        123, "chronyd -d -x -u root -f {path}/conf", r"ntp: NTP version 4, stratum 3, reference", (("conf", CHRONY),)
    ),
    "snmpd": Service(
        161,
        "snmpd -f -Lo -C -c {path}/conf -p {path}/pid -I -smux",
        r"snmp: SNMPv3, engine 80001f88\w+, up \d+ s, boots \d+, enterprise 8072",  # net-snmp (IANA enterprise numbers)
        (("conf", SNMPD),),
    ),
    "tftpd-hpa": Service(69, "in.tftpd -L -u root -a :69 -s {path}", r"tftp: error 1: File not found"),
    "memcached": Service(11211, "memcached -u root -U 11211 -p 0", r"memcache: version \d"),
    "rpcbind": Service(111, "rpcbind -f -w", r"sunrpc: versions 2 to 4"),
    "strongswan": Service(500, "/usr/lib/ipsec/charon", r"isakmp: IKEv2, no proposal chosen"),
    "strongswan-nat": Service(4500, "/usr/lib/ipsec/charon", r"ipsec-nat-t: IKEv2, no proposal chosen"),
    "coap": Service(5683, "coap-server-notls -A :: -p 5683", r"coap: 2\.05 <"),
    "coturn": Service(
        3478,
        "turnserver -c {path}/conf -n -p 3478 -l stdout --no-tls --no-dtls --pidfile {path}/pid --no-cli",
        r"stun: Coturn",
        (("conf", ""),),
    ),
    "avahi": Service(
        5353,
        "avahi-daemon --no-drop-root --no-chroot --no-rlimits -f {path}/conf",
        r"mdns: services: _workstation\._tcp",
        (("conf", AVAHI),),
    ),
    "openssl": Service(
        4433,
        "openssl s_server -dtls -accept 4433 -cert {path}/cert.pem -key {path}/key.pem -listen",
        r"dtls: DTLS, asks for a cookie",
    ),
    "ngtcp2": Service(443, "gtlsserver 0.0.0.0 443 {path}/key.pem {path}/cert.pem", r"quic: versions .*\bv1"),
    "freeradius": Service(
        1812, "freeradius -f -l stdout -d {path} -n radiusd", r"radius: alive", (("radiusd.conf", RADIUSD),)
    ),
    "krb5": Service(88, "krb5kdc -n", r"kerberos: client unknown", (("kdc", KDC), ("krb5", KRB5))),
}


def serve(host: netlab.Namespace, name: str, path: Path) -> None:
    """Start a service and wait until it has its port."""
    service = SERVICES[name]
    program, *arguments = service.command.format(path=path).split()
    need(shutil.which(program) is not None, program)
    for file, text in service.files:
        (path / file).write_text(text.format(path=path))
    if name in PREPARED:
        PREPARED[name](host, path)
    host.start(program, *arguments)
    host.wait_for(service.port, "udp")


def make_certificate(host: netlab.Namespace, path: Path) -> None:
    need(shutil.which("openssl") is not None, "openssl")
    words = "req -x509 -newkey rsa:2048 -nodes -keyout {0}/key.pem -out {0}/cert.pem -days 1 -subj /CN=test"
    host.run("openssl", *words.format(path).split())


def make_realm(host: netlab.Namespace, path: Path) -> None:
    need(shutil.which("kdb5_util") is not None, "kdb5_util (package krb5-kdc)")
    os.environ["KRB5_CONFIG"], os.environ["KRB5_KDC_PROFILE"] = str(path / "krb5"), str(path / "kdc")
    host.run("kdb5_util", "create", "-s", "-P", "secret", "-r", "LAB.TEST")


PREPARED = {"openssl": make_certificate, "ngtcp2": make_certificate, "krb5": make_realm}


@pytest.mark.parametrize("name", SERVICES)
def test_a_real_service_is_open_and_recognised(name, eager, tmp_path, monkeypatch) -> None:
    for variable in ("KRB5_CONFIG", "KRB5_KDC_PROFILE"):
        monkeypatch.setenv(variable, "")  # and back in the end
    serve(eager.target, name, tmp_path)
    port = SERVICES[name].port
    with eager.client:
        answers = probe_until_open(TARGET, port)
    answer = answers[port]
    assert re.match(SERVICES[name].expected, f"{answer.service}: {answer.evidence.text}")
    assert answer.evidence.kind == "reply"
    assert answer.rtt_ms is not None
    assert answers[9].outcome == "closed"


def probe_until_open(address: str, port: int) -> dict[int, Answer]:
    """Some daemons need a moment between having the port and answering; avahi announces its records first."""
    for _ in range(10):
        answers = scan(address, (port, 9))
        if answers[port].outcome == "open":
            break
    return answers


def test_every_version_of_snmp_is_tried_when_the_first_is_silent(eager, tmp_path) -> None:
    """A filter drops SNMPv3: a message is 0x30, length, then the version."""
    serve(eager.target, "snmpd", tmp_path)
    eager.target.nft("udp dport 161 @th,80,24 0x020103 drop")
    with eager.client:
        answer = scan(TARGET, (161, 9))[161]
    assert (answer.outcome, answer.service, answer.attempts) == ("open", "snmp", 2)
    assert (answer.evidence.text or "").startswith("SNMPv2c: Linux")


def test_over_ipv6_too(eager, tmp_path) -> None:
    serve(eager.target, "dnsmasq", tmp_path)
    with eager.client:
        assert (scan(TARGET6, [53])[53].evidence.text or "").startswith("version dnsmasq")


# --- services of the test itself, where no light daemon exists -----------------------------------------------------


class Responder:
    """Answers datagrams on ports of a namespace, from a thread; a function chooses the socket that replies."""

    def __init__(self, host: netlab.Namespace, ports: Iterable[int], answer=None) -> None:
        with host:
            self._sockets = [self._bound(port) for port in ports]
            self._other = self._bound(0)
        self._answer = answer or (lambda data, bound, other: bound)
        self._end, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run)

    @staticmethod
    def _bound(port: int) -> socket.socket:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.bind(("::", port))
        made.setblocking(False)
        return made

    def __enter__(self) -> Responder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join(10)
        for sock in (*self._sockets, self._other, self._end):
            sock.close()

    def _run(self) -> None:
        import selectors

        with selectors.DefaultSelector() as selector:
            for sock in (*self._sockets, self._end):
                selector.register(sock, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._end:
                        return
                    data, sender = key.fileobj.recvfrom(2048)
                    self._answer(data, key.fileobj, self._other).sendto(REPLY, sender)


REPLY = b"something of its own"


def test_an_unknown_reply_is_open_and_described(eager) -> None:
    with Responder(eager.target, [4000]), eager.client:
        answer = scan(TARGET, [4000])[4000]
    assert answer.outcome == "open"
    assert answer.evidence.text == "20 bytes: something of its own"


def test_an_answer_from_another_port_is_heard_for_tftp_and_ssdp_only(eager) -> None:
    """RFC 1350 section 4: a TFTP server answers from a port of its own choice."""
    with Responder(eager.target, [69, 1900, 4000], lambda data, bound, other: other), eager.client:
        answers = scan(TARGET, [69, 1900, 4000, 9], QUICK)
    assert outcomes(answers) == {9: "closed", 69: "open", 1900: "open", 4000: "open|filtered"}


def test_a_reply_to_the_first_attempt_counts_during_the_second(eager) -> None:
    """A service may take longer than the time between two attempts."""
    late = []

    def once_late(data, bound, other):
        late.append(data)
        threading.Event().wait(0.5)
        return bound

    with Responder(eager.target, [4000], once_late), eager.client:
        answer = scan(TARGET, [4000, 9])[4000]
    assert answer.outcome == "open"


# --- refusals ------------------------------------------------------------------------------------------------------

# rule of nftables: outcome, ICMP type and code over IPv4 and over IPv6
REJECTS = {
    "port-unreachable": ("closed", (3, 3), (1, 4)),
    "admin-prohibited": ("filtered", (3, 13), (1, 1)),
    "host-unreachable": ("unreachable", (3, 1), (1, 3)),
    "no-route": ("unreachable", (3, 0), (1, 0)),
}


@BOTH
def test_a_closed_port(eager, target) -> None:
    with eager.client:
        answer = scan(target, [3000])[3000]
    expected = (1, 4) if ":" in target else (3, 3)
    evidence = answer.evidence
    assert (answer.outcome, evidence.kind, evidence.sender) == ("closed", "icmp", target)
    assert (evidence.icmp_type, evidence.icmp_code) == expected
    assert evidence.error == "ECONNREFUSED"  # at any attempt: a busy machine may be late for the first


@BOTH
def test_every_kind_of_refusal(eager, target) -> None:
    eager.target.nft(*(f"udp dport {4000 + n} reject with icmpx type {kind}" for n, kind in enumerate(REJECTS)))
    with eager.client:
        answers = scan(target, range(4000, 4000 + len(REJECTS)))
    for port, (outcome, v4, v6) in zip(sorted(answers), REJECTS.values(), strict=True):
        evidence = answers[port].evidence
        assert (answers[port].outcome, evidence.kind, evidence.sender) == (outcome, "icmp", target)
        assert (evidence.icmp_type, evidence.icmp_code) == (v6 if ":" in target else v4)


@pytest.mark.parametrize(("kind", "code"), [("net-prohibited", 9), ("host-prohibited", 10), ("admin-prohibited", 13)])
def test_prohibitions_of_ipv4(eager, kind, code) -> None:
    eager.target.nft(f"ip protocol udp udp dport 4000 reject with icmp type {kind}")
    with eager.client:
        answer = scan(TARGET, [4000])[4000]
    assert (answer.outcome, answer.evidence.icmp_code) == ("filtered", code)


@pytest.mark.parametrize(("target", "router"), [(FAR_TARGET, ROUTER), (FAR_TARGET6, ROUTER6)])
def test_the_sender_of_a_routers_refusal_is_reported(target, router) -> None:
    with netlab.routed() as lab:
        rules = [f"udp dport {4000 + n} reject with icmpx type {kind}" for n, kind in enumerate(REJECTS)]
        lab.router.nft(*rules, "udp dport 4100 drop", hook="forward")
        with lab.client:
            answers = scan(target, [*range(4000, 4004), 3000, 4100])
    refused = {port: (a.outcome, a.evidence.sender) for port, a in answers.items() if a.evidence.kind == "icmp"}
    assert refused == {
        3000: ("closed", target),
        4000: ("filtered", router),  # port unreachable, but from a host that cannot know it
        4001: ("filtered", router),
        4002: ("unreachable", router),
        4003: ("unreachable", router),
    }
    assert answers[4100].outcome == "open|filtered"


def test_a_network_that_a_router_does_not_know() -> None:
    with netlab.routed() as lab:
        lab.router.run("ip", "route", "add", "unreachable", "10.79.0.0/24")
        with lab.client:
            answer = scan("10.79.0.1", [53])[53]
    assert (answer.outcome, answer.evidence.icmp_type, answer.evidence.sender) == ("unreachable", 3, ROUTER)


def test_a_neighbour_that_is_not_there(lab) -> None:
    """The kernel reports it after three address requests."""
    with lab.client:
        answers = scan("10.77.0.99", range(3000, 3010))
    assert set(outcomes(answers).values()) == {"unreachable"}
    assert {(a.evidence.icmp_type, a.evidence.icmp_code, a.evidence.sender) for a in answers.values()} == {
        (3, 1, netlab.CLIENT)
    }


@pytest.mark.parametrize(
    ("prepare", "outcome", "error"),
    [
        ((), "unreachable", "ENETUNREACH"),
        (("ip", "route", "add", "unreachable", "192.0.2.0/24"), "unreachable", "EHOSTUNREACH"),
        (("ip", "route", "add", "prohibit", "192.0.2.0/24"), "error", "EACCES"),
    ],
)
def test_no_route_on_this_machine(lab, prepare, outcome, error) -> None:
    if prepare:
        lab.client.run(*prepare)
    with lab.client:
        answer = scan("192.0.2.1", [53])[53]  # a network for documentation (RFC 5737), in a namespace without a route
    assert (answer.outcome, answer.evidence.kind, answer.evidence.error) == (outcome, "errno", error)


def test_a_firewall_of_this_machine_is_an_error(eager) -> None:
    eager.client.nft("udp dport 4000 reject", "udp dport 4001 drop", hook="output")
    with eager.client:
        answers = scan(TARGET, [4000, 4001, 9], QUICK)
    assert outcomes(answers) == {9: "closed", 4000: "error", 4001: "error"}
    assert answers[4001].evidence.error == "EPERM"


def test_a_link_local_address_with_its_zone(eager) -> None:
    address = eager.target.run("ip", "-6", "-o", "address", "show", "dev", "link0", "scope", "link").split()[3]
    with eager.client:
        named = scan(address.partition("/")[0], [3000], zone="link0")[3000]
        wrong = scan(address.partition("/")[0], [3000], zone="nosuch0")[3000]
    assert (named.outcome, named.evidence.sender) == ("closed", address.partition("/")[0])
    assert wrong.outcome == "error"


# --- silence -------------------------------------------------------------------------------------------------------


@BOTH
def test_silence_is_never_closed(lab, target) -> None:
    lab.target.nft("meta l4proto udp drop")
    tally = Tally()
    with lab.client:
        answers = scan(target, range(2000, 2020), QUICK, tally=tally)
    assert set(outcomes(answers).values()) == {"open|filtered"}
    assert {(a.evidence.kind, a.evidence.text, a.attempts, a.rtt_ms) for a in answers.values()} == {
        ("silence", None, 2, None)
    }
    assert (tally.probed, tally.repeated, tally.silent, tally.answered) == (20, 20, 20, 20)


def test_silence_is_proven_by_ports_that_are_refused(eager) -> None:
    eager.target.nft("udp dport 2000-2099 drop")
    with eager.client:
        answers = scan(TARGET, [*range(2000, 2010), *range(3000, 3030)])
    assert outcomes(answers) == dict.fromkeys(range(2000, 2010), "open|filtered") | dict.fromkeys(
        range(3000, 3030), "closed"
    )
    assert {answers[port].evidence.text for port in range(2000, 2010)} == {PROVEN}


def test_a_rate_limit_of_refusals_is_waited_for(lab, tmp_path) -> None:
    """Forty closed ports of a kernel that refuses ten a second, and silent ones among them.

    test_schedule.py has the same with more ports, with the default limits, and for IPv6.
    """
    serve(lab.target, "dnsmasq", tmp_path)
    lab.target.sysctl("net.ipv4.icmp_ratelimit", 100)  # ms; 1000 is the default
    lab.target.nft("udp dport 3015-3017 drop")
    events: list[ScanEvent] = []
    with lab.client:
        answers = scan(TARGET, [*range(3000, 3040), 53], on_event=events.append)
    expected = dict.fromkeys(range(3000, 3040), "closed") | dict.fromkeys(range(3015, 3018), "open|filtered")
    assert outcomes(answers) == {53: "open"} | expected
    assert {answers[port].evidence.text for port in range(3015, 3018)} == {PROVEN}
    assert ("rate-limit", TARGET) in {(event.kind, event.address) for event in events}


def test_lost_packets_are_made_up_for() -> None:
    """One in twenty is lost each way: of a hundred open ports and two hundred closed ones none is missed."""
    with netlab.pair(rtt_ms=20, loss=0.05) as lab:
        lab.target.sysctl("net.ipv4.icmp_ratemask", 0)
        opened = range(2000, 2300, 3)
        with Responder(lab.target, opened), lab.client:
            answers = scan(TARGET, range(2000, 2300))
    assert outcomes(answers) == {port: "open" if port in opened else "closed" for port in range(2000, 2300)}


def test_the_same_answers_as_nmap(eager, tmp_path) -> None:
    need(shutil.which("nmap") is not None, "nmap")
    serve(eager.target, "dnsmasq", tmp_path)
    eager.target.nft("udp dport 2000-2009 drop", "udp dport 2010-2019 reject with icmpx type admin-prohibited")
    ports = [53, *range(2000, 2020), *range(3000, 3010)]
    text = eager.client.run("nmap", "-n", "-Pn", "-sU", "-dd", "-p", "53,2000-2019,3000-3009", TARGET)
    referee = {int(port): state for port, state in re.findall(r"^(\d+)/udp +(\S+)", text, re.MULTILINE)}
    with eager.client:
        answers = scan(TARGET, ports)
    assert outcomes(answers) == referee


# --- the engine ----------------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def alone() -> Iterator[netlab.Namespace]:
    """A namespace with nothing but its loopback."""
    with netlab.namespace() as space:
        yield space


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_every_port_of_a_host_where_nothing_listens(alone, address) -> None:
    """A socket whose local port is the port that it probes would hear itself: it gets any of 28,000 ports."""
    tally = Tally()
    with alone:
        counts = collections.Counter(
            a.outcome for a in scan_udp((Probe("x", address, port) for port in range(1, 65536)), Limits(), tally=tally)
        )
    assert counts == {"closed": 65535}
    assert (tally.probed, tally.answered, tally.in_flight) == (65535, 65535, 0)


def test_a_socket_never_probes_itself(alone) -> None:
    """With three local ports, every third socket would."""
    alone.sysctl("net.ipv4.ip_local_port_range", "40001 40003")
    with alone:
        for _ in range(20):
            assert outcomes(scan("127.0.0.1", [40001], Limits(concurrency=1))) == {40001: "closed"}


def test_closing_leaves_no_socket(eager) -> None:
    eager.target.nft("udp dport 2000-2999 drop")
    with eager.client:
        before = descriptors()
        answers = scan_udp((Probe("x", TARGET, port) for port in itertools.cycle(range(2900, 4000))), Limits())
        assert next(answers).outcome == "closed"
        assert descriptors() > before
        answers.close()
        assert descriptors() == before


def test_an_error_of_the_caller_leaves_no_socket(alone) -> None:
    def broken() -> Iterator[Probe]:
        yield from (Probe("x", "127.0.0.1", port) for port in range(100))
        raise LookupError("no more targets")

    with alone:
        before = descriptors()
        with pytest.raises(LookupError):
            list(scan_udp(broken(), Limits()))
        assert descriptors() == before


def test_few_descriptors_are_enough(eager) -> None:
    def with_few() -> dict[str, int]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        return collections.Counter(a.outcome for a in scan(TARGET, [*range(2000, 2010), *range(3000, 4000)]).values())

    eager.target.nft("udp dport 2000-2999 drop")
    assert eager.client.call(with_few) == {"closed": 1000, "open|filtered": 10}


def test_descriptors_that_run_out_during_the_scan(alone) -> None:
    def with_fewer_and_fewer() -> tuple[dict[str, int], set[str]]:
        events: list[ScanEvent] = []
        probes = (Probe("x", "127.0.0.1", port) for port in range(30000, 32000))
        answers = scan_udp(probes, Limits(), on_event=events.append)
        first = next(answers)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() - 5, 64))
        return collections.Counter(a.outcome for a in (first, *answers)), {event.kind for event in events}

    assert alone.call(with_fewer_and_fewer) == ({"closed": 2000}, {"descriptors"})


# --- without the error queue -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["errno", "loop"])
def test_without_an_error_queue(eager, tmp_path, monkeypatch, make) -> None:
    """As on macOS and as on Windows: error numbers instead of ICMP messages."""
    import asyncio

    wires = {
        "errno": lambda: wire.SelectorWire(keeps_errors=False),
        "loop": lambda: wire.LoopWire(asyncio.SelectorEventLoop()),
    }
    monkeypatch.setattr(wire, "choose", wires[make])
    serve(eager.target, "dnsmasq", tmp_path)
    eager.target.nft("udp dport 2000 drop")
    other_port = Responder(eager.target, [69], lambda data, bound, other: other)
    before = descriptors()
    with other_port, eager.client:
        for address in (TARGET, TARGET6):
            answers = scan(address, [53, 69, 2000, 3000])
            assert outcomes(answers) == {53: "open", 69: "open", 2000: "open|filtered", 3000: "closed"}
            assert answers[3000].evidence.kind == "errno"
            assert answers[2000].evidence.text == PROVEN
            assert answers[69].attempts == 2  # the first was connected, to hear a refusal
    assert descriptors() < before


def test_the_requests_of_a_listed_port_are_those_of_the_table(eager) -> None:
    received: list[bytes] = []

    def note(data, bound, other):
        received.append(data)
        return other  # from which a connected socket receives nothing

    with Responder(eager.target, [161, 4000], note), eager.client:
        scan(TARGET, [161, 4000], QUICK)
    expected = [p.data for p in payloads.PAYLOADS if 161 in p.ports]
    assert sorted(received) == sorted([expected[0], *expected, b"", payloads.DNS_VERSION.data])
