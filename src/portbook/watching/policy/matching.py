"""Whether a socket, as one process holds it, is what a rule selects: a test for each key of a rule. Pure.

A test returns True, False, or None where the fact could not be known: that is neither allowed nor a violation.

A process chooses its name, so ``name`` alone proves nothing. Its executable is what the kernel says; but a path is not
yet a file: the file of that path may have been replaced or deleted since the process started, and in a container, or
in a mount namespace that any user may make, other files have the same paths (mount_namespaces(7)). So a rule that
allows by path wants the process to run the very file that has this path outside; ``ProgramFile`` says whether it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Literal

from msgspec import Struct

from portbook.addresses import reach_of, unmapped
from portbook.records import Owner, Reach, Socket
from portbook.watching.policy.glob import Pattern, PatternSet
from portbook.watching.policy.records import ANY, LOOPBACK, NONE, OWN, Network, RuleKind, Selector

# What the file that a process runs has become. same: it is the file of its path. elsewhere: the path is one in
# another mount namespace, as in a container, and another file, or none, has it outside. unknown: it could not be read.
ProgramState = Literal["same", "deleted", "replaced", "elsewhere", "unknown"]
MOST_ADDRESSES = 4096  # whose numbers are kept


class ProgramFile(Struct, frozen=True):
    """The executable of a process, looked at."""

    state: ProgramState
    sha256: str | None = None  # of the file that runs, also of a deleted one; None: not read, or it could not be


class PolicyEvidence(Struct, frozen=True):
    """What is known beyond the sockets and their owners: collected only if a rule needs it."""

    programs: Mapping[int, ProgramFile] = {}  # by pid
    images: Mapping[str, tuple[str, ...]] = {}  # by container as sockets have it: names and ids of its image
    links: Mapping[str, str] = {}  # paths in rules that lead through links: where they lead
    own_netns: int | None = None  # inode of the network namespace of portbook


KeyTest = Callable[[Any, Socket, Owner | None, PolicyEvidence | None], bool | None]


class Check(Struct, frozen=True):
    """One key of a rule: its test and its values."""

    key: str
    test: KeyTest
    values: Any


def compile_checks(selector: Selector, kind: RuleKind) -> tuple[Check, ...]:
    """The tests of the keys that a selector has, without its ports; the cheapest first."""
    made: list[Check] = []
    for key, test in TESTS.items():
        values = getattr(selector, key)
        if values is None:
            continue
        if key == "exe":
            test = _exe_test(selector, kind)  # noqa: PLW2901
        elif key == "reach":
            test = REACH_TESTS[kind]  # noqa: PLW2901
        if isinstance(values[0], Pattern):
            values = PatternSet(values)
        made.append(Check(key, test, values))
    return tuple(made)


def match(
    checks: tuple[Check, ...], socket: Socket, owner: Owner | None, evidence: PolicyEvidence | None
) -> tuple[bool | None, str]:
    """Whether every test holds; and the key that does not, or that could not be known."""
    unknown = ""
    for check in checks:
        result = check.test(check.values, socket, owner, evidence)
        if result is False:
            return False, check.key
        if result is None:
            unknown = unknown or check.key
    return (None, unknown) if unknown else (True, "")


def judged_owners(socket: Socket) -> tuple[Owner | None, ...]:
    """The processes for which a socket is judged; one None if there are none.

    systemd keeps the socket of each socket unit open (systemd.socket(5)): where another process holds it too, that one
    counts.
    """
    owners = socket.owners
    if len(owners) > 1:
        return tuple(owner for owner in owners if not _is_systemd(owner)) or owners[:1]
    return owners or (None,)


def _is_systemd(owner: Owner) -> bool:
    return owner.pid == 1 and owner.name == "systemd"


# --- reach ---------------------------------------------------------------------------------------------------------


@lru_cache(MOST_ADDRESSES)
def _address(text: str) -> tuple[Reach, int, int]:
    """Reach, version and number of a local address. What is only bound may listen at any time: its address counts."""
    plain = unmapped(text)
    number = ip_address(plain)
    return reach_of(plain), number.version, int(number)


def _reach_allowed(values: tuple[str | Network, ...], socket: Socket, *_: object) -> bool:
    """Whether it can be reached from nowhere else than the rule says. Loopback is part of every reach."""
    reach, version, number = _address(socket.local_address)
    if reach == LOOPBACK or ANY in values:
        return True
    return reach != ANY and _is_within(values, version, number)


def _reach_denied(values: tuple[str | Network, ...], socket: Socket, *_: object) -> bool:
    """Whether it can be reached by what the rule names. A wildcard has every address, so that of each network too."""
    reach, version, number = _address(socket.local_address)
    if reach in (LOOPBACK, ANY) and reach in values:
        return True
    if reach == ANY:
        return any(isinstance(value, Network) and _has_family(socket, value) for value in values)
    return _is_within(values, version, number, is_loopback=reach == LOOPBACK)


def _reach_required(values: tuple[str | Network, ...], socket: Socket, *_: object) -> bool:
    """Whether it can be reached at least from where the rule says."""
    reach, version, number = _address(socket.local_address)
    if reach == ANY:
        return True
    if reach == LOOPBACK:
        return LOOPBACK in values
    return _is_within(values, version, number)


def _has_family(socket: Socket, network: Network) -> bool:
    """Whether a wildcard has addresses of the network's family: IPv6 takes IPv4 too, unless it says otherwise."""
    if socket.family == "ipv6" and network.version == 4:
        return socket.v6only is not True
    return (socket.family == "ipv6") == (network.version == 6)


