"""portbook under other kernels and on another architecture: what a guest program saw, against what is expected.

Each kernel is booted once; the guest program uses portbook and reports. See README.md for what is needed.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.components import need
from tests.kernellab.laboratory import DIRECTORY, HERE, KERNELS, boot, emulator, is_ready, make_initramfs

# Without acceleration a guest needs half a minute on an idle machine.
BOOT_LIMIT_S = 600
CHOSEN = (os.environ.get("PORTBOOK_KERNELS") or "6.1-x86_64").split(",")
if CHOSEN == ["all"]:
    CHOSEN = list(KERNELS)
BPF_SINCE, BOUND_SINCE = (5, 12), (6, 8)
NO_BOUND = "does not list TCP sockets that are bound and do not listen; Linux 6.8 and later do"
NO_BPF = "lacks a function that the program calls; Linux 5.12 and later have it"

pytestmark = pytest.mark.timeout(BOOT_LIMIT_S + 120)


@pytest.fixture(scope="module", params=CHOSEN)
def guest(request, tmp_path_factory):
    """What the guest program reported: the answer of each check."""
    name = request.param
    need(shutil.which(emulator(name)) is not None, emulator(name))
    need(is_ready(name), f"the kernel {name} in {DIRECTORY}: python -m tests.kernellab.laboratory {name}")
    initramfs = tmp_path_factory.mktemp(name) / "initramfs.gz"
    image = make_initramfs(name, HERE / "guest.py", initramfs)
    console = boot(name, image, initramfs, BOOT_LIMIT_S)
    initramfs.unlink()
    reports = [
        json.loads(line.split("portbook-guest ", 1)[1]) for line in console.splitlines() if "portbook-guest " in line
    ]
    assert reports, console[-3000:]
    answers = {report["check"]: report.get("answer") or report["error"] for report in reports}
    release = name.split("-")[0]
    return answers | {"name": name, "version": tuple(int(part) for part in release.split("."))}


def lists_bound(guest):
    return guest["version"] >= BOUND_SINCE


def has_bpf(guest):
    return guest["version"] >= BPF_SINCE


def test_the_kernel_is_the_one_that_is_named(guest):
    release, architecture = guest["name"].split("-")
    assert guest["kernel"]["release"].startswith(release + ".")
    assert guest["kernel"]["machine"] == architecture


def test_sources_say_why_they_do_not_work(guest):
    reasons = guest["sources"]
    assert [reasons[name] for name in ("sockdiag", "procfs", "psutil")] == [None, None, None]
    assert reasons["lsof"] == "lsof is not installed"
    if has_bpf(guest):
        assert reasons["bpf"] is None
    else:
        assert reasons["bpf"].endswith(NO_BPF)


def test_every_source_shows_every_kind_of_socket_with_its_owners(guest):
    zoo = guest["zoo"]
    assert zoo["absent"] == {}
    for name, reason in guest["sources"].items():
        if reason is not None:
            assert name not in zoo
            continue
        assert zoo[name]["compared"] > 50
        missing = set(zoo[name]["missing"])
        if name == "sockdiag" and not lists_bound(guest):
            assert missing == {"tcp4-bound", "tcp6-bound"}
            assert any(gap.endswith(NO_BOUND) for gap in zoo[name]["gaps"])
        else:
            assert missing == set(), name
        if name != "psutil":  # it names one owner of each socket
            assert zoo[name]["wrong_owners"] == [], name


def test_the_best_source_shows_what_ss_shows(guest):
    best = guest["zoo"]["default"]
    assert best["source"] == ("bpf" if has_bpf(guest) else "sockdiag")
    assert set(guest["zoo"]["ss"]) <= set(best["ports"])
    assert len(guest["zoo"]["ss"]) > 30


def test_a_socket_that_is_bound_and_does_not_listen(guest):
    """Without it in the list, the bind still fails, and the listing has a gap."""
    answer = guest["bound_only"]
    assert answer["can_have"] is False
    if has_bpf(guest):  # the file is found in the holder's descriptors
        assert answer["rows"] == [["BOUND", [answer["pid"]]]]
        assert answer["findings"][0] == "bound-only"
        assert answer["gaps"] == []
    else:
        assert answer["rows"] == []
        assert answer["findings"][0] == "unexplained"
        assert any(gap.endswith(NO_BOUND) for gap in answer["gaps"])


def test_other_network_namespaces(guest):
    answer = guest["namespaces"]
    assert answer["here"] == 0
    if has_bpf(guest):
        assert answer["rows"] == [["LISTEN", [answer["pid"]]]]
        assert answer["gaps"] == []
    else:
        assert answer["rows"] == []
        assert any("only this network namespace was read" in gap for gap in answer["gaps"])


def test_an_ordinary_user(guest):
    answer = guest["ordinary_user"]
    assert answer["source"] == "sockdiag"
    assert "run with sudo" in answer["sources"]["bpf"]
    assert answer["rows"] == [[False, 0, 0], [True, 65534, 1]]
    assert "owners of 1 socket are not visible to uid 65534; run with sudo" in answer["gaps"]


def test_a_tunnel_of_the_kernel_has_a_name(guest):
    answer = guest["tunnel"]
    assert answer["held"] is True
    assert answer["kernel"] == ["vxlan vx0"]
    assert answer["free"] is False  # another port, which nobody has


def test_many_ports_are_found_and_free_ones_are_free(guest):
    """Of ports one by one: where the kernel allows it they are looked up in its own hash tables."""
    assert guest["ports"] == {"missed": [], "invented": []}


def test_connections_and_scans(guest):
    assert guest["reach"] == {
        "open": "open",
        "closed": "closed",
        "scan": {"True": "open", "False": "closed"},
        "udp": {"True": "open|filtered", "False": "closed"},
    }


def test_the_feed_bpf_reports_everything(guest):
    answer = guest["feeds"]["bpf"]
    if not has_bpf(guest):
        assert answer["missing"].startswith("needs Linux 5.12, this is 5.10")
        return
    assert answer["missing"] is None
    assert (answer["short"], answer["short_right_pid"]) == (100, 100)
    assert (answer["long"], answer["long_ended"], answer["lost"]) == (2, [True, True], [])


def test_the_feed_bpf_reports_every_kind_of_socket(guest):
    if not has_bpf(guest):
        return
    answer = guest["bpf_feed"]
    assert isinstance(answer, dict), answer
    listener = ["bound", "listening"]
    assert answer["kinds"] == {
        "listener": [*listener, "ended"],
        "automatic": ["listening", "ended"],
        "ipv6": ["bound", "ended"],
        "wildcard": ["bound", "connected", "ended"],
        "mptcp": [*listener, "ended", "ended"],
        "client": [*listener, "ended"],
        "bound client": [*listener, "bound", "connected", "ended"],
        "failing": [*listener, "failed", "ended"],
    }
    assert answer["elsewhere"] == [[True, True]]
    assert answer["programs_left"] == 0


def test_the_trace_feed_reports_every_listener(guest):
    traced = guest["feeds"]["tracefs"]
    assert traced["missing"] is None
    assert (traced["short"], traced["short_right_pid"]) == (100, 100)
    assert (traced["long"], len(traced["long_ended"]), traced["lost"]) == (2, 2, [])


def test_the_best_feed_is_one_that_is_told(guest):
    assert guest["feeds"]["best"] == ("bpf" if has_bpf(guest) else "tracefs")


def test_the_feed_of_ends_reports_every_end(guest):
    ends = guest["feeds"]["destroy"]
    assert ends["missing"] is None
    assert ends["short"] == 100
    assert (ends["long"], ends["lost"]) == (2, [])


def test_the_polling_feed_reports_what_stays(guest):
    polled = guest["feeds"]["poll"]
    assert polled["missing"] is None
    assert (polled["long"], polled["long_ended"], polled["lost"]) == (2, [False, False], [])


def test_commands(guest):
    answers = guest["commands"]
    assert {name: answers[name][0] for name in ("sources", "list", "who", "why", "stop")} == {
        "sources": 0,
        "list": 0,
        "who": 0,
        "why": 1,
        "stop": 1,
    }
    listing = json.loads(answers["list"][1])
    assert [row["local_port"] for row in listing["sockets"]] == [4243, 4789]  # and the tunnel
    assert listing["sockets"][0]["owners"][0]["pid"] == answers["pid"]
    assert answers["who"][1].startswith(f"port 4243 is held by python3.11 guest.py (pid {answers['pid']})")
    assert "0.0.0.0:4243 is in use" in answers["why"][1]
    assert "the first process" in answers["stop"][1]
    for name in ("sources", "list", "who", "why", "stop"):
        assert "Traceback" not in answers[name][2]
