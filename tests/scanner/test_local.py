"""A scan of this machine names the process behind an open port."""

from __future__ import annotations

import os
import socket

from portbook.probe.request import Limits
from portbook.scanner.run import scan
from portbook.testing import child
from tests import netlab

LIMITS = Limits(breaker=None)  # it would pause before it gives up a host
LISTEN = """
listener = socket.create_server((sys.argv[1], 0))
say(listener.getsockname()[1])
wait()
"""


def test_the_process_that_listens_is_named():
    with child(LISTEN, "127.0.0.1") as other, socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        answers = {answer.port: answer for answer in scan("127.0.0.1", [other.said, port])}
    assert answers[other.said].pid == other.pid
    assert answers[port].pid == os.getpid()
    assert answers[port].process


def test_a_socket_of_the_address_itself_is_preferred():
    """127.0.0.2 and the wildcard have the same port; a connection reaches the first."""
    with child(LISTEN, "127.0.0.2") as other, socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind(("127.0.0.3", other.said))
        ours.listen()
        answers = {answer.address: answer for answer in scan("127.0.0.2 127.0.0.3", [other.said])}
    assert answers["127.0.0.2"].pid == other.pid
    assert answers["127.0.0.3"].pid == os.getpid()


def test_a_udp_port_that_is_silent_has_a_process_too():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.bind(("127.0.0.1", 0))
        (answer,) = scan("127.0.0.1", [ours.getsockname()[1]], udp=True)
    assert (answer.outcome, answer.pid) == ("open|filtered", os.getpid())


def test_other_hosts_have_no_process_and_a_firewall_that_opens_everything_is_reported():
    """The target redirects every port to one listener: to the client each is open."""
    with netlab.pair() as lab:
        with lab.target:
            listener = socket.create_server(("0.0.0.0", 8080), backlog=1000)
        redirect = "type nat hook prerouting priority -100;\ntcp dport != 0 redirect to :8080"
        rules = f"table ip every {{\nchain first {{\n{redirect}\n}}\n}}\n"
        lab.target.run("nft", "-f", "-", text=rules)
        with listener, lab.client, scan(netlab.TARGET, range(1, 41)) as running:
            answers = list(running)
        assert {answer.outcome for answer in answers} == {"open"}
        assert {answer.pid for answer in answers} == {None}
        assert running.report.all_open == (netlab.TARGET,)
        assert running.report.hosts_answered == 1


def test_a_host_with_a_closed_port_is_no_such_firewall():
    with netlab.pair() as lab:
        lab.client.sysctl("net.ipv4.neigh.link0.retrans_time_ms", 100)  # three times: then nobody has the address
        with lab.client, scan(f"{netlab.TARGET} 10.77.0.9", range(1, 31), limits=LIMITS) as running:
            list(running)
        assert running.report.all_open == ()
        assert running.report.hosts_answered == 1
        assert running.report.addresses == 2
