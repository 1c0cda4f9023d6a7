"""Every finding of Linux, produced for real: its code, its evidence, and beside it a bind of the test's own."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest

import portbook
from portbook import why
from portbook.errors import SourceMissing
from portbook.system import netlink
from portbook.testing import FakeSource, child, only_sources
from portbook.verdict.linux import gather
from portbook.verdict.situation import BindRequest, Situation
from portbook.verdict.why import MOST_ROUNDS, examine
from tests import netlab
from tests.components import need
from tests.conftest import NOBODY
from tests.test_inventory import cgroup2
from tests.verdict.network import as_user, bindable, bound, connected, everywhere
from tests.verdict.verdicts import codes, finding

UDP = socket.SOCK_DGRAM


@pytest.fixture
def network():
    """An empty network that this thread is in, with a device besides loopback: 10.77.0.1, fd77::1."""
    netlab.needed()
    here, there = netlab.Namespace(), netlab.Namespace()
    try:
        netlab.join(here, there)
        here.add(netlab.CLIENT)
        here.add(netlab.CLIENT6)
        with here:
            yield here
    finally:
        here.close()
        there.close()


# --- a free port -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_free_port_can_be_bound(network, protocol):
    verdict = why(8080, protocol)
    assert (verdict.can_have, verdict.foreseen, verdict.findings, verdict.gaps) == (True, True, (), ())
    assert verdict.free == ("0.0.0.0", "[::]")
    assert [(t.port, t.ok) for t in verdict.tried] == [(8080, True)] * 2
    assert everywhere(8080, UDP if protocol == "udp" else socket.SOCK_STREAM)


def test_the_port_is_released_again(network):
    why(8080)
    assert everywhere(8080)


# --- who holds it ----------------------------------------------------------------------------------------------------


def test_a_listener_with_its_owner_and_parents(network):
    with child("one = socket.create_server(('0.0.0.0', 8080))\nsay()\nwait()\n") as server:
        verdict = why(8080)
        assert not everywhere(8080)
    assert verdict.can_have is False
    found = finding(verdict, "listener")
    assert (found.severity, found.confidence, found.endpoints) == ("blocks", "certain", ("0.0.0.0",))
    (owner,) = found.evidence["owners"]
    assert (owner["pid"], owner["user"]) == (server.pid, "root")
    assert owner["parents"][0]["pid"] == os.getpid()
    assert found.evidence["sockets"][0]["local"] == "0.0.0.0:8080"
    assert f"(pid {server.pid}, user root)" in found.text
    assert "portbook stop 8080" in found.remedy
    assert verdict.free == ("[::]",)
    assert [(t.error_name, t.step) for t in verdict.tried] == [("EADDRINUSE", "bind"), (None, None)]


def test_a_listener_of_another_user_is_named_by_its_user_at_least(network):
    with child("one = socket.create_server(('0.0.0.0', 8080))\nsay()\nwait()\n"):
        verdict = as_user(why, 8080)
    found = finding(verdict, "listener")
    assert "user root" in found.text
    assert found.evidence["owners"] == []
    assert found.remedy.startswith("to see the holder: run with sudo; or use another port")
    assert [gap.what for gap in verdict.gaps] == ["owner"]


def test_the_sockets_of_one_holder_are_one_finding(network):
    with bound(listens=True), bound("::", listens=True):
        verdict = why(8080)
    found = finding(verdict, "listener")
    assert codes(verdict) == ["listener"]
    assert (found.endpoints, found.evidence["count"]) == (("0.0.0.0", "[::]"), 2)
    assert " listens on 0.0.0.0:8080 and [::]:8080; " in found.text


def test_many_addresses_of_one_holder_are_one_finding(network):
    with ExitStack() as stack:
        for number in range(1, 30):
            stack.enter_context(bound(f"127.0.0.{number}", listens=True))
        verdict = why(8080)
    assert codes(verdict) == ["listener", "wildcard-shadow"]
    assert "and 25 more are in use" in finding(verdict, "wildcard-shadow").text


def test_a_mapped_address_is_one_of_ipv4(network):
    with bound("127.0.0.1", listens=True):
        assert codes(why(8080, address="::ffff:127.0.0.1"), "blocks") == ["listener"]
    assert why(8080, address="::ffff:127.0.0.1").can_have


def test_a_holder_of_another_pid_namespace(network):
    """As root in a container that shares the network of its host."""
    with bound(listens=True):
        source = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "src")
        ask = "import sys; sys.path.insert(0, sys.argv.pop(1)); from portbook.__main__ import main; sys.exit(main())"
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", ask, source]
        verdict = json.loads(network.run(*command, "why", "8080", "--json", check=False))
    (found,) = [f for f in verdict["findings"] if f["code"] == "listener"]
    assert "a process of another PID namespace" in found["text"]
    assert found["remedy"].startswith("to see the holder: run on the host")
    assert verdict["gaps"]


def test_a_group_of_reuseport(network):
    options = {"reuseport": True, "listens": True}
    with bound(**options), bound(**options), bound(**options):
        alone, joining, other = why(8080), why(8080, reuse_port=True), as_user(lambda: why(8080, reuse_port=True))
    found = finding(alone, "reuseport-group")
    assert (alone.can_have, found.severity, found.evidence["count"]) == (False, "blocks", 3)
    assert "set SO_REUSEPORT and run as user root" in found.remedy
    assert (joining.can_have, codes(joining)) == (True, ["reuseport-group"])
    told = finding(joining, "reuseport-group")
    assert (told.severity, told.endpoints, told.evidence["count"]) == ("shadows", ("0.0.0.0",), 3)
    assert (other.can_have, codes(other, "blocks")) == (False, ["reuseport-group"])


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "10.77.0.1"])
def test_a_bound_socket_that_does_not_listen(network, address):
    with bound(address):
        verdict = why(8080)
        assert not bindable(("0.0.0.0", 8080))
    found = finding(verdict, "bound-only")
    assert (found.severity, found.confidence) == ("blocks", "certain")  # the bind has told
    assert found.evidence["sockets"][0]["state"] == "BOUND"
    assert found.evidence["owners"][0]["pid"] == os.getpid()
    assert verdict.foreseen is None


def test_a_bound_socket_that_lets_itself_be_shared(network):
    with bound(reuse=True):
        verdict = why(8080)
        assert everywhere(8080)
    assert (verdict.can_have, finding(verdict, "bound-only").severity) == (True, "warns")


def test_a_udp_socket(network):
    with bound("127.0.0.1", 5353, kind=UDP):
        verdict = why(5353, "udp")
        assert not everywhere(5353, UDP)
        assert why(5353).can_have
    found = finding(verdict, "udp-socket")
    assert (verdict.can_have, found.endpoints) == (False, ("0.0.0.0",))
    assert found.evidence["owners"][0]["pid"] == os.getpid()


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::"])
def test_a_udp_socket_that_allows_sharing(network, address):
    """mDNS: avahi, browsers and others have 5353 together; to end one of them is no remedy."""
    with bound(address, 5353, kind=UDP, reuse=True) as holder:
        verdict = why(5353, "udp")
        holder.setblocking(False)
        place = ("::1" if ":" in address else "127.0.0.1", 5353)
        with socket.socket(holder.family, UDP) as client:
            client.sendto(b"x", place)
        assert holder.recv(1) == b"x"
        assert not everywhere(5353, UDP)
        assert bindable((address, 5353), kind=UDP) is False
        with bound(address, 5353, kind=UDP, reuse=True):
            pass  # the remedy
    found = finding(verdict, "udp-socket")
    assert (verdict.can_have, found.evidence["allows_sharing"]) == (False, True)
    assert found.remedy.startswith("set SO_REUSEADDR and join the group, as every mDNS program does")
    assert "stop" not in found.remedy


def test_asking_a_udp_socket_whether_it_shares_takes_nothing_from_it(network):
    """Of several sockets the last one gets the datagrams: none may be lost to the one that asks."""
    end = threading.Event()
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    sent = 0

    def send():
        nonlocal sent
        assert ctypes.CDLL(None).setns(namespace, 0x40000000) == 0
        with socket.socket(socket.AF_INET, UDP) as client:
            while not end.is_set() and sent < 50_000:
                sent += client.send(b"x") if sent else client.sendto(b"x", ("127.0.0.1", 5353))
                if sent == 1:
                    client.connect(("127.0.0.1", 5353))

    with bound("0.0.0.0", 5353, kind=UDP, reuse=True) as holder:
        holder.setsockopt(socket.SOL_SOCKET, 33, 1 << 28)  # SO_RCVBUFFORCE
        thread = threading.Thread(target=send)
        thread.start()
        try:
            for _ in range(10):
                assert finding(why(5353, "udp"), "udp-socket").evidence["allows_sharing"]
        finally:
            end.set()
            thread.join()
            os.close(namespace)
        holder.setblocking(False)
        received = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                received += len(holder.recv(1))
    assert received == sent > 0


def test_a_real_avahi(network, tmp_path):
    daemon = "/usr/sbin/avahi-daemon"
    need(os.path.exists(daemon), "avahi-daemon")
    configuration = tmp_path / "avahi.conf"
    configuration.write_text("[server]\nenable-dbus=no\nuse-ipv6=no\n[publish]\n")
    os.makedirs("/run/avahi-daemon", exist_ok=True)
    network.start(daemon, "-f", str(configuration), "--no-drop-root", "--no-chroot", "--no-rlimits", "--no-proc-title")
    network.wait_for(5353, "udp")
    found = finding(why(5353, "udp"), "udp-socket")
    assert "avahi-daemon" in found.text
    assert found.remedy.startswith("set SO_REUSEADDR and join the group")


def test_a_udp_port_of_another_kind_that_allows_sharing(network):
    with bound("127.0.0.1", 8125, kind=UDP, reuse=True):
        found = finding(why(8125, "udp"), "udp-socket")
    assert found.remedy.startswith("set SO_REUSEADDR to share the port")
    assert "else end the holder: portbook stop 8125/udp" in found.remedy


def test_a_connection_whose_end_it_is(network):
    """A client may have any port by chance; here it bound it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, bound("127.0.0.1", 8080) as client:
        client.connect(listener.getsockname())
        verdict = why(8080)
        assert not everywhere(8080)
    found = finding(verdict, "connection")
    assert (verdict.can_have, found.severity, found.endpoints) == (False, "blocks", ("0.0.0.0",))
    assert found.evidence["sockets"][0]["remote"] == f"127.0.0.1 {listener_port(found)}"
    assert found.evidence["owners"][0]["pid"] == os.getpid()


