"""Holder options by asker options by addresses by families by protocols: the verdict against a bind of the test's own.

The table in docs/why.md is what ``python -m tests.verdict.test_matrix`` prints (as root, in a network namespace).
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest

from portbook import why
from tests.components import need
from tests.conftest import NOBODY, ROOT

pytestmark = pytest.mark.usefixtures("own_network")

REUSEPORT = getattr(socket, "SO_REUSEPORT", None)
TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
FIRST_PORT = 7000  # each holder has a port of its own: TIME_WAIT stays for a minute
BOTH = (("0.0.0.0", True), ("::", True))  # address, V6ONLY


EVERY = 6  # to keep the suite short: about 460 of 2,772 combinations


class Holder(NamedTuple):
    protocol: str
    kind: str
    address: str
    v6only: bool
    options: str  # "", "reuse", "reuseport", "reuseport of another user"


class Asker(NamedTuple):
    named: str
    places: tuple[tuple[str, bool], ...]
    address: str | None
    dual: bool
    reuse: bool | None
    reuseport: bool


KINDS = {"tcp": ("listening", "bound", "accepted", "time-wait"), "udp": ("bound", "connected")}
PLACES = (("0.0.0.0", True), ("127.0.0.1", True), ("::", True), ("::", False), ("::1", True), ("::1", False))
OPTIONS = ("", "reuse", "reuseport", "reuseport of another user")
HOLDERS = [
    Holder(protocol, kind, address, v6only, options)
    for protocol, kinds in KINDS.items()
    for kind in kinds
    for address, v6only in PLACES
    for options in OPTIONS
    if not (kind in ("accepted", "time-wait") and options.endswith("user"))
]
ASKED = {
    "": (BOTH, None, False),
    "--address 127.0.0.1": ((("127.0.0.1", True),), "127.0.0.1", False),
    "--address 127.0.0.2": ((("127.0.0.2", True),), "127.0.0.2", False),
    "--address 0.0.0.0": ((("0.0.0.0", True),), "0.0.0.0", False),
    "--address ::": ((("::", True),), "::", False),
    "--address ::1": ((("::1", True),), "::1", False),
    "--dual": ((("::", False),), None, True),
}
HOW = {"": (None, False), "--no-reuse": (False, False), "--reuseport": (None, True)}
ASKERS = [
    Asker(f"{where} {how}".strip(), *ASKED[where], *HOW[how]) for where in ASKED for how in HOW
]  # fmt: skip


class Result(NamedTuple):
    holder: Holder
    asker: Asker
    really: bool
    can_have: bool | None
    foreseen: bool | None
    codes: tuple[str, ...]


def opened(protocol: str, address: str, v6only: bool, reuse: bool, reuseport: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, TYPES[protocol])
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    if reuse:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuseport:
        one.setsockopt(socket.SOL_SOCKET, REUSEPORT, 1)
    return one


@contextmanager
def held(holder: Holder, port: int) -> Iterator[None]:
    """The holder's socket, in the state of its kind."""
    reuseport = holder.options.startswith("reuseport")
    euid = os.geteuid()
    if holder.options.endswith("user"):
        os.seteuid(NOBODY)
    try:
        one = opened(holder.protocol, holder.address, holder.v6only, holder.options == "reuse", reuseport)
    finally:
        os.seteuid(euid)
    with ExitStack() as stack:
        stack.callback(one.close)
        one.bind((holder.address, port))
        PREPARE[holder.kind](one, stack)
        yield


def listen(one: socket.socket, stack: ExitStack) -> None:
    one.listen()


def nothing(one: socket.socket, stack: ExitStack) -> None:
    pass


def accept(one: socket.socket, stack: ExitStack) -> None:
    """A connection that stays when its listener has gone. The client's end has a port of its own."""
    one.listen()
    client = socket.create_connection(one.getsockname()[:2])  # a wildcard is this machine too
    stack.callback(client.close)
    accepted, _ = one.accept()
    stack.callback(accepted.close)
    one.close()