def _is_within(values: tuple[str | Network, ...], version: int, number: int, is_loopback: bool = False) -> bool:
    for value in values:
        if not isinstance(value, Network) or value.version != version:
            continue
        if value.first <= number <= value.last and not (is_loopback and not _names_loopback(value)):
            return True
    return False


def _names_loopback(network: Network) -> bool:
    """Whether a network is one of loopback: 0.0.0.0/0 has its addresses too, and does not mean them."""
    return reach_of(network.text.partition("/")[0]) == LOOPBACK


REACH_TESTS: dict[RuleKind, KeyTest] = {"allow": _reach_allowed, "deny": _reach_denied, "require": _reach_required}

# --- processes -----------------------------------------------------------------------------------------------------


def _name(values: PatternSet, socket: Socket, owner: Owner | None, _: object) -> bool | None:
    """The name of the process; of a socket of the kernel what has it: ``wireguard wg0``."""
    name = socket.kernel if owner is None else owner.name
    return None if name is None else values.matches(name)


def _is_path_of(
    values: PatternSet, socket: Socket, owner: Owner | None, evidence: PolicyEvidence | None
) -> bool | None:
    """Whether the path of the executable is in the rule."""
    if owner is None:
        return False if socket.kernel else None
    if owner.exe is None:
        return None
    if values.matches(windows_path(owner.exe) or owner.exe):
        return True
    links = evidence.links if evidence else {}
    return bool(links) and any(links.get(text) == owner.exe for text in values.texts)


def windows_path(path: str) -> str | None:
    """A path of Windows as rules are compared with it: there case does not matter. None: it is none."""
    if path[1:2] == ":" or path.startswith("\\\\"):
        return path.replace("/", "\\").lower()
    return None


def _is_program(
    values: PatternSet, socket: Socket, owner: Owner | None, evidence: PolicyEvidence | None
) -> bool | None:
    """Whether the process runs the file that has the path now. Without evidence the path is believed."""
    result = _is_path_of(values, socket, owner, evidence)
    if not result or evidence is None or owner is None:
        return result
    return _is_state(owner, evidence, ("same",))