def listener_port(found):
    return int(found.evidence["sockets"][0]["remote"].split()[1])


def test_a_connection_that_its_process_does_not_close(network):
    """CLOSE_WAIT has no limit of time: only the process can end it."""
    with connected(bound(listens=True)) as (client, _accepted):
        client.close()
        wait_for_state(network, "close-wait")
        verdict = why(8080)
        assert not everywhere(8080)
    found = finding(verdict, "connection")
    assert found.evidence["sockets"][0]["state"] == "CLOSE_WAIT"
    assert "in CLOSE_WAIT: its peer has closed, the process has not" in found.text
    assert found.remedy.startswith("only the process can end it")
    assert f"end pid {os.getpid()}" in found.remedy


def test_a_connection_whose_process_has_shut_down_its_side(network):
    with connected(bound(listens=True)) as (client, accepted):
        accepted.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        wait_for_state(network, "fin-wait-2")
        found = finding(why(8080), "connection")
    assert "in FIN_WAIT2: the process has shut down its side, its peer has not closed" in found.text
    assert found.remedy.startswith("wait")


def test_connections_of_a_listener_are_not_reported_beside_it(network):
    with bound(listens=True) as listener, connected(listener, keep=True):
        assert codes(why(8080)) == ["listener"]


def test_connections_that_outlive_their_listener(network):
    with connected(bound(listens=True)):
        verdict = why(8080)
        assert not everywhere(8080)
    assert (verdict.can_have, codes(verdict, "blocks")) == (False, ["connection"])


