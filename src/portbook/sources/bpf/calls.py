"""bpf(2) through ctypes: load programs, attach them, make maps; run a program for every open file.

Facts: bpf(2); union bpf_attr in include/uapi/linux/bpf.h; Documentation/bpf/bpf_iterators.rst. What is attached by a
link is detached when the last descriptor of the link is closed, also when the process is killed.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable, Iterable

from portbook.errors import SourceDenied, SourceError, SourceMissing
from portbook.system.bpf import SYS_BPF

Call = Callable[[int, bytes], int]

MAP_CREATE, PROG_LOAD, PROG_TEST_RUN, RAW_TRACEPOINT_OPEN, BTF_LOAD, LINK_CREATE, ITER_CREATE = 0, 5, 10, 17, 18, 28, 33
PROG_TYPE_TRACING, PROG_TYPE_SYSCALL, TRACE_RAW_TP, TRACE_ITER = 26, 31, 23, 28
MAP_TYPE_ARRAY, MAP_TYPE_SK_STORAGE, MAP_TYPE_RINGBUF = 2, 24, 27
F_NO_PREALLOC, F_MMAPABLE = 1, 1 << 10
F_SLEEPABLE = 16
# prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name, prog_ifindex,
# expected_attach_type, prog_btf_fd, func_info_rec_size, func_info, func_info_cnt, line_info_rec_size, line_info,
# line_info_cnt, attach_btf_id, attach_prog_fd
LOAD = struct.Struct("=IIQQIIQII16sIIIIQIIQIII")
LINK = struct.Struct("=IIIIQI")  # prog_fd, target_fd, attach_type, flags, iter_info, iter_info_len
TASK = struct.Struct("=III")  # bpf_iter_link_info.task: tid, pid, pid_fd
ITER = struct.Struct("=II")  # link_fd, flags
# prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration, ctx_size_in, ctx_size_out, ctx_in,
# ctx_out, flags, cpu, batch_size
TEST_RUN = struct.Struct("=IIIIQQIIIIQQIII")
# map_type, key_size, value_size, max_entries, map_flags, inner_map_fd, numa_node, map_name, map_ifindex, btf_fd,
# btf_key_type_id, btf_value_type_id, btf_vmlinux_value_type_id
MAP = struct.Struct("=7I16s5I")
RAW_TRACEPOINT = struct.Struct("=QII")  # name, prog_fd
BTF = struct.Struct("=QQIII")  # btf, btf_log_buf, btf_size, btf_log_size, btf_log_level
# A description with one type, int: a header with the lengths of both sections, the type (name at 1, BTF_KIND_INT, 4
# bytes; signed, 32 bits), the names. Documentation/bpf/btf.rst. The storage of a socket has to have one.
ONE_INT = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 16, 16, 5) + struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)
ONE_INT += b"\0int\0"
NAME = b"portbook"  # bpftool(8) shows it
# Some of the helpers may be called only by programs with a licence that is compatible with the GPL:
# license_is_gpl_compatible() in include/linux/license.h. This concerns the few hundred bytes that go into the kernel,
# which program.py makes: they are offered under the MIT licence, as all of portbook, and under the GPL version 2.
LICENSE = b"Dual MIT/GPL\0"
SINCE = "Linux 5.12 and later have it"  # the iterator, and the helpers that the program calls
UNKNOWN_HELPER = "invalid func unknown#"  # check_helper_call() in kernel/bpf/verifier.c
LOG_SIZE = 1 << 16
LOG_LINES = 3  # of the verifier's log, from its end, that an error shows
INSTRUCTION_SIZE = 8
BUFFER = 1 << 16  # the kernel fills at most half of it: PAGE_SIZE << 3 in kernel/bpf/bpf_iter.c
LOCKDOWN = "/sys/kernel/security/lockdown"
MOST_TRIES = 1_000_000  # the kernel answers EAGAIN after a million files without a record: MAX_ITER_OBJECTS


def read_files(program: bytes, function: int, pids: Iterable[int] | None = None) -> bytes:
    """Run the program for every open file and return what it wrote.

    :param function: type number of the function it is attached to
    :param pids: only for files of these processes, where the kernel supports that (Linux 6.1); None: of every process
    :raises SourceDenied: this process may not load programs
    :raises SourceMissing: the kernel refuses the program; the message has the end of the verifier's log
    """
    call = _caller()
    loaded = _load(call, program, function)
    try:
        if pids is None:
            return _run(call, loaded, None)
        return b"".join(_run(call, loaded, pid) for pid in pids)
    finally:
        os.close(loaded)


def _run(call: Call, program: int, pid: int | None) -> bytes:
    link = _attach(call, program, pid)
    try:
        reading = _checked(call(ITER_CREATE, ITER.pack(link, 0)), "start")
    finally:
        os.close(link)  # the iterator keeps a reference
    try:
        return _read_all(reading)
    finally:
        os.close(reading)


def _attach(call: Call, program: int, pid: int | None) -> int:
    import ctypes

    if pid is not None:
        info = TASK.pack(0, pid, 0)
        place = ctypes.cast(ctypes.c_char_p(info), ctypes.c_void_p).value
        answer = call(LINK_CREATE, LINK.pack(program, 0, TRACE_ITER, 0, place, len(info)))
        if answer != -errno.E2BIG:  # the answer of a kernel that does not know ``task``: then it runs for all files
            return _checked(answer, "attach")
    return _checked(call(LINK_CREATE, LINK.pack(program, 0, TRACE_ITER, 0, 0, 0)), "attach")


def try_to_load(program: bytes, function: int) -> None:
    """Load the program without running it; raise what ``read_files`` raises."""
    os.close(_load(_caller(), program, function))


def load_callable(program: bytes) -> int:
    """Load a program that is run by a call, and return its descriptor; raise what ``read_files`` raises."""
    return _load_as(_caller(), program, PROG_TYPE_SYSCALL, F_SLEEPABLE, 0, 0)


def load_for_trace_point(program: bytes, trace_point: int) -> int:
    """Load a program for a trace point, given by its type number; raise what ``read_files`` raises."""
    return _load_as(_caller(), program, PROG_TYPE_TRACING, 0, TRACE_RAW_TP, trace_point)


def load_for_cgroup(program: bytes, kind: int, attach_type: int) -> int:
    """Load a program of a kind that cgroups run; raise what ``read_files`` raises."""
    return _load_as(_caller(), program, kind, 0, attach_type, 0)


def attach_to_trace_point(program: int) -> int:
    """Let the kernel run the program at its trace point; returns a link. Raises what ``read_files`` raises."""
    return _checked(_caller()(RAW_TRACEPOINT_OPEN, RAW_TRACEPOINT.pack(0, program, 0)), "attach")


def attach_to_cgroup(program: int, cgroup: int, attach_type: int) -> int:
    """Let the kernel run the program for a cgroup and all below it; returns a link. Raises as ``read_files`` does."""
    return _checked(_caller()(LINK_CREATE, LINK.pack(program, cgroup, attach_type, 0, 0, 0)), "attach")


def make_ring(size: int) -> int:
    """A ring buffer of a power of two of bytes; its descriptor. Raises what ``read_files`` raises."""
    return _make_map(MAP_TYPE_RINGBUF, 0, 0, size, 0)


def make_counters(count: int) -> int:
    """An array of 64-bit numbers in one value, which mmap(2) shows. Raises what ``read_files`` raises."""
    return _make_map(MAP_TYPE_ARRAY, 4, 8 * count, 1, F_MMAPABLE)


def make_socket_marks() -> int:
    """Storage for a number in every socket that is marked; it goes with the socket. Raises as ``read_files`` does."""
    import ctypes

    place = ctypes.cast(ctypes.c_char_p(ONE_INT), ctypes.c_void_p).value
    types = _caller()(BTF_LOAD, BTF.pack(place, 0, len(ONE_INT), 0, 0))
    if types < 0:
        raise _refused(-types, "bpf: the kernel does not take a description of types")
    try:
        return _make_map(MAP_TYPE_SK_STORAGE, 4, 4, 0, F_NO_PREALLOC, types)
    finally:
        os.close(types)


def _make_map(kind: int, key_size: int, value_size: int, entries: int, flags: int, types: int = 0) -> int:
    type_number = 1 if types else 0  # of the only type
    first = (kind, key_size, value_size, entries, flags, 0, 0)
    answer = _caller()(MAP_CREATE, MAP.pack(*first, NAME, 0, types, type_number, type_number, 0))
    if answer < 0:
        raise _refused(-answer, f"bpf: the kernel does not make a map of type {kind}")
    return answer


def runner(program: int, size: int) -> Callable[[bytes], bytes]:
    """A function that runs a loaded program with ``size`` bytes, and returns what it made of them.

    The function raises SourceMissing if the kernel does not run the program.
    """
    import ctypes

    call = _caller()
    buffer = ctypes.create_string_buffer(size)
    request = TEST_RUN.pack(program, 0, 0, 0, 0, 0, 0, 0, size, 0, ctypes.addressof(buffer), 0, 0, 0, 0)

    def run(given: bytes) -> bytes:
        buffer.raw = given
        _checked(call(PROG_TEST_RUN, request), "run")
        return buffer.raw

    return run


def _read_all(file: int) -> bytes:
    parts: list[bytes] = []
    for _ in range(MOST_TRIES):
        try:
            part = os.read(file, BUFFER)
        except BlockingIOError:
            continue
        except OSError as error:
            raise SourceMissing(f"bpf: reading failed after {len(parts)} parts: {error.strerror}") from error
        if not part:
            return b"".join(parts)
        parts.append(part)
    raise SourceMissing(f"bpf: reading did not end after {len(parts)} parts")


# --- the call ------------------------------------------------------------------------------------------------------


def _caller() -> Call:
    """The system call as ``call(command, attributes)``, which returns a file descriptor or a negative errno."""
    import ctypes

    number = SYS_BPF.get(os.uname().machine)
    if number is None or sys.maxsize < 2**32:
        raise SourceMissing(f"bpf: {os.uname().machine} is not supported")
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_ulong]
    syscall.restype = ctypes.c_long

    def call(command: int, attributes: bytes) -> int:
        answer = int(syscall(number, command, attributes, len(attributes)))
        return answer if answer >= 0 else -ctypes.get_errno()

    return call


def _checked(answer: int, what: str) -> int:
    if answer >= 0:
        return answer
    raise _refused(-answer, f"bpf: the kernel does not {what} the program")


def _refused(code: int, what: str) -> SourceError:
    text = f"{what} ({os.strerror(code)})"
    if _locked_down():
        return SourceDenied(text, "the kernel is locked down against reading its memory: kernel_lockdown(7)")
    if code == errno.EPERM:
        from portbook.system import privilege

        return SourceDenied(text, privilege.remedy_for_programs())
    return SourceMissing(text)


def _load(call: Call, program: bytes, function: int) -> int:
    return _load_as(call, program, PROG_TYPE_TRACING, 0, TRACE_ITER, function)


def _load_as(call: Call, program: bytes, kind: int, flags: int, attach_type: int, function: int) -> int:
    """Load the program; where that fails, load it again with a log, which costs time."""
    import ctypes

    def attributes(log: int = 0, log_size: int = 0) -> bytes:
        instructions = ctypes.cast(ctypes.c_char_p(program), ctypes.c_void_p).value
        licence = ctypes.cast(ctypes.c_char_p(LICENSE), ctypes.c_void_p).value
        count = len(program) // INSTRUCTION_SIZE
        log_level = 1 if log else 0
        before_name = (kind, count, instructions, licence, log_level, log_size, log, 0, flags)
        after_name = (0, attach_type, 0, 0, 0, 0, 0, 0, 0, function, 0)
        return LOAD.pack(*before_name, NAME, *after_name)

    answer = call(PROG_LOAD, attributes())
    if answer >= 0:
        return answer
    buffer = ctypes.create_string_buffer(LOG_SIZE)
    answer = call(PROG_LOAD, attributes(ctypes.addressof(buffer), LOG_SIZE))
    if answer >= 0:
        return answer
    log = buffer.value.decode("ascii", "replace")
    if UNKNOWN_HELPER in log and not _locked_down():
        raise SourceMissing(f"bpf: kernel {os.uname().release} lacks a function that the program calls", SINCE)
    why = "bpf: the kernel does not load the program"
    reason = _reason(log)
    raise _refused(-answer, f"{why}: {reason}" if reason else why)


def _reason(log: str) -> str:
    """The last lines of the verifier's log, which give the reason for the refusal, without its statistics."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith("processed ")]
    return " / ".join(lines[-LOG_LINES:])


def _locked_down() -> bool:
    """Whether programs may not read the kernel's memory (in the other lockdown mode, integrity, they may).

    LOCKDOWN_BPF_READ_KERNEL in include/linux/security.h. The verifier then reports an unknown helper.
    """
    try:
        with open(LOCKDOWN, "rb") as file:
            return b"[confidentiality]" in file.read(256)
    except OSError:
        return False
