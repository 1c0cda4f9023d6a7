"""Every command with every spelling of a port. What is right comes from sockets that the test has opened.

As root on Linux in a network of the module's own, so that the ports of services are free; elsewhere on any port.
"""

from __future__ import annotations

import json
import sys

import pytest

import portbook
from portbook import testing
from portbook.__main__ import main
from portbook.errors import UsageError
from portbook.stop.run import plan_stop
from tests.components import need
from tests.conftest import ROOT, unheld_port

OWN = sys.platform == "linux" and ROOT
SERVER = """
port, free = int(sys.argv[1]), int(sys.argv[2])
tcp = [socket.create_server(("127.0.0.1", port)), socket.create_server(("::1", port), family=socket.AF_INET6)]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", free))
def reply():
    while True:
        data, peer = udp.recvfrom(65535)
        udp.sendto(data, peer)
threading.Thread(target=reply, daemon=True).start()
say()
wait()
"""


@pytest.fixture(scope="module")
def server(own_network):
    """The port of a TCP server on both loopback addresses, another that only UDP has, and the pid of both."""
    tcp, udp = (80, 53) if OWN else (unheld_port(), unheld_port())
    with testing.child(SERVER, str(tcp), str(udp)) as child:
        yield tcp, udp, child.pid


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command in this process: its exit code, and what it wrote."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["portbook", *words])
        code = main()
        written = capfd.readouterr()
        return code, written.out, written.err

    return call


# Spellings of a TCP port that is held on 127.0.0.1 and ::1.
HELD = [
    "{port}",
    ":{port}",
    "*:{port}",
    "{port}/tcp",
    "tcp:{port}",
    "{port}-{port}",
    "localhost:{port}",
    "127.0.0.1:{port}",
    "[::1]:{port}",
    "localhost:{port}/tcp",
    "http://localhost:{port}/path?query",
    "tcp://127.0.0.1:{port}",
]
NAMED = ["http", "HTTP", "www", "http/tcp", "localhost:http", "http://localhost/"]  # of port 80
HELD += NAMED


@pytest.fixture(params=HELD)
def written(request, server):
    if request.param in NAMED:
        need(OWN, "root on Linux, for port 80")
    return request.param.format(port=server[0])


def test_list(run, server, written):
    tcp, _, pid = server
    code, out, _ = run("list", written, "--json")
    sockets = json.loads(out)["sockets"]
    assert code == 0
    assert {(s["local_port"], s["protocol"]) for s in sockets} == {(tcp, "tcp")}
    assert all(owner["pid"] == pid for s in sockets for owner in s["owners"])


def test_portbook_alone(run, server, written):
    assert run(written, "--json")[1].count(f'"local_port":{server[0]},') in (1, 2)


@pytest.mark.parametrize("option", [False, True])
def test_who(run, server, written, option):
    tcp, _, pid = server
    code, out, _ = run("who", *(["-p"] if option else []), written, "--json")
    (answer,) = map(json.loads, out.splitlines())
    assert (code, answer["port"], answer["held"]) == (0, tcp, True)
    assert [holder["owner"]["pid"] for holder in answer["holders"]] == [pid]


@pytest.mark.parametrize("option", [False, True])
def test_why(run, server, written, option):
    tcp, _, pid = server
    code, out, _ = run("why", *(["-p"] if option else []), written, "--json")
    answer = json.loads(out)
    assert (code, answer["port"], answer["protocol"], answer["can_have"]) == (1, tcp, "tcp", False)
    assert f'"pid":{pid},' in out or f"{pid}" in out


@pytest.mark.parametrize("option", [False, True])
def test_stop(run, server, written, option):
    tcp, _, pid = server
    if "127.0.0.1" in written or "[::1]" in written:
        code, out, err = run("stop", written, "--dry-run")  # the other address would be stopped as well
        assert (code, out) == (2, "")
        assert f"write portbook stop {tcp} to stop every address" in err
        return
    code, out, _ = run("stop", *(["-p"] if option else []), written, "--dry-run", "--json")
    answer = json.loads(out)
    assert (answer["port"], answer["protocol"]) == (tcp, "tcp")
    assert str(pid) in out


def test_wait(run, written):
    assert run("wait", written, "--timeout", "20")[0] == 0


def test_wait_for_a_port_to_be_free(run, written):
    assert run("wait", "--free", written, "--timeout", "0.05")[0] == 1


def test_dial(run, server, written):
    code, out, _ = run("dial", written, "--json")
    answer = json.loads(out)
    assert (code, answer["port"], answer["open"]) == (0, server[0], True)


def test_scan(run, server, written):
    if written in ("http", "HTTP", "www"):
        assert run("scan", written)[0] != 0  # the name of a host
        written = f"localhost:{written}"
    code, out, _ = run("scan", written, "--jsonl", "--open")
    ports = {json.loads(line)["port"] for line in out.splitlines() if '"outcome":"open"' in line}
    assert (code, ports) == (0, {server[0]})


