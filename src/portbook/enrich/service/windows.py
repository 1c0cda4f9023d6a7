"""Windows services: which ones run in a process, and which one of a shared svchost created a socket.

EnumServicesStatusExW (learn.microsoft.com, winsvc.h) returns the pid of every service. For a process with several
services, the service tag that Windows keeps with the socket identifies one: I_QueryTagInformation, an undocumented
function of sechost.dll (of advapi32.dll before Windows 8.1), as System Informer declares it
(phnt/include/subprocesstag.h in github.com/winsiderss/systeminformer).
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any

from msgspec.structs import replace

from portbook.records import Gap, Owner
from portbook.system.winapi import is_wine, last_error, load_library

PVOID, DWORD, BOOL = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int
SC_MANAGER_ENUMERATE_SERVICE = 4
SC_ENUM_PROCESS_INFO = 0
SERVICE_WIN32 = 0x30
SERVICE_ACTIVE = 1
ERROR_MORE_DATA = 234
FIRST_SIZE = 1 << 17
MOST_SIZE = 1 << 18  # "The maximum size of this array is 256K bytes": the rest comes with the next call
MOST_CALLS = 64
NAME_FROM_TAG = 1
TAG_LIBRARIES = ("sechost", "advapi32")


class ENUM_SERVICE_STATUS_PROCESSW(ctypes.Structure):  # noqa: N801  # the name it has in winsvc.h
    """learn.microsoft.com, winsvc.h; from dwServiceType on it is a SERVICE_STATUS_PROCESS."""

    _fields_ = (
        ("lpServiceName", ctypes.c_wchar_p),
        ("lpDisplayName", ctypes.c_wchar_p),
        ("dwServiceType", DWORD),
        ("dwCurrentState", DWORD),
        ("dwControlsAccepted", DWORD),
        ("dwWin32ExitCode", DWORD),
        ("dwServiceSpecificExitCode", DWORD),
        ("dwCheckPoint", DWORD),
        ("dwWaitHint", DWORD),
        ("dwProcessId", DWORD),
        ("dwServiceFlags", DWORD),
    )


class TagInformation(ctypes.Structure):
    """SC_SERVICE_TAG_QUERY: pid and tag go in, the name comes out."""

    _fields_ = (("pid", DWORD), ("tag", DWORD), ("kind", DWORD), ("name", PVOID))


def enrich(owners: list[Owner]) -> tuple[list[Owner], list[Gap]]:
    """Name the service of each owner that belongs to one; all services of its process if there is no service tag."""
    try:
        services_by_pid = running_services()
    except OSError as error:
        return owners, [Gap("service", None, f"services cannot be listed: {error}")]
    return [_complete(owner, services_by_pid.get(owner.pid, [])) for owner in owners], []


def _complete(owner: Owner, services: list[str]) -> Owner:
    if not services:
        return owner
    if len(services) == 1:
        return replace(owner, service=services[0])
    name = _tagged_service(owner) or ", ".join(sorted(services))
    return replace(owner, service=name)


def running_services() -> dict[int, list[str]]:
    """The names of the running services by the pid of their process; raise OSError."""
    advapi32 = load_library("advapi32")
    advapi32.OpenSCManagerW.restype = PVOID
    advapi32.OpenSCManagerW.argtypes = [PVOID, PVOID, DWORD]
    advapi32.CloseServiceHandle.argtypes = [PVOID]
    manager = advapi32.OpenSCManagerW(None, None, SC_MANAGER_ENUMERATE_SERVICE)
    if not manager:
        raise OSError(f"OpenSCManagerW failed with error {last_error()}")
    try:
        return _enumerate_services(advapi32, manager)
    finally:
        advapi32.CloseServiceHandle(manager)


def _enumerate_services(advapi32: Any, manager: int) -> dict[int, list[str]]:
    enumerate_services = advapi32.EnumServicesStatusExW
    enumerate_services.argtypes = [PVOID, ctypes.c_int, DWORD, DWORD, PVOID, DWORD, PVOID, PVOID, PVOID, PVOID]
    enumerate_services.restype = BOOL
    services: dict[int, list[str]] = {}
    size, needed, count, resume = FIRST_SIZE, DWORD(0), DWORD(0), DWORD(0)
    for _ in range(MOST_CALLS):
        buffer = ctypes.create_string_buffer(size)
        out = byref(needed), byref(count), byref(resume), None
        complete = enumerate_services(manager, SC_ENUM_PROCESS_INFO, SERVICE_WIN32, SERVICE_ACTIVE, buffer, size, *out)
        error = last_error()
        if not complete and error != ERROR_MORE_DATA:
            raise OSError(f"EnumServicesStatusExW failed with error {error}")
        for row in (ENUM_SERVICE_STATUS_PROCESSW * count.value).from_buffer(buffer):
            services.setdefault(row.dwProcessId, []).append(row.lpServiceName or "")
        if complete:
            break
        size = min(MOST_SIZE, max(size, needed.value))
    return services


def _tagged_service(owner: Owner) -> str | None:
    """The service with the tag of the socket; None without a tag, or if Windows does not know it."""
    if owner.service_tag is None:
        return None
    for library in TAG_LIBRARIES:
        try:
            query = load_library(library).I_QueryTagInformation
        except (OSError, AttributeError):
            continue
        return _query_tag(query, owner.pid, owner.service_tag)
    return None


def _query_tag(query: Any, pid: int, tag: int) -> str | None:
    if is_wine():  # Wine 10 exports the function, and ends the process that calls it
        return None
    query.argtypes = [PVOID, ctypes.c_int, PVOID]
    query.restype = DWORD
    information = TagInformation(pid, tag)
    if query(None, NAME_FROM_TAG, byref(information)) != 0 or not information.name:
        return None
    name = ctypes.wstring_at(information.name)
    _local_free(information.name)
    return name or None


def _local_free(block: int) -> None:
    kernel32 = load_library("kernel32")
    kernel32.LocalFree.argtypes = [PVOID]
    kernel32.LocalFree.restype = PVOID
    kernel32.LocalFree(block)