def test_time_wait_and_how_long_it_lasts(network):
    with connected(bound(listens=True)) as (client, accepted):
        accepted.shutdown(socket.SHUT_WR)
        client.recv(1)
    verdict = why(8080)
    assert not everywhere(8080)
    found = finding(verdict, "time-wait")
    assert (verdict.can_have, found.severity, found.evidence["owners"]) == (False, "blocks", [])
    (told,) = found.evidence["sockets"]
    seen = network.run("ss", "-Htano", "state", "time-wait", "sport", "=", ":8080")
    (seconds,) = [word for word in seen.replace("timer:(timewait,", " ").split() if word.endswith("sec,0)")]
    assert 0 <= told["ends_in_ms"] / 1000 - int(seconds.removesuffix("sec,0)")) < 5  # ss asked later
    assert found.evidence["longest_ms"] == told["ends_in_ms"] <= 60_000  # TCP_TIMEWAIT_LEN
    assert "SO_REUSEADDR helps only if the closed socket had set it too" in found.remedy


def test_time_wait_of_a_careful_server_is_passed_over(network):
    with connected(bound(listens=True, reuse=True)) as (client, accepted):
        accepted.shutdown(socket.SHUT_WR)
        client.recv(1)
    careful, careless = why(8080), why(8080, reuse_address=False)
    assert (careful.can_have, finding(careful, "time-wait").severity) == (True, "warns")
    assert (careless.can_have, finding(careless, "time-wait").severity) == (False, "blocks")
    assert finding(careless, "time-wait").remedy.startswith("set SO_REUSEADDR")
    assert everywhere(8080)
    assert not bindable(("0.0.0.0", 8080), reuse=False)


def test_an_orphan_without_an_owner(network):
    with connected(bound(listens=True)) as (client, accepted):
        accepted.close()
        assert client.recv(1) == b""  # and the client does not close
        wait_for_state(network, "fin-wait-2")
        verdict = why(8080)
        assert not everywhere(8080)
    found = finding(verdict, "orphan")
    assert (verdict.can_have, found.severity) == (False, "blocks")
    assert (found.evidence["owners"], found.evidence["sockets"][0]["state"]) == ([], "FIN_WAIT2")
    assert 0 < found.evidence["longest_ms"] <= 60_000  # tcp_fin_timeout
    assert "has no owner" in found.text


def wait_for_state(network, state):
    for _ in range(200):
        if network.run("ss", "-Htan", "state", state, "sport", "=", ":8080").strip():
            return
        time.sleep(0.01)
    raise AssertionError(f"no socket in {state}")


MANAGER = """
import json, os, socket, subprocess, sys
port, source = int(sys.argv[1]), sys.argv[2]
with open("/proc/self/comm", "w") as file:
    file.write("systemd")
listener = socket.create_server(("127.0.0.1", port))
def hand_over():
    os.dup2(listener.fileno(), 3)
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
service = subprocess.Popen(
    [sys.executable, "-c", "import socket; one = socket.socket(fileno=3); print(one, flush=True); input()"],
    preexec_fn=hand_over, pass_fds=[3], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
service.stdout.readline()
ask = "import sys; sys.path.insert(0, sys.argv.pop(1)); from portbook.__main__ import main; sys.exit(main())"
done = subprocess.run([sys.executable, "-c", ask, source, "why", str(port), "--json"], capture_output=True)
print(json.dumps([service.pid, done.returncode, done.stdout.decode(), done.stderr.decode()]))
service.kill()
"""


