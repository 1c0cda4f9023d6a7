"""What is behind the ports of relays, for tables and for sentences."""

from __future__ import annotations

from msgspec.structs import replace

from portbook import enrich
from portbook.enrich.relays import Relays
from portbook.managers import publications, relay
from portbook.netconfig.facts import Publication
from portbook.records import Owner, Socket

PROXY = Owner(
    9,
    "docker-proxy",
    "/usr/bin/docker-proxy",
    "root",
    command_line=(
        "docker-proxy",
        "-proto",
        "tcp",
        "-host-ip",
        "0.0.0.0",
        "-host-port",
        "8080",
        "-container-ip",
        "172.17.0.2",
        "-container-port",
        "80",
    ),
)
WEB = Publication("docker:web", "tcp", 8080, ("172.17.0.2",))
CONMON = Owner(
    7,
    "conmon",
    "/usr/bin/conmon",
    "root",
    command_line=("conmon", "-c", "f" * 64, "-n", "shop"),
)
NGINX = Owner(8, "nginx", "/usr/sbin/nginx", command_line=("nginx", "-g", "daemon off;"))


def listening(owner, port=8080):
    return Socket("tcp", "ipv4", "0.0.0.0", port, state="LISTEN", owners=(owner,))


def test_the_container_behind_docker_proxy(monkeypatch):
    calls = []

    def take():
        calls.append(1)
        return (WEB,), []

    monkeypatch.setattr(publications, "take", take)
    relays = Relays()
    assert relays.target_of(PROXY, 8080, "tcp") == "container 172.17.0.2:80 (docker:web)"
    assert relays.short_targets([listening(PROXY)] * 9) == {(9, 8080, "tcp"): "docker:web"}
    assert calls == [1]


def test_a_container_without_a_name(monkeypatch):
    monkeypatch.setattr(publications, "take", lambda: ((), []))
    assert Relays().target_of(PROXY, 8080, "tcp") == "container 172.17.0.2:80"
    assert Relays().short_targets([listening(PROXY)]) == {(9, 8080, "tcp"): "container 172.17.0.2:80"}


def test_the_command_line_of_conmon_names_its_container(monkeypatch):
    monkeypatch.setattr(publications, "take", None)
    assert Relays().target_of(CONMON, 8080, "tcp") == "container shop"
    assert Relays().short_targets([listening(CONMON)]) == {(7, 8080, "tcp"): "podman:shop"}


def test_others_and_connections_are_not_asked_about(monkeypatch):
    monkeypatch.setattr(publications, "take", None)
    assert Relays().target_of(NGINX, 80, "tcp") is None
    connection = replace(listening(CONMON), state="ESTABLISHED")
    assert Relays().short_targets([listening(NGINX), connection]) == {}


def test_the_names_are_those_of_the_table():
    assert {*relay.PROGRAMS, *relay.OTHER_NAMES, *relay.MULTI_CALL} == enrich.RELAYS
    for name in (*enrich.RELAYS, "/usr/bin/passt.avx2", r"C:\\Windows\\System32\\wslrelay.exe", "qemu-system-x86_64"):
        assert enrich.has_relay([listening(Owner(1, exe=name))])
        assert relay.find_program(Owner(1, exe=name)) or name in relay.MULTI_CALL
    assert not enrich.has_relay([listening(NGINX), listening(Owner(1))])
