"""Services, asked of the service control manager."""

from __future__ import annotations

import ctypes
import os

import pytest

from portbook.enrich.service import windows
from portbook.records import Owner


def test_services_run_in_processes():
    running = windows.running_services()
    names = {name.lower() for services in running.values() for name in services}
    assert "eventlog" in names
    assert all(pid > 0 for pid in running)


def test_a_buffer_that_is_too_small_is_enlarged(monkeypatch):
    whole = windows.running_services()
    monkeypatch.setattr(windows, "FIRST_SIZE", 64)
    assert windows.running_services() == whole


def test_the_owner_of_a_service_is_named_after_it():
    pid, services = next((pid, names) for pid, names in windows.running_services().items() if len(names) == 1)
    (service, mine), gaps = windows.enrich([Owner(pid, name="svchost.exe"), Owner(os.getpid())])
    assert service == Owner(pid, name="svchost.exe", service=services[0])
    assert mine == Owner(os.getpid())
    assert gaps == []


def test_several_services_of_one_process_are_all_named(monkeypatch):
    monkeypatch.setattr(windows, "running_services", lambda: {8: ["Dnscache", "CryptSvc"]})
    (owner,), _ = windows.enrich([Owner(8)])
    assert (owner.service, owner.confidence) == ("CryptSvc, Dnscache", "certain")


@pytest.mark.parametrize(("answer", "service"), [("Dnscache", "Dnscache"), (None, "CryptSvc, Dnscache")])
def test_the_tag_identifies_one_of_several_services(monkeypatch, answer, service):
    monkeypatch.setattr(windows, "running_services", lambda: {8: ["Dnscache", "CryptSvc"]})
    monkeypatch.setattr(windows, "_query_tag", lambda query, pid, tag: answer if (pid, tag) == (8, 5) else "wrong")
    (owner,), _ = windows.enrich([Owner(8, service_tag=5)])
    assert owner.service == service


@pytest.mark.parametrize(("code", "name", "answer"), [(0, "Dnscache", "Dnscache"), (0, None, None), (87, None, None)])
def test_a_tag_is_queried_as_windows_answers(monkeypatch, code, name, answer):
    """Wine has a stub that ends the process: this stands in for I_QueryTagInformation, and allocates as it does."""
    monkeypatch.setattr(windows, "is_wine", lambda: False)

    def query(machine, level, information):
        asked = information._obj
        assert (machine, level, asked.pid, asked.tag) == (None, 1, 8, 5)
        if name:
            kernel32 = ctypes.WinDLL("kernel32")
            kernel32.LocalAlloc.restype, kernel32.LocalAlloc.argtypes = (
                ctypes.c_void_p,
                [ctypes.c_uint, ctypes.c_size_t],
            )
            text = ctypes.create_unicode_buffer(name)
            asked.name = kernel32.LocalAlloc(0, ctypes.sizeof(text))
            ctypes.memmove(asked.name, text, ctypes.sizeof(text))
        return code

    assert windows._query_tag(query, 8, 5) == answer


def test_without_the_service_manager_there_is_a_gap(monkeypatch):
    def fail():
        raise OSError("no")

    monkeypatch.setattr(windows, "running_services", fail)
    owners, (gap,) = windows.enrich([Owner(8)])
    assert (owners, gap.what) == ([Owner(8)], "service")