def run_manager(before: str = "") -> tuple[int, int, dict]:
    """The stand-in for systemd is pid 1 of a pid namespace; it passes its socket on, as sd_listen_fds(3) wants it."""
    source = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "src")
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    script = f'{before}exec "$@"'
    arguments = [sys.executable, "-c", MANAGER, "8080", source]
    done = subprocess.run(
        [*command, "sh", "-c", script, "sh", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    service, code, printed, complaint = json.loads(done.stdout)
    assert printed, complaint
    return service, code, json.loads(printed)


def test_a_socket_that_a_service_manager_holds_for_a_service(network):
    service, code, verdict = run_manager()
    (found,) = [f for f in verdict["findings"] if f["code"] == "socket-activation"]
    assert (code, verdict["can_have"], found["severity"]) == (1, False, "blocks")
    assert {owner["pid"] for owner in found["evidence"]["owners"]} == {1, service}
    assert found["evidence"]["manager"] == 1
    assert f"(pid {service})" in found["text"]
    assert "systemctl" in found["remedy"]


def test_the_unit_of_an_activated_socket_by_its_cgroup(network):
    """systemd makes the socket in the cgroup of its unit; the stand-in is in it altogether."""
    need(cgroup2() is not None, "a cgroup2 file system to make a cgroup in")
    directory = f"{cgroup2()}/portbook-demo.socket"
    os.mkdir(directory)
    try:
        _, _, verdict = run_manager(f"echo $$ > {directory}/cgroup.procs; ")
    finally:
        for _ in range(200):  # its last process may not be reaped yet
            try:
                os.rmdir(directory)
            except OSError:
                time.sleep(0.02)
            else:
                break
    (found,) = [f for f in verdict["findings"] if f["code"] == "socket-activation"]
    assert found["evidence"]["unit"] == "portbook-demo.socket"
    assert found["remedy"].startswith("systemctl stop portbook-demo.socket")


# --- addresses -------------------------------------------------------------------------------------------------------


def test_a_single_address_against_the_wildcard(network):
    with bound("127.0.0.1", listens=True):
        verdict, other = why(8080), why(8080, address="10.77.0.1")
        assert bindable(("10.77.0.1", 8080))
        assert not bindable(("0.0.0.0", 8080))
    found = finding(verdict, "wildcard-shadow")
    assert (verdict.taken, verdict.free) == (("0.0.0.0",), ("[::]",))
    assert found.severity == "shadows"
    assert (found.evidence["free"], found.evidence["taken"]) == (["10.77.0.1"], ["0.0.0.0", "127.0.0.1"])
    assert "10.77.0.1" in found.remedy
    assert (other.can_have, codes(other)) == (True, ["other-address"])


def test_the_wildcard_against_a_single_address(network):
    with bound(listens=True):
        verdict = why(8080, address="127.0.0.1")
        assert not bindable(("127.0.0.1", 8080))
    assert (
        "0.0.0.0:8080 is bound to every address, which includes 127.0.0.1" in finding(verdict, "wildcard-shadow").text
    )
    assert codes(verdict) == ["listener", "wildcard-shadow"]


def test_ipv6_without_v6only_takes_the_port_of_ipv4(network):
    with bound("::", listens=True, v6only=False):
        verdict = why(8080)
        assert not bindable(("0.0.0.0", 8080))
    assert verdict.taken == ("0.0.0.0", "[::]")
    found = finding(verdict, "dual-stack-shadow")
    assert found.endpoints == ("0.0.0.0",)
    assert found.evidence["holders"] == ["[::]:8080"]
    assert finding(verdict, "listener").evidence["sockets"][0]["v6only"] is False


def test_a_dual_stack_socket_asks_for_both(network):
    with bound(listens=True):
        verdict = why(8080, dual=True)
        assert bindable(("::", 8080))
    found = finding(verdict, "dual-stack-shadow")
    assert (verdict.can_have, verdict.taken) == (False, ("[::]",))
    assert found.evidence["free"] == ["[::]", "[::1]", "[fd77::1]"]


def test_a_single_ipv6_address_never_blocks_ipv4(network):
    with bound("::1", listens=True, v6only=False):
        verdict = why(8080, address="0.0.0.0")
        assert bindable(("0.0.0.0", 8080))
    assert (verdict.can_have, codes(verdict)) == (True, ["other-address"])


def test_the_ipv6_end_of_a_connection_blocks_the_ipv4_wildcard(network):
    """A peculiarity of Linux: to IPv4 it is 127.0.0.6 (LOOPBACK4_IPV6 in the kernel)."""
    listener = bound("::", listens=True, v6only=False)
    with connected(listener):
        verdict = why(8080, address="0.0.0.0")
        assert not bindable(("0.0.0.0", 8080))
        assert bindable(("127.0.0.1", 8080))
    assert (verdict.can_have, codes(verdict, "blocks")) == (False, ["connection"])


def test_an_address_that_is_not_on_this_machine(network):
    for address in ("192.0.2.1", "2001:db8::1"):
        verdict = why(8080, address=address)
        found = finding(verdict, "address-not-local")
        assert (verdict.can_have, found.severity, found.evidence["address"]) == (False, "blocks", address)
        assert {"127.0.0.1", "10.77.0.1", "fd77::1"} <= set(found.evidence["mine"])
        assert verdict.tried[0].error_name == "EADDRNOTAVAIL"
        assert not bindable((address, 8080))


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_it_can_be_bound_where_the_administrator_allows_it(network, address):
    network.sysctl(f"net.ipv{6 if ':' in address else 4}.ip_nonlocal_bind", 1)
    verdict = why(8080, address=address)
    assert (verdict.can_have, finding(verdict, "address-not-local").severity) == (True, "warns")
    assert bindable((address, 8080))


@pytest.mark.parametrize("address", ["127.0.0.9", "127.255.255.254", "10.77.0.1", "fd77::1", "::1", "0.0.0.0"])
def test_addresses_of_this_machine(network, address):
    assert why(8080, address=address).findings == ()


def test_a_local_route_makes_addresses_of_ipv4(network):
    network.run("ip", "route", "add", "local", "198.51.100.0/24", "dev", "lo")
    assert why(8080, address="198.51.100.7").findings == ()
    assert bindable(("198.51.100.7", 8080))


def test_an_address_that_ipv6_is_still_checking(network):
    network.sysctl("net.ipv6.conf.link0.accept_dad", 1)
    network.sysctl("net.ipv6.conf.all.accept_dad", 1)
    network.sysctl("net.ipv6.neigh.link0.retrans_time_ms", 60_000)
    network.run("ip", "address", "add", "fd77::5/64", "dev", "link0")
    verdict = why(8080, address="fd77::5")
    assert not bindable(("fd77::5", 8080))
    found = finding(verdict, "address-tentative")
    assert (verdict.can_have, found.severity) == (False, "blocks")
    assert found.evidence == {"address": "fd77::5", "interface": "link0"}


@pytest.mark.parametrize(
    ("address", "protocol", "severity", "kind"),
    [
        ("224.0.0.251", "tcp", "warns", "multicast"),
        ("224.0.0.251", "udp", "warns", "multicast"),
        ("10.77.0.255", "tcp", "warns", "broadcast"),
        ("10.77.0.255", "udp", "warns", "broadcast"),
        ("255.255.255.255", "udp", "warns", "broadcast"),
        ("ff15::1", "tcp", "blocks", "multicast"),
        ("ff15::1", "udp", "warns", "multicast"),
    ],
)
def test_addresses_of_many(network, address, protocol, severity, kind):
    verdict = why(8080, protocol, address=address)
    found = finding(verdict, "not-unicast")
    assert (found.severity, found.evidence["kind"]) == (severity, kind)
    assert codes(verdict) == ["not-unicast"]
    assert verdict.can_have is bindable((address, 8080), kind=UDP if protocol == "udp" else socket.SOCK_STREAM)
    assert verdict.can_have is (severity == "warns")


def test_multicast_of_a_link_needs_its_interface(network):
    verdict = why(8080, "udp", address="ff02::fb")
    assert (verdict.can_have, codes(verdict, "blocks")) == (False, ["address-not-local"])
    assert "link-local multicast address and needs an interface" in finding(verdict, "address-not-local").text
    assert why(8080, "udp", address="ff02::fb%link0").can_have


def test_a_listener_whose_address_has_gone(network):
    with bound("10.77.0.1", listens=True):
        network.run("ip", "address", "del", "10.77.0.1/24", "dev", "link0")
        found = finding(why(8080), "listener")
    assert "no interface has 10.77.0.1 any longer" in found.text


def test_ipv6_switched_off(network):
    network.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    verdict, loopback = why(8080), why(8080, address="::1")
    found = finding(verdict, "ipv6-disabled")
    assert (verdict.can_have, found.severity, found.evidence) == (True, "warns", {"ipv6": "disabled"})
    assert everywhere(8080)
    assert (loopback.can_have, codes(loopback, "blocks")) == (False, ["address-not-local"])


# --- privilege and ranges --------------------------------------------------------------------------------------------


def test_a_privileged_port(network):
    verdict = as_user(why, 80)
    found = finding(verdict, "privileged-port")
    assert (verdict.can_have, found.severity, found.endpoints) == (False, "blocks", ("0.0.0.0", "[::]"))
    assert found.evidence == {
        "net.ipv4.ip_unprivileged_port_start": 1024, "uid": NOBODY, "CAP_NET_BIND_SERVICE": False
    }  # fmt: skip
    assert "CAP_NET_BIND_SERVICE" in found.remedy
    assert "ip_unprivileged_port_start=80" in found.remedy
    assert {t.error_name for t in verdict.tried} == {"EACCES"}
    assert not as_user(everywhere, 80)
    assert why(80).can_have  # as root


def test_the_remedy_for_a_privileged_port_works(network):
    network.sysctl("net.ipv4.ip_unprivileged_port_start", 80)
    assert as_user(why, 80).findings == ()
    assert codes(as_user(why, 79)) == ["privileged-port"]
    assert as_user(everywhere, 80)


def test_a_capability_of_another_user_namespace_does_not_count(network):
    def inside():
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x10000000) == 0  # CLONE_NEWUSER
        return why(80), everywhere(80)

    verdict, had = as_user(inside)
    found = finding(verdict, "privileged-port")
    assert (verdict.can_have, had, found.severity) == (False, False, "blocks")
    assert found.evidence["CAP_NET_BIND_SERVICE"] is True
    assert "user namespace" in found.text


def test_in_a_user_namespace_only_what_works_there_is_a_remedy(network):
    """As root of a rootless container that shares the host's network."""

    def inside():
        assert ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0  # CLONE_NEWUSER
        return finding(why(80), "privileged-port").remedy

    remedy = as_user(inside)
    assert "setcap" not in remedy
    assert "AmbientCapabilities" not in remedy
    assert "net.ipv4.ip_unprivileged_port_start=80 set from outside this container" in remedy


def test_a_setting_that_can_be_changed_here_is_a_remedy_without_sudo(network):
    """As root of a container with a network of its own and without capabilities to bind."""
    bounding = "setpriv --bounding-set -net_bind_service --inh-caps -net_bind_service"
    ask = f"{sys.executable} -m portbook why 80 --json"
    script = f"{bounding} {ask}; sysctl -qw net.ipv4.ip_unprivileged_port_start=80; {bounding} {ask}"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(portbook.__path__[0])}
    done = subprocess.run(
        ["unshare", "-r", "-n", "sh", "-c", f"ip link set lo up; {script}"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    before, after = map(json.loads, done.stdout.splitlines())
    (found,) = [f for f in before["findings"] if f["code"] == "privileged-port"]
    assert (before["can_have"], after["can_have"]) == (False, True)
    assert "for all users, sysctl net.ipv4.ip_unprivileged_port_start=80" in found["remedy"]
    assert "setcap" not in found["remedy"]


PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE = 24, 10


@pytest.mark.parametrize("option", [(38, 1), (PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE)], ids=["no_new_privs", "bounding"])
def test_setcap_is_no_remedy_where_it_has_no_effect(network, option):
    """What a process gives up for good: prctl(2)."""

    def inside():
        assert ctypes.CDLL(None, use_errno=True).prctl(*option, 0, 0, 0) == 0
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return finding(why(80), "privileged-port").remedy

    remedy = netlab.call(inside)
    assert "setcap" not in remedy
    assert "AmbientCapabilities" in remedy
    assert "setcap" in finding(as_user(why, 80), "privileged-port").remedy


def test_in_a_container_without_capabilities(network):
    """/proc/sys is read-only there, and no unit of systemd is of use."""

    def inside():
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x00020000) == 0  # CLONE_NEWNS
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "--bind", "/proc/sys", "/proc/sys"], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", "/proc/sys"], check=True)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return finding(why(80), "privileged-port").remedy, finding(why(8080, address="192.0.2.1"), "address-not-local")

    privileged, foreign = netlab.call(inside)
    assert privileged.startswith("start the container with --cap-add NET_BIND_SERVICE; or, for all users, ")
    assert "--sysctl net.ipv4.ip_unprivileged_port_start=80" in privileged
    assert "net.ipv4.ip_nonlocal_bind=1 set from outside this container" in foreign.remedy


