"""The names of the containers of docker and podman, by id, and their images.

They are read only if a container of that runtime was found, within limits of time and size, and only from a socket or
a file that belongs to root or to the caller. Without a name the id is shown; the reason is a gap.

Facts: Docker Engine API, ContainerList (https://docs.docker.com/reference/api/engine), which podman answers too
(podman-system-service(1)); containers-storage.conf(5); rootless places as in
https://docs.docker.com/engine/security/rootless and podman(1).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import msgspec

from portbook.numerals import counted
from portbook.records import Gap

T = TypeVar("T")
Daemon = tuple[str, int]  # a runtime, and the uid of the user whose daemon it is

ROOT = 0
TIME_LIMIT_S = 0.5
MOST_BYTES = 4 << 20  # about 2 KB a container in docker's answer, 0.5 KB in podman's files
# One listing queries twice, for owners and for sockets without an owner; the second time the first answer is used.
FRESH_S = 1.0
# HTTP/1.0: the answer is not chunked and ends with the connection. Without a version in the path, the daemon chooses.
REQUEST = b"GET /containers/json?all=0 HTTP/1.0\r\nHost: localhost\r\n\r\n"
SHORT_ID = 12  # digits of an id in labels
DRIVERS = ("overlay", "vfs", "btrfs", "zfs")


class NameLookup(NamedTuple):
    """The names that were found, by id, and why others are missing."""

    names: dict[str, str]
    why: str | None = None


class _Listed(msgspec.Struct, rename="pascal"):
    """An entry of ContainerList. One of the names is the container's own, the others are links: ``/other/alias``."""

    id: str
    names: list[str] | None = None


class _Stored(msgspec.Struct):
    """An entry of containers-storage."""

    id: str
    names: list[str] | None = None
    image: str = ""  # its id
    metadata: str = ""  # JSON that podman wrote: the name of the image is in it


class _Imaged(msgspec.Struct, rename="pascal"):
    """An entry of ContainerList, with what it was made of."""

    id: str
    names: list[str] | None = None
    image: str = ""  # as it was named when the container was made
    image_id: str = msgspec.field(default="", name="ImageID")


class _Metadata(msgspec.Struct, rename="kebab"):
    image_name: str = ""


_answers: dict[Daemon, tuple[float, NameLookup]] = {}


def names_of(containers: Iterable[tuple[str, int, str]]) -> tuple[dict[str, str], list[Gap]]:
    """The names, by id, of containers given as runtime, uid of the user of the daemon, and id.

    Daemons of other users are never queried, not even by root: their answers are text that those users choose.
    """
    wanted: dict[Daemon, set[str]] = {}
    for runtime, daemon, number in containers:
        if runtime in LOOKUPS and _is_ours(daemon):
            wanted.setdefault((runtime, daemon), set()).add(number)
    names: dict[str, str] = {}
    gaps: list[Gap] = []
    for which, numbers in wanted.items():
        answer = _look_up(which, numbers)
        names.update((number, answer.names[number]) for number in numbers & answer.names.keys())
        gaps += _gap(which[0], len(numbers - answer.names.keys()), answer.why)
    return names, gaps


def _gap(runtime: str, count: int, why: str | None) -> Iterator[Gap]:
    """No gap without a reason: if there is no daemon and no file, there are no names to miss."""
    if count and why:
        containers = counted(count, f"{runtime} container")
        hint = "run with sudo" if why.startswith(DENIED) else None
        yield Gap("container", count, f"{containers} can be shown by id only: {why}", hint)


def _look_up(which: Daemon, numbers: set[str]) -> NameLookup:
    read_at, last = _answers.get(which, (0.0, NameLookup({})))
    is_fresh = time.monotonic() - read_at < FRESH_S
    if is_fresh and (last.why or numbers <= last.names.keys()):
        return last
    runtime, daemon = which
    answer = LOOKUPS[runtime](daemon, numbers)
    _answers[which] = time.monotonic(), answer
    return answer


def _read_docker(daemon: int, _: set[str]) -> NameLookup:
    for path in _docker_sockets(daemon):
        answer = _api(path)
        if answer is not None:
            return answer
    return NameLookup({})