def _is_program_inside(
    values: PatternSet, socket: Socket, owner: Owner | None, evidence: PolicyEvidence | None
) -> bool | None:
    """The same for a rule about containers: the path is one inside."""
    result = _is_path_of(values, socket, owner, evidence)
    if not result or evidence is None or owner is None:
        return result
    return _is_state(owner, evidence, ("same", "elsewhere"))


def _is_state(owner: Owner, evidence: PolicyEvidence, wanted: tuple[ProgramState, ...]) -> bool | None:
    program = evidence.programs.get(owner.pid)
    if program is None or program.state == "unknown":
        return None
    return program.state in wanted


def _exe_test(selector: Selector, kind: RuleKind) -> KeyTest:
    """How strictly a path is compared. What is denied is denied by its path; a checksum says more than any path."""
    if kind == "deny" or selector.sha256 is not None:
        return _is_path_of
    if selector.container is not None or selector.image is not None:
        return _is_program_inside
    return _is_program


def _sha256(
    values: tuple[str, ...], socket: Socket, owner: Owner | None, evidence: PolicyEvidence | None
) -> bool | None:
    if owner is None:
        return False if socket.kernel else None
    program = evidence.programs.get(owner.pid) if evidence else None
    if program is None or program.sha256 is None:
        return None
    return program.sha256 in values


def _user(values: tuple[str, ...], socket: Socket, owner: Owner | None, _: object) -> bool | None:
    """The user of the process, where one is known; or else that of the socket, by name or number."""
    if owner is not None and owner.user is not None:
        return owner.user in values or (owner.user == socket.user and str(socket.uid) in values)
    if socket.user is None and socket.uid is None:
        return None
    return socket.user in values or str(socket.uid) in values


def _place(values: PatternSet, text: str | None, socket: Socket, owner: Owner | None) -> bool | None:
    """A service or a container; "none" is what is in no such."""
    if text is not None:
        return values.matches(text)
    if _is_place_known(socket, owner):
        return NONE in values.texts
    return None


def _is_place_known(socket: Socket, owner: Owner | None) -> bool:
    """Whether it is known that there is no service or container: on Linux the cgroup says so."""
    if socket.kernel is not None:
        return True
    if owner is None:
        return False
    return owner.cgroup is not None or (socket.inode is None and owner.name is not None)


def _service(values: PatternSet, socket: Socket, owner: Owner | None, _: object) -> bool | None:
    text = socket.service if owner is None else owner.service
    return _place(values, text, socket, owner)


def _container_of(socket: Socket, owner: Owner | None) -> str | None:
    return socket.container if owner is None else owner.container


def _container(values: PatternSet, socket: Socket, owner: Owner | None, _: object) -> bool | None:
    return _place(values, _container_of(socket, owner), socket, owner)


def _image(values: PatternSet, socket: Socket, owner: Owner | None, evidence: PolicyEvidence | None) -> bool | None:
    container = _container_of(socket, owner)
    if container is None:
        return False if _is_place_known(socket, owner) else None
    names = evidence.images.get(container) if evidence else None
    if names is None:
        return None
    return any(map(values.matches, names))


def _netns(values: PatternSet, socket: Socket, _: Owner | None, evidence: PolicyEvidence | None) -> bool | None:
    """By name, by number, or "own". Sources that see no other namespace do not number theirs."""
    own = evidence.own_netns if evidence else None
    is_own = socket.netns is None or socket.netns == own
    if is_own and OWN in values.texts:
        return True
    if socket.netns_name is not None and values.matches(socket.netns_name):
        return True
    if socket.netns is None:
        return False
    if own is None and socket.netns_name is None and OWN in values.texts:
        return None
    return values.matches(str(socket.netns))


# By key of a rule, the cheapest first. What "reach" and "exe" mean depends on the rule: compile_checks.
TESTS: dict[str, KeyTest] = {
    "reach": _reach_allowed,
    "netns": _netns,
    "user": _user,
    "service": _service,
    "container": _container,
    "name": _name,
    "exe": _is_program,
    "sha256": _sha256,
    "image": _image,
}
