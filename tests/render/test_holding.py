"""Who holds a port, in words and as JSON."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from portbook.records import Gap, Holder, Holding, Owner, Socket
from portbook.render import holding, stop
from portbook.render.text import Style
from portbook.stop.records import StopReport, StopTarget

LISTENER = Socket("tcp", "ipv4", "0.0.0.0", 80, state="LISTEN", reach="any", backlog=5, accept_queue=0)
HELD = Socket("tcp", "ipv4", "0.0.0.0", 80, state="BOUND", reach="none")
NODE = Owner(
    812,
    "node",
    "/usr/bin/node",
    "ann",
    command_line=("node", "server.js"),
    script="server.js",
    directory="/srv/shop/src",
    project="/srv/shop",
    state="running",
)


def answer(*holders, sockets=(), gaps=(), protocol=None):
    sockets = sockets or tuple(s for holder in holders for s in holder.sockets)
    return Holding(1, 80, protocol, bool(sockets), holders, sockets, gaps)


def text_of(holder, width=None, whole=False):
    return "\n".join(holding.lines([answer(holder)], Style(width), whole))


def row(text, title):
    return next((line[14:] for line in text.splitlines() if line.startswith(f"  {title:<12}")), None)


def test_what_developers_look_for():
    text = text_of(Holder(NODE, None, (Owner(1, "init"),), (LISTENER,), ("53/udp",)))
    assert text.splitlines()[0] == "port 80 is held by node server.js (pid 812)"
    assert row(text, "directory") == "/srv/shop/src"
    assert row(text, "project") == "shop, in /srv/shop"
    assert row(text, "other ports") == "53/udp"
    assert row(text, "state") is None
    assert row(text, "terminal") is None


@pytest.mark.parametrize(
    ("name", "script", "shown"),
    [
        ("node", "/srv/app.js", "node app.js"),
        ("python3", "-m http.server", "python3 -m http.server"),
        ("uvicorn", "uvicorn shop:app", "uvicorn shop:app"),
        ("python", "uvicorn shop:app", "python uvicorn shop:app"),
        ("fail2ban-server", "/usr/bin/fail2ban-server", "fail2ban-server"),
        ("java", "-jar /opt/shop.jar", "java -jar /opt/shop.jar"),
        ("nginx", None, "nginx"),
        (None, None, "?"),
        ("node", "\x1b[2J.js", "node \\x1b[2J.js"),
    ],
)
def test_a_process_in_a_sentence(name, script, shown):
    assert holding.describe_owner(Owner(7, name, script=script)) == f"{shown} (pid 7)"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("suspended", "it accepts and does not answer; kill -CONT 812"),
        ("traced", "stopped by pid 9, which traces it"),
        ("uninterruptible", "no signal ends it"),
        ("zombie", "other threads run on"),
        ("running", "traced by pid 9"),
    ],
)
def test_the_state_of_the_holder(state, words):
    owner = replace(NODE, state=state, tracer=9)
    assert words in row(text_of(Holder(owner, None, (), (LISTENER,), ())), "state")


def test_an_orphan_of_a_closed_terminal():
    text = text_of(Holder(replace(NODE, orphaned=True), None, (), (LISTENER,), ()))
    assert row(text, "terminal").startswith("closed: ")


def test_a_holder_that_does_not_listen():
    text = text_of(Holder(NODE, None, (), (HELD,), ()))
    assert row(text, "holds") == "0.0.0.0:80/tcp without listening, BOUND, reach: none"


def test_connections_by_state():
    closing = replace(LISTENER, state="CLOSE_WAIT", remote_address="1.2.3.4", remote_port=5)
    text = text_of(Holder(NODE, None, (), (LISTENER, closing, closing, replace(closing, state="ESTABLISHED")), ()))
    assert row(text, "connections") == (
        "3 on this port: 2 CLOSE_WAIT, 1 ESTABLISHED. In CLOSE_WAIT their peers have closed, the process has not; "
        "only the process can end them"
    )


def test_what_everybody_may_know_of_an_invisible_holder():
    s = replace(LISTENER, uid=0, user="root", service="ssh.service")
    gap = Gap("owner", 1, "not visible", "run with sudo")
    text = "\n".join(holding.lines([answer(sockets=(s,), gaps=(gap,))], Style()))
    heading, _, *rows = text.splitlines()
    assert heading == "port 80 is held by an unknown process of user root in ssh.service (needs root)"
    assert rows[0].endswith(", created by a process of user root in ssh.service")
    numbered = replace(s, user=None, uid=4711, service=None)
    assert "user 4711" in holding.lines([answer(sockets=(numbered,))], Style())[0]


# --- width ---------------------------------------------------------------------------------------------------------

LONG = replace(
    NODE,
    command_line=("node", *["--option"] * 8000),
    directory="/srv/" + "d " * 2000,
    project="/srv/" + "p " * 2000,
    script="s " * 2000,
)


def test_long_texts_are_cut_unless_they_are_asked_for():
    holder = Holder(LONG, None, (), (LISTENER,), (), forwards_to="x " * 2000)
    assert len(text_of(holder)) < 5_000
    assert row(text_of(holder), "command").endswith(" --option")
    assert " characters ...] " in row(text_of(holder), "command")
    assert row(text_of(holder, whole=True), "command") == " ".join(LONG.command_line)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_fit_the_terminal(width):
    states = ("suspended", "traced", "uninterruptible", "zombie")
    closing = replace(LISTENER, state="CLOSE_WAIT")
    for state in states:
        owner = replace(LONG, state=state, orphaned=True)
        holder = Holder(owner, 5.0, (NODE,) * 20, (LISTENER, HELD, closing), ("53/udp",) * 20, "x " * 200)
        assert max(map(len, holding.lines([answer(holder)], Style(width)))) <= width


# --- JSON ----------------------------------------------------------------------------------------------------------


def many_workers(count):
    parents = tuple(Owner(pid, "p", command_line=("x" * 100,)) for pid in (1, 2))
    workers = tuple(Owner(pid, "w", user="ann", command_line=("y" * 100,), how="fd") for pid in range(10, 10 + count))
    sockets = tuple(replace(LISTENER, local_address=f"127.0.0.{n}", owners=workers) for n in range(1, 5))
    return answer(*(Holder(worker, 1.0, parents, sockets, ()) for worker in workers))


def test_each_process_is_described_once():
    decoded = json.loads(b"".join(holding.json([many_workers(20)])))
    described = [
        process["pid"]
        for holder in decoded["holders"]
        for process in (holder["owner"], *holder["parents"], *(o for s in holder["sockets"] for o in s["owners"]))
        if "command_line" in process
    ]
    assert sorted(described) == [1, 2, *range(10, 30)]
    assert [len(s["owners"]) for s in decoded["sockets"]] == [20] * 80
    assert decoded["sockets"][0]["owners"][0] == {"pid": 10, "name": "w", "user": "ann"}
    assert [p["pid"] for p in decoded["holders"][7]["parents"]] == [1, 2]


def test_the_size_grows_with_the_workers_and_not_with_their_square():
    sizes = [sum(map(len, holding.json([answer_of_one_socket(count)]))) for count in (100, 200)]
    assert sizes[1] < 2.2 * sizes[0]


def answer_of_one_socket(count):
    whole = many_workers(count)
    (s,) = whole.sockets[:1]
    return replace(whole, sockets=(s,), holders=tuple(replace(h, sockets=(s,)) for h in whole.holders))


def test_an_owner_that_no_holder_describes_is_described_with_its_socket():
    s = replace(LISTENER, owners=(NODE,))
    decoded = json.loads(b"".join(holding.json([answer(sockets=(s, s))])))
    assert decoded["sockets"][0]["owners"][0]["script"] == "server.js"
    assert decoded["sockets"][1]["owners"][0] == {"pid": 812, "name": "node", "user": "ann"}


def test_json_has_every_field():
    decoded = json.loads(b"".join(holding.json([many_workers(1)])))
    assert tuple(decoded) == Holding.__struct_fields__
    assert tuple(decoded["holders"][0]) == Holder.__struct_fields__
    assert tuple(decoded["holders"][0]["owner"]) == Owner.__struct_fields__
    assert tuple(decoded["holders"][0]["sockets"][0]) == Socket.__struct_fields__


def test_the_report_of_stop_describes_each_process_once():
    holders = many_workers(20).holders
    report = StopReport(1, 80, "tcp", "stopped", tuple(StopTarget(holder, 0) for holder in holders))
    decoded = json.loads(b"".join(stop.json([report])))
    assert tuple(decoded) == StopReport.__struct_fields__
    assert tuple(decoded["targets"][0]) == StopTarget.__struct_fields__
    described = [p["pid"] for t in decoded["targets"] for p in t["holder"]["parents"] if "command_line" in p]
    assert described == [1, 2]
    assert [t["holder"]["owner"]["pid"] for t in decoded["targets"]] == [h.owner.pid for h in holders]


def test_a_connection_that_was_not_accepted_is_no_second_holder():
    listener = replace(LISTENER, uid=0, user="root", inode=7)
    waiting = replace(LISTENER, state="CLOSE_WAIT", remote_address="127.0.0.1", remote_port=40000, inode=0)
    text = "\n".join(holding.lines([answer(sockets=(listener, waiting))], Style()))
    assert "held by an unknown process of user root" in text
    assert "and an unknown process" not in text