def _read_podman(daemon: int, numbers: set[str]) -> NameLookup:
    """Read the lists of podman; query its API, which mostly starts a process, only for ids that they lack."""
    answers = [_storage(path) for path in _podman_lists(daemon)]
    if not numbers <= set().union(*(answer.names for answer in answers)):
        answer = _api(_podman_socket(daemon))
        if answer is not None:
            answers.append(answer)
    names: dict[str, str] = {}
    why: str | None = None
    for answer in answers:
        names.update(answer.names)
        why = why or answer.why
    return NameLookup(names, why)


LOOKUPS: dict[str, Callable[[int, set[str]], NameLookup]] = {"docker": _read_docker, "podman": _read_podman}


# --- images --------------------------------------------------------------------------------------------------------

Images = dict[str, tuple[str, ...]]  # by label of the container (``docker:web``, also with a short id): names and id


def images() -> tuple[Images, list[Gap]]:
    """The images of the running containers of the daemons of root and of the caller; one that fails is a gap.

    Their names are chosen by who may run containers: only ``sha256:…`` says which image it is.
    """
    found: Images = {}
    gaps: list[Gap] = []
    if not hasattr(os, "geteuid"):
        return found, gaps  # Windows: the API is behind a named pipe
    for daemon in dict.fromkeys((ROOT, os.geteuid())):
        for runtime, paths in api_sockets(daemon).items():
            try:
                found |= _images_of(runtime, daemon, paths)
            except (OSError, ValueError) as error:
                why = f"the images of {runtime} containers are not known: {_why(paths[-1], error)}"
                gaps.append(Gap("container", None, why, "run with sudo" if DENIED in why else None))
    return found, gaps


def _images_of(runtime: str, daemon: int, paths: list[str]) -> Images:
    """From the first API that answers; of podman also from its lists."""
    found: Images = {}
    if runtime == "podman":
        for path in _podman_lists(daemon):
            found |= _stored_images(path)
    for path in paths:
        try:
            containers = list_containers(path, _Imaged)
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        for each in containers:
            found |= _by_labels(runtime, each.id, own_name(each.names or []), (each.image, each.image_id))
        break
    return found


def _stored_images(path: str) -> Images:
    found: Images = {}
    try:
        entries = _decode(_read(path), _Stored)
    except FileNotFoundError:
        return found
    for each in entries:
        try:
            name = msgspec.json.decode(each.metadata or "{}", type=_Metadata).image_name
        except (msgspec.DecodeError, RecursionError):
            name = ""
        found |= _by_labels("podman", each.id, "".join((each.names or [])[:1]), (name, each.image))
    return found


def _by_labels(runtime: str, number: str, name: str | None, image: tuple[str, str]) -> Images:
    names = tuple(filter(None, (image[0], _with_digest(image[1]))))
    labels = [f"{runtime}:{text}" for text in (name, number[:SHORT_ID], number) if text]
    return dict.fromkeys(labels, names) if names else {}


def _with_digest(number: str) -> str:
    """The id of an image, as docker writes it: podman leaves the name of the hash out."""
    return number if number.startswith("sha256:") or not number else f"sha256:{number}"


# --- paths ---------------------------------------------------------------------------------------------------------


def _run(daemon: int) -> str:
    """The runtime directory of pam_systemd(8). $XDG_RUNTIME_DIR is not used, because it may name anything."""
    return "/run" if daemon == ROOT else f"/run/user/{daemon}"


def _docker_sockets(daemon: int) -> list[str]:
    """DOCKER_HOST counts for ordinary users only: root may have it from a user, and it may name anything."""
    sockets = [f"{_run(daemon)}/docker.sock"]
    if daemon == ROOT:
        sockets.append("/var/run/docker.sock")
    host = os.environ.get("DOCKER_HOST", "")
    if host.startswith("unix:///") and os.geteuid() != ROOT:
        sockets.insert(0, host.removeprefix("unix://"))
    return sockets


def _podman_socket(daemon: int) -> str:
    return f"{_run(daemon)}/podman/podman.sock"


