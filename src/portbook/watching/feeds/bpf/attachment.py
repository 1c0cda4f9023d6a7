"""Programs and the hooks that they are attached to: by links, which end with this process, however it ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from portbook.enrich import cgroup
from portbook.errors import SourceDenied, SourceError, SourceMissing
from portbook.sources.bpf import calls, offsets
from portbook.sources.bpf.btf import Layout
from portbook.system import namespaces, privilege
from portbook.watching.feeds.bpf import program
from portbook.watching.feeds.bpf.program import HookProgram, Maps
from portbook.watching.feeds.bpf.record import KINDS

NEEDED = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")  # capabilities(7); CAP_SYS_ADMIN has all that the three give here
SINCE = (5, 12)  # bpf_get_socket_cookie for programs of trace points
# fsopen(2), fsconfig(2), fsmount(2): one number on every architecture; include/uapi/linux/mount.h for the others.
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432
CLOEXEC, CREATE = 1, 6
TRIAL_BYTES = 1 << 16  # of a ring: a multiple of the size of a page, which is 64 KiB at most


def missing() -> str | None:
    """Why the programs cannot be used here; None if they can. They are attached and detached."""
    try:
        layout = look_up()
        with ExitStack() as stack:
            maps = Maps(calls.make_ring(TRIAL_BYTES), calls.make_counters(len(KINDS)), calls.make_socket_marks())
            for descriptor in (maps.ring, maps.counters, maps.marks):
                stack.callback(os.close, descriptor)
            for link in attach(layout, maps):
                os.close(link)
    except (SourceError, ValueError) as error:
        return str(error).removeprefix("bpf: ")  # the name of the feed stands before it
    return None


def look_up() -> Layout:
    """The places of the kernel's members; raise SourceError where the programs cannot work."""
    release = os.uname().release
    if _version(release) < SINCE:
        raise SourceMissing(f"bpf: needs Linux {'.'.join(map(str, SINCE))}, this is {release}")
    _check_privilege()
    if not namespaces.sees_every_process():
        hint = "run on the host, or in a container that shares the host's pid namespace"
        raise SourceMissing("bpf: this is a pid namespace: the processes outside of it could not be named", hint)
    layout = offsets.offsets(program.PATHS, (program.TRACE_POINT,))
    lacking = program.missing(layout.places)
    if layout.functions[program.TRACE_POINT] is None:
        lacking = program.TRACE_POINT
    if lacking:
        raise SourceMissing(f"bpf: kernel {release} has no {lacking}")
    return layout


def _version(release: str) -> tuple[int, ...]:
    """The first two numbers of a kernel's release."""
    from portbook.numerals import number_or_none

    first, _, rest = release.partition(".")
    second = rest.partition(".")[0].partition("-")[0]
    return number_or_none(first) or 0, number_or_none(second) or 0


def _check_privilege() -> None:
    if privilege.has("CAP_SYS_ADMIN"):
        return
    lacking = [name for name in NEEDED if not privilege.has(name)]
    if lacking:
        why = f"bpf: uid {os.geteuid()} lacks {', '.join(lacking)}"
        raise SourceDenied(why, privilege.remedy(*NEEDED))


# --- cgroups -------------------------------------------------------------------------------------------------------


def open_root() -> int:
    """The root of the cgroup v2 hierarchy, also where nobody has mounted it; raise SourceError."""
    for place in _mounted_roots():
        try:
            opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        if os.fstat(opened).st_ino == cgroup.ROOT_ID:
            return opened
        os.close(opened)
    return _mount_root()


def _mounted_roots() -> Iterator[bytes]:
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            mountinfo = file.read(cgroup.MOST_MOUNTINFO)
    except OSError:
        return
    # In a cgroup namespace the root of a mount from outside is written as "/..": what was opened decides.
    for _, point in sorted(cgroup.mounts(mountinfo), key=lambda mount: mount[0] != b"/"):
        yield point


def _mount_root() -> int:
    """A mount of our own, which is in no directory and goes with its descriptor (fsmount(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        answer = int(libc.syscall(number, *arguments))
        if answer < 0:
            code = ctypes.get_errno()
            why = f"bpf: the root of the cgroups cannot be opened: cgroup2 is not mounted ({os.strerror(code)})"
            hint = "mount -t cgroup2 none /sys/fs/cgroup/unified" if code != errno.EPERM else None
            raise SourceMissing(why, hint)
        return answer

    context = call(SYS_FSOPEN, b"cgroup2", CLOEXEC)
    try:
        call(SYS_FSCONFIG, context, CREATE, None, None, 0)
        mounted = call(SYS_FSMOUNT, context, CLOEXEC, 0)
    finally:
        os.close(context)
    if os.fstat(mounted).st_ino != cgroup.ROOT_ID:
        os.close(mounted)
        hint = "run on the host, or in a container with the host's cgroup namespace"
        raise SourceMissing("bpf: this is a cgroup namespace: sockets outside of it would not be seen", hint)
    return mounted


# --- attaching -----------------------------------------------------------------------------------------------------


def attach(layout: Layout, maps: Maps) -> list[int]:
    """Load and attach all programs; the descriptors of the links. Raise SourceError: then none is attached."""
    links: list[int] = []
    root = open_root()
    try:
        for each, loaded in _load(program.build(layout.places, maps), layout):
            try:
                links.append(_attach(each, loaded, root))
            finally:
                os.close(loaded)
    except BaseException:
        for link in links:
            os.close(link)
        raise
    finally:
        os.close(root)
    return links


def _load(programs: Iterable[HookProgram], layout: Layout) -> Iterator[tuple[HookProgram, int]]:
    trace_point = layout.functions[program.TRACE_POINT]
    for each in programs:
        code = each.code.assemble()
        if each.kind is None:
            yield each, calls.load_for_trace_point(code, trace_point or 0)
        else:
            yield each, calls.load_for_cgroup(code, each.kind, each.attach_type)


def _attach(each: HookProgram, loaded: int, root: int) -> int:
    if each.kind is None:
        return calls.attach_to_trace_point(loaded)
    try:
        return calls.attach_to_cgroup(loaded, root, each.attach_type)
    except SourceDenied as error:
        why = f"{error} ({each.name})"
        raise SourceDenied(
            why, error.hint or "another program may have this hook for itself: bpftool cgroup tree"
        ) from error
