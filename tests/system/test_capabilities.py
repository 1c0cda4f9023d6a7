"""Capabilities that are given up: the kernel and a program that is started say what is left."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.components import need
from tests.conftest import NOBODY, ROOT, as_user

if sys.platform != "linux":
    pytest.skip("capabilities are of Linux", allow_module_level=True)

KEEP = """
import json, os, subprocess, sys, threading
from portbook.system import capabilities
kept = capabilities.keep(sys.argv[1:])
def status(path):
    with open(path) as file:
        return dict(line.split(":", 1) for line in file.read().splitlines())
sets = {}
threading.Thread(target=lambda: sets.update(thread=status("/proc/thread-self/status"))).start()
sets["main"] = status("/proc/self/status")
for name, command in {"child": ["cat", "/proc/self/status"], "twice": ["sh", "-c", "cat /proc/self/status"]}.items():
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sets[name] = dict(line.split(":", 1) for line in text.splitlines())
fields = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
print(json.dumps({"kept": kept, **{n: {f: int(s[f], 16) for f in fields} for n, s in sets.items()}}))
"""
PTRACE, ADMIN = 1 << 19, 1 << 21


def left(*command: str, arguments: tuple[str, ...] = ("CAP_SYS_PTRACE", "CAP_SYS_ADMIN")):
    done = subprocess.run(
        [*command, sys.executable, "-c", KEEP, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_kept_is_all_that_is_left_and_programs_have_nothing():
    need(ROOT, "root, to have capabilities")
    answer = left()
    assert answer["kept"] == ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]
    kept = PTRACE | ADMIN
    for name in ("main", "thread"):
        assert answer[name] == {
            "CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": 0, "NoNewPrivs": 1,
        }  # fmt: skip
    for name in ("child", "twice"):
        assert answer[name] == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": kept, "CapAmb": 0, "NoNewPrivs": 1}


def test_nothing_is_gained():
    need(ROOT, "root, to take some away")
    answer = left("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace")
    assert answer["kept"] == ["CAP_SYS_ADMIN"]
    assert answer["main"]["CapEff"] == ADMIN


def test_without_the_right_to_change_the_bounding_set_the_rest_is_given_up():
    need(ROOT, "root, to take some away")
    answer = left("setpriv", "--bounding-set", "-setpcap", "--inh-caps", "-setpcap")
    assert answer["main"]["CapEff"] == PTRACE | ADMIN
    assert answer["main"]["NoNewPrivs"] == 1


def test_an_ordinary_user_has_none_and_that_is_no_error():
    need(ROOT, "root, to run something as another user")
    done = as_user(NOBODY, sys.executable, "-c", KEEP, "CAP_SYS_PTRACE")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["kept"], answer["main"]["CapEff"], answer["main"]["NoNewPrivs"]) == ([], 0, 1)
