"""Real containers: what podman runs is stopped by podman, also where conmon holds the port that it has published."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from portbook.stop.run import carry_out, plan_stop
from tests.components import need
from tests.conftest import unheld_port
from tests.managers.test_podman import IMAGE, LIMITS, NAME, image, podman, run
from tests.rounds import until
from tests.stop.conftest import answers, portbook, runs

__all__ = ["IMAGE", "image", "run"]  # fixtures
pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_network")]
NETWORKS = ("/usr/lib/cni/portmap", "/usr/lib/podman/netavark", "/usr/libexec/podman/netavark")


def state(name: str) -> str:
    return json.loads(podman("inspect", name))[0]["State"]["Status"]


def test_a_container_that_podman_would_start_again_is_refused_and_stopped_by_podman(run):
    running = run("--network", "host", "--restart", "always", "--stop-timeout", "1")
    (answer,) = answers(portbook(running.port, "--yes", "--json"))
    (refusal,) = answer["refusals"]
    assert (refusal["code"], refusal["hint"]) == ("managed", f"podman stop {running.name}")
    assert "restart policy always" in refusal["why"]
    assert (runs(running.pid), state(running.name)) == (True, "running")
    (answer,) = answers(portbook(running.port, "--yes", "--via-manager", "--json"))
    assert (answer["result"], answer["ended"][0]["by"]) == ("stopped", [f"podman stop {running.name}"])
    assert (runs(running.pid), state(running.name)) == (False, "exited")


def test_a_container_that_podman_leaves_alone_is_ended_as_anything_else(run):
    running = run("--network", "host", "--restart", "no", "--init=false")
    (target,) = plan_stop(running.port).targets
    assert (target.supervisor.restarts, target.refusals) == (False, ())
    answer = carry_out(plan_stop(running.port), force=True, timeout_s=0.3)  # busybox as first process ignores SIGTERM
    assert answer.result == "stopped"
    until(lambda: state(running.name) == "exited", "the container's end")


def test_without_podman_where_it_belongs_nothing_is_run(run, monkeypatch, tmp_path):
    """A program of that name elsewhere is not the system's."""
    from portbook.system import program

    running = run("--network", "host", "--restart", "always")
    monkeypatch.setattr(program, "DIRECTORIES", (str(tmp_path),))
    fake = tmp_path / "podman"
    fake.write_text("#!/bin/sh\ntouch " + str(tmp_path / "ran"))
    fake.chmod(0o777)  # anybody could have written it
    answer = carry_out(plan_stop(running.port), overrides=("via-manager",))
    assert (answer.result, os.listdir(tmp_path)) == ("still-held", ["podman"])
    assert "not installed" in answer.note
    assert runs(running.pid)


def test_a_published_port_is_held_by_conmon_and_the_container_is_stopped(image):
    """The bridge and the rules that podman makes for it are in the network of the test's own."""
    need(any(map(os.path.exists, NETWORKS)), "podman's network plugins (Debian: containernetworking-plugins, netavark)")
    need(shutil.which("iptables") is not None, "iptables")
    name, port = f"{NAME}-published", unheld_port()
    server = ("/bin/busybox", "httpd", "-f", "-p", "80")
    options = ("--name", name, "--publish", f"127.0.0.1:{port}:80", "--stop-timeout", "1", *LIMITS)
    try:
        podman("--runtime", "runc", "run", "--detach", *options, image, *server)
        (answer,) = answers(portbook(port, "--yes", "--force", "--json"))
        (refusal,) = answer["refusals"]
        assert (refusal["code"], refusal["hint"]) == ("managed", f"podman stop {name}")
        assert (answer["targets"][0]["holder"]["owner"]["name"], state(name)) == ("conmon", "running")
        (answer,) = answers(portbook(port, "--yes", "--via-manager", "--json"))
        assert (answer["result"], state(name)) == ("stopped", "exited")
    finally:
        podman("rm", "--force", "--time", "0", name, check=False)