@pytest.mark.parametrize("option", [False, True])
def test_free(run, written, option):
    code, out, err = run("free", *(["-p"] if option else []), written)
    assert (code, out) == (1, "")
    assert "1" in err


def test_lease(run, server, written):
    code, _, err = run("lease", written, "--", sys.executable, "-c", "pass")
    assert code == 1
    assert f"portbook why {server[0]}" in err or "choose among other ports" in err


# --- UDP -----------------------------------------------------------------------------------------------------------

UDP = [
    "{port}/udp",
    "udp:{port}",
    ":{port}/udp",
    "localhost:{port}/udp",
    "127.0.0.1:{port}/udp",
    "udp://127.0.0.1:{port}",
]


@pytest.fixture(params=UDP)
def written_udp(request, server):
    return request.param.format(port=server[1])


def test_udp_ports(run, server, written_udp):
    _, udp, pid = server
    found = json.loads(run("list", written_udp, "--json")[1])["sockets"]
    assert {(s["local_port"], s["protocol"]) for s in found} == {(udp, "udp")}
    code, out, _ = run("who", written_udp, "--json")
    assert (code, [h["owner"]["pid"] for h in json.loads(out)["holders"]]) == (0, [pid])
    code, out, _ = run("why", written_udp, "--json")
    assert (code, json.loads(out)["protocol"]) == (1, "udp")
    code, out, _ = run("stop", written_udp, "-n", "--json")
    assert (json.loads(out)["protocol"], str(pid) in out) == ("udp", True)
    assert run("wait", "--free", written_udp, "--timeout", "0.05")[0] == 1
    assert run("wait", written_udp, "--timeout", "20")[0] == 0
    assert run("free", written_udp)[:2] == (1, "")
    assert run("lease", written_udp, "--", sys.executable, "-c", "pass")[0] == 1
    for command in ("probe", "scan"):
        code, out, _ = run(command, written_udp, "--jsonl", "--open")
        assert (code, json.loads(out.splitlines()[0])["port"]) == (0, udp), command


def test_the_tcp_port_of_the_same_number_is_another_one(run, server):
    """A port is a number and a protocol."""
    tcp, udp, _ = server
    for held, protocol in ((tcp, "udp"), (udp, "tcp")):
        assert json.loads(run("list", f"{held}/{protocol}", "--json")[1])["sockets"] == []
        assert run("who", f"{held}/{protocol}")[0] == 1
        assert run("why", f"{held}/{protocol}")[0] == 0
        assert run("free", f"{held}/{protocol}")[:2] == (0, f"{held}\n")
    assert run("dial", f"{udp}/udp")[0] == 2


def test_probe_with_a_host_apart(run, server):
    udp = str(server[1])
    for words in (("localhost", udp), (udp,), ("localhost", "-p", udp), ("-p", udp), (f"localhost:{udp}",)):
        code, out, _ = run("probe", *words, "--jsonl", "--open")
        assert (code, json.loads(out.splitlines()[0])["port"]) == (0, int(udp)), words


# --- several, ranges, a host before its ports ----------------------------------------------------------------------


def test_several_ports_and_ranges(run, server):
    tcp, udp, pid = server
    low, high = sorted((tcp, udp))
    for words in ((f"{tcp},{udp}",), (str(tcp), f"{udp}/udp"), ("-p", str(tcp), "-p", str(udp))):
        code, out, _ = run("who", *words, "--json")
        answers = list(map(json.loads, out.splitlines()))
        assert (code, {a["port"] for a in answers}) == (0, {tcp, udp})
        assert {h["owner"]["pid"] for a in answers for h in a["holders"]} == {pid}
    if high - low < 100:
        code, out, err = run("who", f"{low}-{high}", "--json")
        assert (code, [json.loads(line)["port"] for line in out.splitlines()]) == (0, [low, high])
        assert f"no socket has the other {high - low - 1} port" in err
        code, out, _ = run("why", f"{low}-{high}", "--json")
        blocked = [a["port"] for a in map(json.loads, out.splitlines()) if not a["can_have"]]
        assert (code, blocked) == (1, [tcp])


def test_a_host_before_its_ports(run, server):
    tcp = str(server[0])
    assert run("dial", "localhost", tcp)[0] == run("dial", "::1", tcp)[0] == run("dial", "127.0.0.1", "-p", tcp)[0] == 0
    assert run("wait", "127.0.0.1", tcp, "--timeout", "20")[0] == 0
    assert run("scan", "127.0.0.1", tcp, "--open")[0] == run("scan", "127.0.0.1", "-p", tcp)[0] == 0


