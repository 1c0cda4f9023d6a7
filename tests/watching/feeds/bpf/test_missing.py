"""What is missing is said exactly: each capability, each namespace that hides what would not be seen."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.components import need

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("works")]
ASK = "from portbook.watching.feeds.bpf import FEED; print(FEED.missing())"
PLACES = {
    "everything but CAP_NET_ADMIN": (
        ["setpriv", "--bounding-set=-all,+bpf,+perfmon"],
        "uid 0 lacks CAP_NET_ADMIN; run with CAP_NET_ADMIN, which this root lacks "
        "(for a container: --cap-add CAP_NET_ADMIN)",
    ),
    "none": (["setpriv", "--bounding-set=-all"], "uid 0 lacks CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN; run with "),
    "the three": (["setpriv", "--bounding-set=-all,+bpf,+perfmon,+net_admin"], "None"),
    "a user namespace": (["unshare", "--user", "--map-root-user"], "uid 0 lacks CAP_BPF"),
    "a pid namespace": (
        ["unshare", "--pid", "--fork", "--mount-proc"],
        "this is a pid namespace: the processes outside of it could not be named; run on the host",
    ),
    "no BTF": (
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh"],
        "this kernel does not describe its structures",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_missing(place: str) -> None:
    command, expected = PLACES[place]
    need(shutil.which(command[0]) is not None, command[0])
    done = subprocess.run(
        [*command, sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith(expected), done.stderr