def test_a_port_of_the_ephemeral_range(network):
    network.sysctl("net.ipv4.ip_local_port_range", "8000 8999")
    verdict = why(8080)
    found = finding(verdict, "ephemeral-port")
    assert (verdict.can_have, found.severity, found.evidence) == (True, "warns", {"first": 8000, "last": 8999})
    assert codes(why(9000)) == []


def test_a_reserved_port(network):
    network.sysctl("net.ipv4.ip_local_port_range", "8000 8999")
    network.sysctl("net.ipv4.ip_local_reserved_ports", "8080-8081,8500")
    verdict = why(8080)
    assert (verdict.can_have, codes(verdict)) == (True, ["reserved-port"])
    assert finding(verdict, "reserved-port").evidence == {"first": 8080, "last": 8081}
    remedy = finding(why(8090), "ephemeral-port").remedy
    assert remedy.endswith("ip_local_reserved_ports=8080-8081,8500,8090")  # it replaces the list


# --- devices and NAT -------------------------------------------------------------------------------------------------


def test_a_socket_of_one_device_keeps_the_port_from_all(network):
    with bound(device=b"link0", listens=True):
        verdict = why(8080)
        assert not everywhere(8080)
        with bound(device=b"lo", listens=True):
            pass  # the remedy
    found = finding(verdict, "device-bound")
    assert (verdict.can_have, found.severity, found.evidence["interface"]) == (False, "shadows", "link0")
    assert finding(verdict, "listener").evidence["sockets"][0]["interface"] == "link0"