def test_free_and_lease_take_one_of_a_range(run, server):
    tcp, _, _ = server
    code, out, _ = run("free", f"{tcp}-{tcp + 1}")
    assert (code, out) == (0, f"{tcp + 1}\n")
    with portbook.lease(ports=f"{tcp}-{tcp + 1}") as leased:
        assert leased.port == tcp + 1


# --- what is refused -----------------------------------------------------------------------------------------------

LOCAL = ["who", "why", "stop", "free", "list", "wait --free"]
EVERYWHERE = [*LOCAL, "dial", "wait", "probe", "scan"]


@pytest.mark.parametrize("command", EVERYWHERE)
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("010.91.0.254:80", "10.91.0.254"),
        ("127.1:80", "127.0.0.1"),
        ("0x7f.1:80", "127.0.0.1"),
        ("0177.0.0.1:80", "177.0.0.1"),
        ("2130706433:80", "127.0.0.1"),
    ],
)
def test_no_address_is_silently_another_one(run, command, text, hint):
    code, out, err = run(*command.split(), text)
    assert (code, out) == (2, "")
    assert hint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["who", "why", "stop", "free", "list"])
def test_a_host_that_is_not_this_machine_shows_how_to_reach_it(run, command):
    code, out, err = run(*command.split(), "db.example:5432")
    assert (code, out) == (2, "")
    assert "not an address of this machine" in err


@pytest.mark.parametrize("command", [*EVERYWHERE, "lease"])
@pytest.mark.parametrize(
    "text", ["0", "65536", "80-70", "80/sctp", "localhost:0", "http://localhost:99999", "localhost:x-y"]
)
def test_what_is_no_port_is_refused(run, command, text):
    if (command, text) == ("lease", "0"):
        return  # any port
    tail = ["--", sys.executable, "-c", "pass"] if command == "lease" else []
    code, out, err = run(*command.split(), text, *tail)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["who", "why", "stop", "dial", "wait", "probe", "scan"])
def test_without_a_port(run, command):
    code, out, err = run(command)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


# --- the library ---------------------------------------------------------------------------------------------------


def test_the_library_takes_the_same_types(server):
    tcp, udp, pid = server
    for port in (tcp, str(tcp), f"{tcp}/tcp", f"localhost:{tcp}", ("127.0.0.1", tcp), ("::1", tcp, 0, 0)):
        assert [h.owner.pid for h in portbook.who(port).holders] == [pid]
        assert portbook.why(port).can_have is False
        assert portbook.dial(port).open
        assert portbook.wait_for([port], timeout_s=20) == []
        assert not portbook.free(ports=port).enough
        assert portbook.take(port if isinstance(port, int | tuple) else f"port:{port}").sockets
        with portbook.scan(port) as answers:
            assert any(answer.outcome == "open" for answer in answers)
        with pytest.raises(portbook.LeaseError):
            portbook.lease(port)
    assert portbook.why(f"{udp}/udp").can_have is False
    assert portbook.who(udp, "udp").held
    assert not portbook.who(udp, "tcp").held


WRONG = [
    None,
    True,
    8.5,
    b"80",
    object(),
    [None],
    {"a": 1},
    "",
    "x y",
    "80/sctp",
    "127.1:80",
    0,
    -1,
    70000,
    10**30,
    ("a",),
]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        portbook.who,
        portbook.why,
        portbook.dial,
        plan_stop,
        portbook.lease,
        lambda value: portbook.free(ports=value),
        lambda value: portbook.scan("127.0.0.1", value),
        lambda value: portbook.wait_for([value], timeout_s=0.01),
        lambda value: portbook.wait_for([value], free=True, timeout_s=0.01),
    ],
    ids=["who", "why", "dial", "stop", "lease", "free", "scan", "wait", "wait-free"],
)
def test_the_library_raises_usage_errors(call, value, request):
    if value is None and any(word in request.node.name for word in ("free-", "scan-")):
        return  # ports=None: any, or the usual ones
    if value == 0 and value is not False and "lease" in request.node.name:
        return  # any port
    with pytest.raises(UsageError):
        call(value)


@pytest.mark.parametrize("value", [5.5, object(), b"x", True])
def test_a_query_of_a_wrong_type(value):
    with pytest.raises(UsageError):
        portbook.take(value)
    with pytest.raises(UsageError):
        portbook.parse(value)


@pytest.mark.parametrize("address", [5, b"::1", "127.1", "localhost:80", "name", ["::1"], ""])
def test_a_wrong_address(address):
    for call in (portbook.why, portbook.lease):
        with pytest.raises(UsageError):
            call(8080, address=address)
    with pytest.raises(UsageError):
        portbook.free(address=address)


@pytest.mark.parametrize("protocol", ["sctp", "TCP", 6, ["tcp"], b"tcp"])
def test_a_wrong_protocol(protocol):
    for call in (portbook.who, portbook.why):
        with pytest.raises(UsageError):
            call(8080, protocol)
