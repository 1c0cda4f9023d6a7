"""Ports whose packets rules of the machine send elsewhere: what free and lease do about them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

import portbook
from tests import netlab
from tests.bind.sockets import nothing_left_open
from tests.components import need

CATCH_ALL = "meta l4proto tcp redirect to :15006"
SRC = os.path.dirname(portbook.__path__[0])


@pytest.fixture
def network():
    netlab.needed()
    need(shutil.which("nft") is not None, "nft (package nftables)")
    space = netlab.Namespace()
    try:
        space.run("ip", "link", "add", "link0", "type", "veth", "peer", "name", "link1")
        space.add("10.77.0.1")
        with space:
            yield space
    finally:
        space.close()


def nat(network, *rules):
    lines = "\n".join(rules)
    text = f"table inet x {{\nchain c {{\ntype nat hook prerouting priority -100;\n{lines}\n}}\n}}\n"
    network.run("nft", "-f", "-", text=text)


def test_free_passes_over_what_nat_takes(network):
    nat(network, "tcp dport 8000-8008 dnat ip to 10.77.0.2", "udp dport 8009 redirect to :53")
    answer = portbook.free(1, ports=range(8000, 8010))
    assert (answer.ports, answer.redirected) == ((8009,), ())
    assert set(answer.passed_over) <= {"redirected"}
    both = portbook.free(1, ports=range(8000, 8011), protocols=("tcp", "udp"))
    assert both.ports == (8010,)
    assert set(portbook.free(3, ports=range(8000, 8010), address="127.0.0.1").ports) <= set(range(8000, 8010))
    assert portbook.free(3, ports=range(8000, 8010), address="127.0.0.1").passed_over == {}


def test_free_says_what_nat_takes_where_there_is_no_other(network):
    nat(network, "tcp dport 22 return", CATCH_ALL)
    answer = portbook.free(2, ports=range(8000, 8010))
    assert (len(answer.ports), answer.redirected) == (2, answer.ports)
    assert answer.enough
    assert portbook.free(1, ports=[8000, 15006]).ports == (15006,)  # redirected to itself


def test_a_lease_of_any_port_is_one_that_nat_leaves_alone(network):
    nat(network, "tcp dport 8000-8008 dnat ip to 10.77.0.2")
    with nothing_left_open():
        for _ in range(5):
            with portbook.lease(ports=range(8000, 8010)) as held:
                assert (held.port, held.diversions) == (8009, ())


@pytest.mark.parametrize("options", [{}, {"ports": range(8000, 8004)}, {"port": 8000}])
def test_a_lease_says_what_nat_takes(network, options):
    nat(network, CATCH_ALL)
    with nothing_left_open(), portbook.lease(**options) as held:
        (diversion,) = held.diversions
        assert diversion.targets[0].port == 15006


def run(*arguments):
    command = [sys.executable, "-m", "portbook", *arguments]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": SRC}, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_commands_say_it(network):
    nat(network, CATCH_ALL)
    free = run("free", "8000-8003")
    assert (free.returncode, "NAT rules send packets to" in free.stderr) == (0, True)
    leased = run("lease", "8000", "--", "true")
    assert leased.returncode == 0
    assert "NAT redirects packets from other machines for port 8000 to port 15006 of this machine" in leased.stderr
    assert json.loads(run("free", "8000-8003", "--json").stdout)["redirected"]


def test_without_the_privilege_a_gap_says_so(network):
    network.run("ip", "link", "add", "docker0", "type", "bridge")

    def ask():
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)
        with portbook.lease() as held:
            return portbook.free(1).gaps, held.gaps

    free, leased = netlab.call(ask)
    assert ([gap.what for gap in free], [gap.what for gap in leased]) == (["nat"], ["nat"])