def test_link_local_addresses_are_bound_by_their_zone(network):
    shown = network.run("ip", "-o", "-6", "address", "show", "dev", "link0", "scope", "link")
    (address,) = [line.split()[3].split("/")[0] for line in shown.splitlines()]
    number = socket.if_nametoindex("link0")
    for zone in ("link0", str(number)):
        assert why(8080, address=f"{address}%{zone}").can_have
    with socket.socket(socket.AF_INET6) as one:
        one.bind((address, 8080, 0, number))
        one.listen()
        for zone in ("link0", str(number)):
            assert codes(why(8080, address=f"{address}%{zone}"), "blocks") == ["listener"]
    assert codes(why(8080, address=f"{address}%lo"), "blocks") == ["address-not-local"]  # not of that interface
    without = why(8080, address=address)
    assert (without.can_have, codes(without)) == (False, ["address-not-local"])
    assert finding(without, "address-not-local").remedy == f"write {address}%link0"
    assert why(8080, address=f"{address}%nonesuch").can_have is False


DNAT = "tcp dport 8080 dnat ip to 10.77.0.2:80"


def nat(network, *rules, hook="prerouting"):
    need(shutil.which("nft") is not None, "nft (package nftables)")
    lines = ["table inet portbook {", f"chain {hook} {{", f"type nat hook {hook} priority -100;", *rules, "}", "}", ""]
    network.run("nft", "-f", "-", text="\n".join(lines))


