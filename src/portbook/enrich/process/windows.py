"""Windows: all processes in one call, then what needs a handle to each process.

Names, parents and start times come from NtQuerySystemInformation, or from a Toolhelp snapshot if that fails; both
include other users' processes. The path, the user and the command line need a handle with
PROCESS_QUERY_LIMITED_INFORMATION (learn.microsoft.com, Process Security and Access Rights), which for most processes
needs no elevation.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from ctypes import byref
from datetime import datetime
from typing import Any, NamedTuple

from msgspec.structs import replace

from portbook.numerals import counted
from portbook.records import Gap, Owner
from portbook.system.winapi import ERROR_ACCESS_DENIED, Functions, Prototypes, filetime_to_datetime, last_error

MOST_PARENTS = 64
NAMES = {0: "System Idle Process", 4: "System"}  # as Task Manager calls them; they have no executable


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Complete each owner from its pid. An owner whose process has ended is returned as it was, and counted."""
    try:
        system = _System()
    except OSError as error:
        return owners, [Gap("process", len(owners), f"the processes of this machine cannot be listed: {error}")]
    completed = [system.complete(owner) for owner in owners]
    ended = {owner.pid for owner in owners} - system.processes.keys()
    return completed, list(_gaps(ended, system.denied))


def parents(pid: int, known: dict[int, Owner] | None = None) -> tuple[Owner, ...]:
    """The chain above ``pid``, nearest first."""
    try:
        system = _System()
    except OSError:
        return ()
    known = {} if known is None else known
    chain: list[Owner] = []
    for ancestor in ancestry(pid, system.processes):
        if ancestor not in known:
            known[ancestor] = system.complete(Owner(ancestor))
        chain.append(known[ancestor])
    return tuple(chain)


def add_origin(owner: Owner, _: object = None) -> Owner:
    """The owner: where a process was started is only in its own memory (PEB)."""
    return owner


def _gaps(ended: set[int], denied: set[int]) -> Iterator[Gap]:
    if ended:
        # A socket keeps the pid of the process that created it, even while others have inherited it.
        processes = counted(len(ended), "process", "processes")
        yield Gap("process", len(ended), f"{processes} that created a socket ended before the name could be read")
    if denied:
        processes = counted(len(denied), "process", "processes")
        why = f"access to {processes} was denied: path, user or command line are not known"
        yield Gap("process", len(denied), why, "run as administrator")


# --- the list of processes -----------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A process in the list of all processes."""

    name: str
    ppid: int
    created: int  # FILETIME; 0: not known


# SYSTEM_PROCESS_INFORMATION (learn.microsoft.com, NtQuerySystemInformation), by the size of a pointer: NextEntryOffset,
# CreateTime, ImageName as a UNICODE_STRING (bytes, room, address), UniqueProcessId, InheritedFromUniqueProcessId.
PROCESS_ROW = {8: struct.Struct("<I28xq16xHH4xQ8xQQ"), 4: struct.Struct("<I28xq16xHHI4xII")}


def parse_processes(data: bytes, base: int, pointer: int = 8) -> dict[int, Process]:
    """The processes in a buffer that was at the address ``base`` when the system filled it.

    The rows are linked by offsets and names lie behind them, so everything is checked against the buffer.
    """
    row = PROCESS_ROW[pointer]
    processes: dict[int, Process] = {}
    at = 0
    while 0 <= at <= len(data) - row.size:
        step, created, length, _, address, pid, ppid = row.unpack_from(data, at)
        start = address - base
        name = ""
        if 0 < start < len(data):
            name = data[start : start + length].decode("utf-16-le", "replace")
        processes[pid] = Process(NAMES.get(pid, name), ppid, created)
        if step == 0:
            break
        at += step
    return processes


def ancestry(pid: int, processes: dict[int, Process]) -> list[int]:
    """The pids above ``pid``. Pids are reused, so a process that started after its supposed child is not its parent."""
    chain: list[int] = []
    child = processes.get(pid)
    while child and len(chain) < MOST_PARENTS:
        parent = processes.get(child.ppid)
        is_repeated = child.ppid in (0, pid, *chain)
        if is_repeated or parent is None or parent.created > child.created > 0:
            break
        chain.append(child.ppid)
        child = parent
    return chain


# --- system calls --------------------------------------------------------------------------------------------------

HANDLE, PVOID, DWORD, BOOL, ULONG = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32
PROCESS_QUERY_LIMITED_INFORMATION = 0x1000
TOKEN_QUERY = 8
TOKEN_USER = 1
SYSTEM_PROCESS_INFORMATION = 5
PROCESS_COMMAND_LINE_INFORMATION = 60  # Windows 8.1 and later
STATUS_INFO_LENGTH_MISMATCH = 0xC0000004
FIRST_SIZE = 1 << 19
MOST_SIZE = 1 << 28
MOST_PATH = 1 << 15  # Maximum Path Length Limitation
TH32CS_SNAPPROCESS = 2
INVALID_HANDLE = ctypes.c_void_p(-1).value

