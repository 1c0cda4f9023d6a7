"""What would help, in the place where this runs: each remedy is of the situation, which is made for real."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.components import need
from tests.conftest import NOBODY, ROOT, as_user

if sys.platform != "linux":
    pytest.skip("capabilities and user namespaces are of Linux", allow_module_level=True)

from portbook.system import privilege

ASK = (
    "from portbook.system import privilege as p; "
    "print(p.remedy('CAP_SYS_PTRACE'), p.remedy_for_programs(), p.has('CAP_SYS_PTRACE'), sep='|')"
)
DROP = ("setpriv", "--bounding-set", "-sys_ptrace,-bpf,-perfmon", "--inh-caps", "-sys_ptrace,-bpf,-perfmon")
OUTSIDE = "run as root outside of this user namespace"


def said(*command, script=ASK, arguments=()):
    run = subprocess.run(
        [*command, sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.rstrip("\n").split("|")


@pytest.fixture(autouse=True)
def root():
    need(ROOT, "root, to make the situations")


def test_root_has_what_it_needs():
    assert said()[2] == "True"
    assert said()[0] in ("None", "run without the seccomp filter of this container or service")


def test_root_that_lacks_capabilities_is_not_told_to_become_root():
    remedy, programs, has = said(*DROP)
    assert remedy == "run with CAP_SYS_PTRACE, which this root lacks (for a container: --cap-add CAP_SYS_PTRACE)"
    assert programs.startswith("run with CAP_BPF and CAP_PERFMON, which this root lacks")
    assert has == "False"


def test_the_root_of_a_user_namespace_has_nothing_outside():
    assert said("unshare", "--user", "--map-root-user") == [OUTSIDE, OUTSIDE, "False"]


def test_an_ordinary_user():
    run = as_user(NOBODY, sys.executable, "-c", ASK)
    assert run.stdout == "run with sudo|run with sudo, or with CAP_BPF and CAP_PERFMON|False\n"


def test_sudo_is_no_remedy_where_no_privileges_can_be_gained():
    run = as_user(NOBODY, "setpriv", "--no-new-privs", sys.executable, "-c", ASK)
    assert run.stdout.count("sudo has no effect here") == 2, run.stderr


def test_a_missing_proc_is_named_as_the_reason(tmp_path):
    """An empty directory in place of /proc."""
    script = f"mount -t tmpfs none /proc && exec {sys.executable} -m portbook who 1"
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert "hidepid" not in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert run.returncode in (1, 5)


def test_owners_that_a_missing_proc_does_not_show(monkeypatch):
    from portbook.enrich import descriptors

    monkeypatch.setattr(descriptors.os, "readlink", lambda _: "1")
    assert descriptors.hides_processes() == descriptors.OTHER_PIDS
    monkeypatch.setattr(descriptors.os.path, "exists", lambda _: False)
    assert descriptors.hides_processes() == descriptors.NOT_MOUNTED


def test_without_proc_the_caller_counts_as_it_is(monkeypatch):
    monkeypatch.setattr(privilege, "_status", dict)
    assert privilege.has("CAP_SYS_PTRACE") == (os.geteuid() == 0)
