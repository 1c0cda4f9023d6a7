"""What several tests share. Imported by the Windows run too: nothing of Unix at the top."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from portbook import testing
from tests import beside
from tests.components import need

# The tests start thousands of processes that import portbook; without bytecode each compiles it, half of their time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes says how busy the machine is.
settings.register_profile("portbook", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("portbook")

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534  # every Linux distribution; a uid without a process of its own will do
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Runs a program as another user, who may not be able to search the directories that the interpreter and this checkout
# lie in (/root). In a mount namespace of its own, each such top directory is replaced by an empty one in which only
# the needed paths are mounted; /media, of the Filesystem Hierarchy Standard, holds them meanwhile.
AS_USER = r"""
set -e
user=$1 paths=$2
shift 2
mount --make-rprivate /
hold=/media
mount -t tmpfs -o mode=755 tmpfs "$hold"
n=0
for path in $paths; do
    n=$((n + 1))
    mkdir "$hold/$n"
    mount --rbind "$path" "$hold/$n"
done
for path in $paths; do
    top=/$(echo "$path" | cut -d/ -f2)
    if [ -e "$top/.portbook" ]; then
        continue
    fi
    if ! setpriv --reuid="$user" --regid="$user" --clear-groups sh -c 'cd "$1" 2>&-' sh "$path"; then
        mount -t tmpfs -o mode=755 tmpfs "$top"
        touch "$top/.portbook"
    fi
done
n=0
for path in $paths; do
    n=$((n + 1))
    if [ -e "/$(echo "$path" | cut -d/ -f2)/.portbook" ]; then
        mkdir -p "$path"
        mount --rbind "$hold/$n" "$path"
    fi
done
umount -l "$hold"
cd /
exec setpriv --reuid="$user" --regid="$user" --clear-groups "$@"
"""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Without pytest-timeout the tests run too, with no limit but their own."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "not used: pytest-timeout is not installed")


def pytest_configure(config: pytest.Config) -> None:
    """Take back what ``nohup`` and ``&`` of a shell ignore: a child would inherit it, and a shell cannot trap it again.

    exec(2) keeps ignored signals ignored and gives handled ones their default action. So both get handlers: Ctrl-C has
    its usual one, and a hang-up ends a child, but not the tests.
    """
    beside.register(config)
    config.addinivalue_line("markers", "timeout(seconds): the limit of a test that needs more than the others")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if sys.platform != "win32" and signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item) -> Iterator[None]:
    """End the children of a test that exceeds its limit: ``with Popen(...)`` would wait for them for ever."""
    done = yield
    if sys.platform == "win32" or signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, signal.SIG_IGN, None):
        return done
    fail = signal.getsignal(signal.SIGALRM)
    started_at = time.time()

    def end_children(number: int, frame: object) -> None:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if child.create_time() >= started_at - 1:  # relative to btime of /proc/stat, in whole seconds
                    child.kill()
        fail(number, frame)

    signal.signal(signal.SIGALRM, end_children)
    return done


def as_user(
    uid: int, *command: str, before: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as another user; ``before`` is shell that root runs first, in the same mount namespace."""
    paths = " ".join(dict.fromkeys((sys.base_prefix, sys.prefix, REPOSITORY)))
    script = before + AS_USER
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(uid), paths, *command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        check=False,
    )


def unheld_port() -> int:
    """A port that neither TCP nor UDP has on any address; it was free a moment ago."""
    for _ in range(100):
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("", 0))
            with suppress(OSError):
                udp.bind(("", tcp.getsockname()[1]))
                return tcp.getsockname()[1]
    raise RuntimeError("a hundred ports were taken")


@pytest.fixture
def as_nobody():
    """Run a command as uid 65534."""
    need(ROOT, "root, to run something as another user")
    return lambda *command, **more: as_user(NOBODY, *command, **more)


CLONE_NEWNET = 0x40000000


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """A directory that other users can search: pytest keeps its own to itself, and every run makes that so again."""
    path = Path(tempfile.mkdtemp(prefix="portbook-test-"))
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def own_network():
    """For root on Linux: a network of the module's own, with nothing but a loopback device.

    So nobody else opens sockets meanwhile: /proc/net is read in pieces, and whoever comes or goes between two of them
    shifts the rows. The test process itself moves there and back, and its children with it.
    """
    if not (sys.platform == "linux" and ROOT):
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            if libc.setns(before.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture(scope="module")
def zoo(own_network):
    """Every kind of socket that this machine can have and that lasts, open while the tests of a module run."""
    lasting = [kind for kind in testing.KINDS if kind not in testing.BRIEF and testing.absent(kind) is None]
    with testing.zoo(*lasting) as animals:
        yield animals


@pytest.fixture
def brief_zoo(own_network):
    """The kinds that do not last, opened for one test."""
    present = [kind for kind in testing.KINDS if kind in testing.BRIEF and testing.absent(kind) is None]
    with testing.zoo(*present) as animals:
        yield animals