PROTOTYPES: Prototypes = (
    ("ntdll", "NtQuerySystemInformation", ULONG, (ULONG, PVOID, ULONG, PVOID)),
    ("ntdll", "NtQueryInformationProcess", ULONG, (HANDLE, ULONG, PVOID, ULONG, PVOID)),
    ("kernel32", "OpenProcess", HANDLE, (DWORD, BOOL, DWORD)),
    ("kernel32", "CloseHandle", BOOL, (HANDLE,)),
    ("kernel32", "QueryFullProcessImageNameW", BOOL, (HANDLE, DWORD, PVOID, PVOID)),
    ("kernel32", "GetProcessTimes", BOOL, (HANDLE, PVOID, PVOID, PVOID, PVOID)),
    ("kernel32", "CreateToolhelp32Snapshot", HANDLE, (DWORD, DWORD)),
    ("kernel32", "Process32FirstW", BOOL, (HANDLE, PVOID)),
    ("kernel32", "Process32NextW", BOOL, (HANDLE, PVOID)),
    ("kernel32", "LocalFree", HANDLE, (HANDLE,)),
    ("advapi32", "OpenProcessToken", BOOL, (HANDLE, DWORD, PVOID)),
    ("advapi32", "GetTokenInformation", BOOL, (HANDLE, ctypes.c_int, PVOID, DWORD, PVOID)),
    ("advapi32", "LookupAccountSidW", BOOL, (PVOID, PVOID, PVOID, PVOID, PVOID, PVOID, PVOID)),
    ("advapi32", "ConvertSidToStringSidW", BOOL, (PVOID, PVOID)),
    ("advapi32", "GetLengthSid", DWORD, (PVOID,)),
    ("shell32", "CommandLineToArgvW", PVOID, (ctypes.c_wchar_p, PVOID)),
)


class PROCESSENTRY32W(ctypes.Structure):
    """learn.microsoft.com, tlhelp32.h."""

    _fields_ = (
        ("dwSize", DWORD),
        ("cntUsage", DWORD),
        ("th32ProcessID", DWORD),
        ("th32DefaultHeapID", ctypes.c_size_t),
        ("th32ModuleID", DWORD),
        ("cntThreads", DWORD),
        ("th32ParentProcessID", DWORD),
        ("pcPriClassBase", ctypes.c_int32),
        ("dwFlags", DWORD),
        ("szExeFile", ctypes.c_wchar * 260),
    )


class UNICODE_STRING(ctypes.Structure):  # noqa: N801  # the name it has in winternl.h
    """learn.microsoft.com, winternl.h."""

    _fields_ = (("Length", ctypes.c_uint16), ("MaximumLength", ctypes.c_uint16), ("Buffer", PVOID))