def _podman_lists(daemon: int) -> Iterator[str]:
    """The lists of containers-storage; ``podman run --rm`` may use the volatile ones."""
    graph = _podman_graph(daemon)
    run = f"{_run(daemon)}/containers"
    if daemon == ROOT:
        run += "/storage"
    for driver in DRIVERS:
        yield f"{graph}/{driver}-containers/containers.json"
        yield f"{graph}/{driver}-containers/volatile-containers.json"
        yield f"{run}/{driver}-containers/volatile-containers.json"


def _podman_graph(daemon: int) -> str:
    if daemon == ROOT:
        return "/var/lib/containers/storage"
    data_home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return f"{data_home}/containers/storage"


# --- reading -------------------------------------------------------------------------------------------------------

DENIED = "permission denied"


def _storage(path: str) -> NameLookup:
    """The names in a list of containers-storage; none if there is no such list."""
    try:
        entries = _decode(_read(path), _Stored)
    except FileNotFoundError:
        return NameLookup({})
    except (OSError, ValueError) as error:
        return NameLookup({}, _why(path, error))
    return NameLookup({entry.id: entry.names[0] for entry in entries if entry.names})


def _read(path: str) -> bytes | bytearray:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(file, "rb") as stream:
        if not _is_ours(os.fstat(file).st_uid):
            raise ValueError("belongs to another user")
        return _check_size(stream.read(MOST_BYTES + 1))


def api_sockets(daemon: int = ROOT) -> dict[str, list[str]]:
    """The paths of the API sockets of the daemons of a user, by runtime."""
    return {"docker": _docker_sockets(daemon), "podman": [_podman_socket(daemon)]}


def list_containers(path: str, kind: type[T]) -> list[T]:
    """The running containers from the API at a Unix socket, each decoded as ``kind``; raise OSError or ValueError."""
    return _decode(_body(_exchange(path)), kind)


def _decode(data: bytes | bytearray, kind: type[T]) -> list[T]:
    """A list of records; raise ValueError, also for what is nested too deeply."""
    try:
        return msgspec.json.decode(data, type=list[kind])  # type: ignore[valid-type]
    except (msgspec.DecodeError, RecursionError) as error:  # no ValueErrors
        raise ValueError(str(error)) from error


def _api(path: str) -> NameLookup | None:
    """The names of the running containers; None if no daemon listens."""
    try:
        entries = list_containers(path, _Listed)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, ValueError) as error:
        return NameLookup({}, _why(path, error))
    names: dict[str, str] = {}
    for entry in entries:
        name = own_name(entry.names or [])
        if name:
            names[entry.id] = name
    return NameLookup(names)


def own_name(names: list[str]) -> str | None:
    """The name of a container itself; its other names are links from other containers."""
    for name in names:
        plain = name.removeprefix("/")
        if "/" not in plain:
            return plain
    return None


def _exchange(path: str) -> bytearray:
    """Send the request and return the whole answer, within the time limit."""
    from socket import AF_UNIX, socket

    deadline = time.monotonic() + TIME_LIMIT_S
    if not _is_ours(os.stat(path).st_uid):
        raise ValueError("belongs to another user")
    answer = bytearray()
    with socket(AF_UNIX) as channel:
        channel.settimeout(TIME_LIMIT_S)
        channel.connect(path)
        channel.sendall(REQUEST)
        while part := channel.recv(1 << 16):
            answer += part
            _check_size(answer)
            channel.settimeout(max(deadline - time.monotonic(), 0.001))
    return answer


def _body(answer: bytearray) -> bytearray:
    head, _, body = answer.partition(b"\r\n\r\n")
    if head[:5] != b"HTTP/" or head.split(b" ", 2)[1:2] != [b"200"]:
        raise ValueError(f"answered {head[:40].decode('ascii', 'replace')!a}")
    return body


def _check_size(data: bytes | bytearray) -> bytes | bytearray:
    if len(data) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES >> 20} MiB")
    return data


def _is_ours(uid: int) -> bool:
    return uid in (ROOT, os.geteuid())


def _why(path: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{DENIED} on {path}"
    if isinstance(error, TimeoutError):
        return f"{path} did not answer within {TIME_LIMIT_S:g} s"
    return f"{path}: {getattr(error, 'strerror', None) or error}"