def test_a_published_port_that_has_nat_rules_only(network):
    nat(network, DNAT)
    verdict = why(8080)
    found = finding(verdict, "nat-rule")
    assert (verdict.can_have, found.severity, found.confidence) == (True, "shadows", "certain")
    assert (found.evidence["to_address"], found.evidence["to_port"]) == ("10.77.0.2", 80)
    assert (found.evidence["rules"][0]["hook"], found.evidence["rules"][0]["tool"]) == ("prerouting", "nft")
    assert everywhere(8080)
    assert why(8081).findings == ()
    assert why(8080, "udp").findings == ()
    assert why(8080, address="::1").findings == ()
    assert why(8080, address="127.0.0.1").findings == ()  # nothing comes there from outside


def test_nat_really_takes_the_packets_away(network):
    """The effect that the finding describes, seen by a client."""
    nat(network, "tcp dport 8080 redirect to :9090")
    with bound("127.0.0.1", 8080, listens=True) as asked, bound("127.0.0.1", 9090, listens=True) as gets:
        nat_output = "add table ip more; add chain ip more output { type nat hook output priority -100; }"
        network.run("nft", f"{nat_output}; add rule ip more output tcp dport 8080 redirect to :9090")
        found = finding(why(8080, address="127.0.0.1"), "nat-rule")
        assert (found.evidence["to_address"], found.evidence["to_port"]) == (None, 9090)
        with socket.create_connection(("127.0.0.1", 8080)):
            gets.settimeout(10)
            gets.accept()[0].close()
            asked.setblocking(False)
            with pytest.raises(BlockingIOError):
                asked.accept()


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_rules_of_iptables(network, variant):
    tool = f"iptables-{variant}"
    need(shutil.which(tool) is not None, f"{tool} (package iptables)")
    network.run(tool, "-t", "nat", "-N", "DOCKER")
    network.run(tool, "-t", "nat", "-A", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "DOCKER")
    rule = ["-p", "tcp", "--dport", "8080", "-j", "DNAT", "--to-destination", "172.17.0.2:80"]
    network.run(tool, "-t", "nat", "-A", "DOCKER", "!", "-i", "docker0", *rule)
    found = finding(why(8080), "nat-rule")
    assert (found.evidence["to_address"], found.evidence["to_port"], found.confidence) == ("172.17.0.2", 80, "certain")
    assert found.evidence["rules"][0]["chain"] == "DOCKER"
    assert why(8081).findings == ()


def test_nat_rules_that_cannot_be_read_are_a_gap_where_some_may_exist(network):
    nat(network, DNAT)
    assert as_user(why, 8080).gaps == ()  # no bridge of a container runtime
    network.run("ip", "link", "add", "docker0", "type", "bridge")
    (gap,) = as_user(why, 8080).gaps
    assert (gap.what, gap.hint) == ("nat", "run with sudo")


# --- relays ----------------------------------------------------------------------------------------------------------


def test_docker_proxy_and_its_container(network):
    need(shutil.which("docker-proxy") is not None, "docker-proxy (Debian: docker.io)")
    options = ["-proto", "tcp", "-host-ip", "127.0.0.1", "-host-port", "8080", "-container-ip", "172.17.0.2"]
    script = 'exec docker-proxy "$@" 3>/dev/null'  # it reports on descriptor 3 that it listens
    network.start("/bin/sh", "-c", script, "sh", *options, "-container-port", "80")
    network.wait_for(8080)
    verdict = why(8080)
    found = finding(verdict, "relay")
    assert (found.severity, found.evidence["program"]) == ("shadows", "docker-proxy")
    assert (found.evidence["address"], found.evidence["port"]) == ("172.17.0.2", 80)
    assert "docker ps --filter publish=8080" in found.remedy
    assert codes(verdict, "blocks") == ["listener"]


def test_a_real_ssh_forward(network, tmp_path):
    need(all(map(os.path.exists, ("/usr/sbin/sshd", "/usr/bin/ssh"))), "sshd and ssh (package openssh-server)")
    os.makedirs("/run/sshd", exist_ok=True)
    key, config = tmp_path / "key", tmp_path / "config"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    config.write_text(f"AuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n")
    options = ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/known", "-i", str(key)]
    network.start("/usr/sbin/sshd", "-D", "-f", str(config), "-h", str(key), "-p", "2222")
    network.wait_for(2222)
    network.start(
        "/usr/bin/ssh", "-F", "none", "-N", "-p2222", *options, "-L", "127.0.0.1:8080:db:5432", "root@127.0.0.1"
    )
    network.wait_for(8080)
    found = finding(why(8080), "relay")
    assert (found.evidence["program"], found.evidence["to"]) == ("ssh", "db:5432 through root@127.0.0.1")
    network.start("/usr/bin/ssh", "-F", "none", "-N", "-p2222", *options, "-R", "8081:web:80", "root@127.0.0.1")
    network.wait_for(8081)
    found = finding(why(8081), "relay")
    assert found.evidence["program"] in {"sshd", "sshd-session"}  # before and since OpenSSH 9.8
    assert "SSH client of root" in found.text


# --- where nothing is certain ----------------------------------------------------------------------------------------


def test_an_unexplained_error_is_reported_with_its_number(network):
    looked = []

    def blind(asked: BindRequest) -> Situation:
        looked.append(asked)
        return Situation("linux", asked.port)

    with bound(listens=True):
        verdict = examine(BindRequest(8080), blind)
    found = finding(verdict, "unexplained")
    assert (verdict.can_have, found.severity, found.endpoints) == (False, "blocks", ("0.0.0.0",))
    assert found.evidence == {"error": 98, "error_name": "EADDRINUSE", "step": "bind"}
    assert len(looked) == MOST_ROUNDS


