"""Where a relay forwards, from command lines as people and runtimes write them, and from malformed ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.managers.relay import MOST_LENGTH, Relay, identify

SSH = [
    ("ssh -L 8080:db:5432 bastion", "db:5432 through bastion"),
    ("ssh -L8080:db:5432 -N bastion", "db:5432 through bastion"),
    ("ssh -NfL 8080:db:5432 bastion", "db:5432 through bastion"),
    ("ssh -N bastion -L 8080:db:5432", "db:5432 through bastion"),
    ("ssh -p 2222 -i key -L 127.0.0.1:8080:db:5432 root@bastion", "db:5432 through root@bastion"),
    ("ssh -L [::1]:8080:[fd00::5]:5432 bastion", "[fd00::5]:5432 through bastion"),
    ("ssh -L *:8080:db:5432 bastion", "db:5432 through bastion"),
    ("ssh -L 8080/db/5432 bastion", "db:5432 through bastion"),
    ("ssh -L 8080:/var/run/docker.sock bastion", "Unix socket /var/run/docker.sock through bastion"),
    ("ssh -L 9090:web:80 -L 8080:db:5432 bastion", "db:5432 through bastion"),
    ("ssh -D 8080 bastion", "the targets of its SOCKS clients through bastion"),
    ("ssh -D 127.0.0.1:8080 bastion", "the targets of its SOCKS clients through bastion"),
    ("ssh -o ExitOnForwardFailure=yes -L 8080:db:5432 bastion", "db:5432 through bastion"),
    ("/usr/bin/ssh -4 -L 8080:db:5432 -- bastion", "db:5432 through bastion"),
    ("ssh -L 9090:web:80 bastion", None),
    ("ssh -R 8080:db:5432 bastion", None),
    ("ssh bastion ssh -L 8080:db:5432 other", None),
    ("ssh bastion", None),
    ("ssh -L", None),
]


@pytest.mark.parametrize(("line", "to"), SSH)
def test_ssh(line, to):
    found = identify(line.split(), "ssh", None, 8080)
    assert (found.to if found else None) == to


def test_an_option_of_ssh_that_is_one_argument():
    found = identify(["ssh", "-o", "LocalForward=8080 db:5432", "bastion"], "ssh", None, 8080)
    assert found.to == "db:5432 through bastion"


@pytest.mark.parametrize(
    ("title", "known"),
    [
        ("sshd: root@notty", True),
        ("sshd-session: web [priv]", True),
        ("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups", False),
        ("sshd", False),
        ("nginx: master process", False),
    ],
)
def test_a_session_of_sshd(title, known):
    assert (identify([title], "sshd", None, 8080) is not None) is known


PROXY = "-proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80"


@pytest.mark.parametrize(
    "line",
    [f"/usr/bin/docker-proxy {PROXY}", f"docker-proxy {PROXY} -use-listen-fd",
     f"docker-proxy {PROXY.replace(' -', ' --')}",
     "docker-proxy -host-port=8080 -container-ip=172.17.0.2 -container-port=80"],
)  # fmt: skip
def test_docker_proxy(line):
    found = identify(line.split(), "docker-proxy", None, 8080)
    assert (found.address, found.port) == ("172.17.0.2", 80)


@pytest.mark.parametrize(
    "line",
    ["docker-proxy", "docker-proxy -host-port", "docker-proxy -host-port 9 -container-ip a -container-port 80",
     "docker-proxy -host-port 8080 -container-ip 172.17.0.2 -container-port x"],
)  # fmt: skip
def test_docker_proxy_for_another_port_or_without_its_flags(line):
    assert identify(line.split(), "docker-proxy", None, 8080) is None


@pytest.mark.parametrize(
    ("line", "to"),
    [
        ("kubectl port-forward pod/web 8080:80", "port 80 of pod/web"),
        ("kubectl port-forward -n shop svc/web 8080:http", "port http of svc/web in namespace shop"),
        ("kubectl --context prod -n shop port-forward deployment/web 9090 8080",
         "port 8080 of deployment/web in namespace shop"),
        ("kubectl port-forward --address 0.0.0.0 pod/w 8080:80 --namespace=shop", "port 80 of pod/w in namespace shop"),
        ("kubectl port-forward pod/web :80", "port 80 of pod/web"),
        ("kubectl port-forward pod/web 9090:80", None),
        ("kubectl get pods", None),
        ("kubectl port-forward", None),
    ],
)  # fmt: skip
def test_kubectl(line, to):
    found = identify(line.split(), "kubectl", None, 8080)
    assert (found.to if found else None) == to


@pytest.mark.parametrize(
    ("line", "to"),
    [
        ("socat TCP-LISTEN:8080,fork,reuseaddr TCP:db:5432", "TCP:db:5432"),
        ("socat -d TCP4-LISTEN:8080 UNIX-CONNECT:/run/x", "UNIX-CONNECT:/run/x"),
        ("socat TCP:db:5432 TCP-LISTEN:8080", "TCP:db:5432"),
        ("socat TCP-LISTEN:9090 TCP:db:5432", None),
        ("socat -", None),
    ],
)
def test_socat(line, to):
    found = identify(line.split(), "socat", None, 8080)
    assert (found.to if found else None) == to


def test_conmon_names_its_container():
    line = "/usr/bin/conmon --api-version 1 -c 0123456789abcdef0123 -u 0123456789abcdef0123 -r /usr/bin/runc -n web"
    assert identify(line.split(), "conmon", None, 8080).container == "podman:web"


@pytest.mark.parametrize("exe", [r"C:\Windows\System32\wslrelay.exe", None])
def test_programs_are_known_by_their_file_too(exe):
    assert "WSL" in identify(None, "WSLRELAY.EXE" if exe is None else None, exe, 80).to


@pytest.mark.parametrize("name", ["nginx", "python3", "sshd-like", "", None])
def test_others_are_no_relays(name):
    assert identify(["a", "-L", "8080:db:5432", "b"], name, None, 8080) is None


WORDS = st.sampled_from(
    ["ssh", "-L", "-D", "-o", "8080:db:5432", "8080", "[::1", "]", ":", "/", "LocalForward", "kubectl", "port-forward",
     "-n", ":80", "docker-proxy", "-host-port", "-host-port=8080", "-container-ip", "socat", "TCP-LISTEN:8080", "--"]
)  # fmt: skip
LINES = st.none() | st.lists(WORDS | st.text(max_size=10), max_size=12)
NAMES = st.none() | st.sampled_from(["ssh", "kubectl", "docker-proxy", "socat", "conmon", "sshd"]) | st.text(max_size=5)


@given(LINES, NAMES, NAMES, st.integers(1, 65535))
def test_any_command_line_is_a_relay_or_none(line, name, exe, port):
    assert isinstance(identify(line, name, exe, port), Relay | None)


def test_a_command_line_without_end_is_read_within_bounds():
    found = identify(["ssh", *["-v"] * 100_000, "-L", "8080:db:5432", "x"], "ssh", None, 8080)
    assert found is None
    found = identify(["ssh", "-L", "8080:" + "x" * 1_000_000 + ":80", "y"], "ssh", None, 8080)
    assert found is None or len(found.to) < 2 * MOST_LENGTH