class _System:
    """The processes of this machine at one moment, and what can be read of each."""

    def __init__(self) -> None:
        self.call = Functions(PROTOTYPES)
        self.processes = self._list()
        self.denied: set[int] = set()
        self.accounts: dict[bytes, str | None] = {}

    def complete(self, owner: Owner) -> Owner:
        """The owner with everything that this process may read; as it was if there is no such process."""
        process = self.processes.get(owner.pid)
        if process is None:
            return owner
        listed = replace(
            owner, name=process.name or owner.name, ppid=process.ppid, started=filetime_to_datetime(process.created)
        )
        if owner.pid in NAMES:
            return listed
        handle = self._open(owner.pid)
        if not handle:
            return listed
        try:
            return replace(
                listed,
                exe=self._path(handle),
                user=self._user(owner.pid, handle),
                started=listed.started or self._started(handle),
                command_line=self._command_line(handle),
            )
        finally:
            self.call.CloseHandle(handle)

    # --- all processes ---

    def _list(self) -> dict[int, Process]:
        try:
            return self._from_kernel() or self._from_toolhelp()
        except (OSError, AttributeError):
            return self._from_toolhelp()

    def _from_kernel(self) -> dict[int, Process]:
        size = FIRST_SIZE
        needed = ULONG(0)
        while size <= MOST_SIZE:
            buffer = ctypes.create_string_buffer(size)
            status = self.call.NtQuerySystemInformation(SYSTEM_PROCESS_INFORMATION, buffer, size, byref(needed))
            if status == 0:
                data = bytes(memoryview(buffer)[: needed.value or size])
                return parse_processes(data, ctypes.addressof(buffer), ctypes.sizeof(PVOID))
            if status != STATUS_INFO_LENGTH_MISMATCH:
                break
            size = max(2 * size, needed.value + needed.value // 4)  # processes may have started meanwhile
        return {}

    def _from_toolhelp(self) -> dict[int, Process]:
        snapshot = self.call.CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0)
        if snapshot == INVALID_HANDLE:
            raise OSError(f"CreateToolhelp32Snapshot failed with error {last_error()}")
        processes: dict[int, Process] = {}
        entry = PROCESSENTRY32W(dwSize=ctypes.sizeof(PROCESSENTRY32W))
        has_entry = self.call.Process32FirstW(snapshot, byref(entry))
        while has_entry:
            pid = entry.th32ProcessID
            processes[pid] = Process(NAMES.get(pid, entry.szExeFile), entry.th32ParentProcessID, 0)
            has_entry = self.call.Process32NextW(snapshot, byref(entry))
        self.call.CloseHandle(snapshot)
        return processes

    # --- one process ---

    def _open(self, pid: int) -> int | None:
        handle: int | None = self.call.OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid)
        if not handle and last_error() == ERROR_ACCESS_DENIED:
            self.denied.add(pid)
        return handle

    def _path(self, handle: int) -> str | None:
        buffer = ctypes.create_unicode_buffer(MOST_PATH)
        length = DWORD(MOST_PATH)
        if not self.call.QueryFullProcessImageNameW(handle, 0, buffer, byref(length)):
            return None
        return buffer.value or None

    def _started(self, handle: int) -> datetime | None:
        times = [ctypes.c_int64(0) for _ in range(4)]
        if not self.call.GetProcessTimes(handle, *map(byref, times)):
            return None
        return filetime_to_datetime(times[0].value)

    def _user(self, pid: int, handle: int) -> str | None:
        token = HANDLE()
        if not self.call.OpenProcessToken(handle, TOKEN_QUERY, byref(token)):
            if last_error() == ERROR_ACCESS_DENIED:
                self.denied.add(pid)
            return None
        try:
            return self._token_user(token)
        finally:
            self.call.CloseHandle(token)

    def _token_user(self, token: Any) -> str | None:
        """TOKEN_USER begins with the address of the SID, which lies behind it in the same buffer."""
        buffer = ctypes.create_string_buffer(1024)
        size = DWORD(0)
        if not self.call.GetTokenInformation(token, TOKEN_USER, buffer, len(buffer), byref(size)):
            return None
        address = PVOID.from_buffer(buffer).value
        if not address:
            return None
        sid = ctypes.string_at(address, self.call.GetLengthSid(address))
        if sid not in self.accounts:
            self.accounts[sid] = self._account(sid) or self._sid_text(sid)
        return self.accounts[sid]

    def _account(self, sid: bytes) -> str | None:
        r"""``DOMAIN\name``. A domain controller may have to answer, so each account is looked up once."""
        name, domain = ctypes.create_unicode_buffer(256), ctypes.create_unicode_buffer(256)
        name_size, domain_size, use = DWORD(256), DWORD(256), DWORD(0)
        sizes = byref(name_size), domain, byref(domain_size)
        if not self.call.LookupAccountSidW(None, sid, name, *sizes, byref(use)):
            return None
        if not domain.value:
            return name.value
        return f"{domain.value}\\{name.value}"

    def _sid_text(self, sid: bytes) -> str | None:
        """The SID as text, for an account that was deleted or cannot be looked up."""
        text = ctypes.c_wchar_p()
        if not self.call.ConvertSidToStringSidW(sid, byref(text)):
            return None
        value = text.value
        self.call.LocalFree(ctypes.cast(text, PVOID))
        return value

    def _command_line(self, handle: int) -> tuple[str, ...] | None:
        """The command line; None before Windows 8.1, where it would have to be read from the memory of the process."""
        buffer = ctypes.create_string_buffer(ctypes.sizeof(UNICODE_STRING) + (1 << 16))
        size = ULONG(0)
        query: Callable[..., int] = self.call.NtQueryInformationProcess
        if query(handle, PROCESS_COMMAND_LINE_INFORMATION, buffer, len(buffer), byref(size)) != 0:
            return None
        text = UNICODE_STRING.from_buffer(buffer)
        if not text.Buffer:
            return ()
        line = ctypes.string_at(text.Buffer, text.Length).decode("utf-16-le", "replace")
        return self._arguments(line)

    def _arguments(self, line: str) -> tuple[str, ...]:
        if not line.strip():  # for an empty line, CommandLineToArgvW returns our own path
            return ()
        count = ctypes.c_int(0)
        block = self.call.CommandLineToArgvW(line, byref(count))
        if not block:
            return (line,)
        arguments = ctypes.cast(block, ctypes.POINTER(ctypes.c_wchar_p))[: count.value]
        self.call.LocalFree(block)
        return tuple(argument or "" for argument in arguments)