def test_a_holder_that_went_between_the_look_and_the_bind_is_looked_for_again(network):
    """What was read first is no longer true; the second reading agrees with the second bind."""
    seen = []

    def late(asked: BindRequest) -> Situation:
        with bound(listens=True) if not seen else contextlib.nullcontext():
            seen.append(gather(asked))
        return seen[-1]

    verdict = examine(BindRequest(8080), late)
    assert (verdict.can_have, verdict.findings, len(seen)) == (True, (), 2)
    assert seen[0].sockets


def test_an_address_of_ipv4_as_ipv6_writes_it(network):
    """Servers in Java and Node listen so."""
    asked = {"address": "::ffff:127.0.0.1"}
    assert why(8080, **asked).can_have
    with bound("127.0.0.1", listens=True):
        assert codes(why(8080, **asked)) == ["listener"]
    with bound("::ffff:127.0.0.1", v6only=False, listens=True):
        assert codes(why(8080, **asked)) == codes(why(8080, address="127.0.0.1")) == ["listener"]
        assert why(8080, address="::1").can_have


LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # system calls, of every architecture
LANDLOCK_CREATE_RULESET_VERSION = LANDLOCK_ACCESS_NET_BIND_TCP = 1  # linux/landlock.h
PR_SET_NO_NEW_PRIVS = 38


def test_a_security_module_that_forbids_the_bind_invisibly(network):
    """landlock(7): from version 4 on, a process can give up binding TCP ports, which is not visible from outside."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    need(version >= 4, "a kernel with Landlock, Linux 6.7")

    def confined():
        attributes = (ctypes.c_uint64 * 2)(0, LANDLOCK_ACCESS_NET_BIND_TCP)
        rules = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, 16, 0)
        assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0
        return why(8080), everywhere(8080), why(8080, "udp")

    verdict, had, udp = netlab.call(confined)
    assert (verdict.can_have, verdict.foreseen, had, udp.can_have) == (False, True, False, True)
    assert codes(verdict) == ["unexplained", "unexplained"]
    assert verdict.findings[0].evidence == {"error": 13, "error_name": "EACCES", "step": "bind"}
    assert "Landlock" in verdict.findings[0].remedy


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.EPERM, errno.ENOMEM])
def test_a_kernel_that_does_not_answer_is_a_gap_and_the_bind_still_tells(network, monkeypatch, error):
    real = netlink.Channel

    def refuse(protocol, *limits):
        if protocol == netlink.SOCK_DIAG:  # the sockets are read by the same means
            return real(protocol, *limits)
        raise OSError(error, os.strerror(error))

    network.run("ip", "link", "add", "docker0", "type", "bridge")
    with bound("127.0.0.1", listens=True, device=b"lo"):
        monkeypatch.setattr(netlink, "Channel", refuse)
        held, free = why(8080, address="127.0.0.1"), why(8081, address="127.0.0.1")
    assert (held.can_have, codes(held, "blocks")) == (False, ["listener"])
    assert {gap.what for gap in held.gaps} == {"address", "interface", "nat"}
    assert (free.can_have, {gap.what for gap in free.gaps}) == (True, {"address", "nat"})


@pytest.mark.parametrize("error", [errno.EPROTONOSUPPORT, errno.EINVAL])
def test_a_kernel_without_nf_tables_has_no_nat_of_it(network, monkeypatch, error):
    real = netlink.Channel

    def refuse(protocol, *limits):
        if protocol == netlink.SOCK_DIAG:  # the sockets are read by the same means
            return real(protocol, *limits)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(netlink, "Channel", refuse)
    assert why(8080) == why(8080)
    assert why(8080).gaps == ()


def test_a_machine_that_cannot_be_read_is_a_gap_and_the_bind_still_tells(network):
    fake = FakeSource(fails=SourceMissing("nothing works here"))
    with only_sources(fake), bound(listens=True):
        verdict = why(8080)
    assert (verdict.can_have, codes(verdict, "blocks")) == (False, ["unexplained"])
    assert "nothing works here" in verdict.gaps[0].why


def test_a_process_without_descriptors_cannot_find_out(network):
    def starved():
        why(8080)  # everything is imported
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        return why(8080)

    verdict = netlab.call(starved)
    assert verdict.can_have is None
    assert {t.error_name for t in verdict.tried} == {"EMFILE"}
    assert verdict.gaps


def test_while_holders_come_and_go(network):
    """Every answer is a verdict with a reason: never an exception, never a no without a finding."""
    end = threading.Event()

    def come_and_go():
        while not end.is_set():
            with ExitStack() as stack:
                try:
                    listener = stack.enter_context(bound(listens=True))
                    stack.enter_context(connected(listener))
                except OSError:
                    time.sleep(0.0005)

    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def inside():
        assert ctypes.CDLL(None).setns(namespace, 0x40000000) == 0
        come_and_go()

    threads = [threading.Thread(target=inside) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        verdicts = [why(8080) for _ in range(150)]
    finally:
        end.set()
        for thread in threads:
            thread.join()
        os.close(namespace)
    for verdict in verdicts:
        assert verdict.can_have is all(t.ok for t in verdict.tried)
        assert verdict.can_have or codes(verdict, "blocks")