def time_wait(one: socket.socket, stack: ExitStack) -> None:
    """The side that closes first gets it; here, as with many servers, the accepted one."""
    one.listen()
    client = socket.create_connection(one.getsockname()[:2])  # a wildcard is this machine too
    accepted, _ = one.accept()
    one.close()
    accepted.shutdown(socket.SHUT_WR)
    client.recv(1)
    client.close()
    accepted.recv(1)
    accepted.close()


def connect(one: socket.socket, stack: ExitStack) -> None:
    one.connect(("::1" if one.family == socket.AF_INET6 else "127.0.0.1", 9))


PREPARE = {"listening": listen, "bound": nothing, "accepted": accept, "time-wait": time_wait, "connected": connect}


def really(protocol: str, port: int, asker: Asker) -> bool:
    """Bind as a server would, all places at the same time; without portbook."""
    reuse = protocol == "tcp" if asker.reuse is None else asker.reuse
    with ExitStack() as stack:
        try:
            for address, v6only in asker.places:
                one = stack.enter_context(opened(protocol, address, v6only, reuse, asker.reuseport))
                one.bind((address, port))
                if protocol == "tcp":
                    one.listen()
        except OSError:
            return False
    return True


def examined(holder: Holder, port: int, asker: Asker) -> Result:
    told = really(holder.protocol, port, asker)
    verdict = why(
        port,
        holder.protocol,  # type: ignore[arg-type]
        address=asker.address,
        dual=asker.dual,
        reuse_address=asker.reuse,
        reuse_port=asker.reuseport,
    )
    codes = tuple(f.code for f in verdict.findings if f.severity == "blocks")
    return Result(holder, asker, told, verdict.can_have, verdict.foreseen, codes)


def results(every: int = 1) -> list[Result]:
    """All combinations; or one in ``every``, so that each asker meets each kind of holder."""
    found = []
    for port, holder in enumerate(HOLDERS, FIRST_PORT):
        with held(holder, port):
            found += [examined(holder, port, asker) for asker in ASKERS[port % every :: every]]
    return found


@pytest.fixture(scope="module")
def matrix(own_network):
    need(sys.platform == "linux" and ROOT, "root on Linux, for a network and sockets of another user")
    return results(every=EVERY)


def test_it_is_big_enough(matrix):
    assert len(matrix) >= 200
    assert {(r.holder.protocol, r.really) for r in matrix} == {(p, b) for p in TYPES for b in (True, False)}


def test_the_verdict_is_the_result_of_a_bind_of_the_test(matrix):
    assert [r for r in matrix if r.can_have is not r.really] == []


def test_the_rules_alone_are_never_wrong(matrix):
    """They may be undecided where it depends on an option of the holder, which no system shows."""
    assert [r for r in matrix if r.foreseen not in (None, r.really)] == []


def test_most_is_predicted(matrix):
    assert sum(r.foreseen is not None for r in matrix) > len(matrix) * 0.6


def test_nothing_is_left_unexplained(matrix):
    assert [r for r in matrix if "unexplained" in r.codes] == []
    assert [r for r in matrix if not r.really and not r.codes] == []


BLOCKING = {"listening": {"listener"}, "bound": {"bound-only", "udp-socket"}, "accepted": {"connection"},
            "time-wait": {"time-wait"}, "connected": {"udp-socket"}}  # fmt: skip


def test_what_blocks_is_called_by_its_name(matrix):
    wrong = [r for r in matrix if not r.really and not set(r.codes) <= BLOCKING[r.holder.kind]]
    assert wrong == []


def table(found: list[Result]) -> str:
    """For docs/why.md."""
    lines = ["| holder | combinations | bindable | verdict right | predicted right | not predicted | predicted wrong |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    groups = [(f"{p}, {k}", [r for r in found if r.holder[:2] == (p, k)]) for p, kinds in KINDS.items() for k in kinds]
    for name, rows in (*groups, ("all", found)):
        c = Counter("none" if r.foreseen is None else r.foreseen is r.really for r in rows)
        right = sum(r.can_have is r.really for r in rows)
        free = sum(r.really for r in rows)
        lines.append(f"| {name} | {len(rows)} | {free} | {right} | {c[True]} | {c['none']} | {c[False]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(results()))
