"""Where a relay forwards, from command lines as people and runtimes write them, and from malformed ones."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.managers import publications, relay
from portbook.managers.relay import MOST_LENGTH, Relay, behind
from portbook.netconfig.facts import Publication
from portbook.records import Owner
from tests.conftest import REPOSITORY


def identify(line, name, exe, port, protocol="tcp", user=None):
    command_line = None if line is None else tuple(line)
    return behind(Owner(7, name, exe, user, command_line=command_line), port, protocol)


CONFIGURED = "a target of its configuration (LocalForward, DynamicForward) or control socket, through bastion"

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
    # What listens and is not on the command line is in the configuration, or was asked for through a control socket.
    ("ssh -L 9090:web:80 bastion", CONFIGURED),
    ("ssh -R 8080:db:5432 bastion", CONFIGURED),
    ("ssh bastion ssh -L 8080:db:5432 other", CONFIGURED),
    ("ssh bastion", CONFIGURED),
    ("ssh -L", "a target of its configuration or control socket"),
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
    assert identify(line.split(), "docker-proxy", None, 8080).to == "a container of docker"


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
        ("kubectl --context prod proxy --port=8080", "the API of a Kubernetes cluster"),
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
        ("socat tcp-l:8080,fork exec:cat", "exec:cat"),
        ("socat -d -lf /tmp/a:b TCP6-L:[::1]:8080,fork TCP:db:5432", "TCP:db:5432"),
        ("socat OPENSSL-LISTEN:8080,cert=a:b TCP:db:5432", "TCP:db:5432"),
        ("socat UDP-RECVFROM:8080,fork UDP:db:53", "UDP:db:53"),
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


PUBLISHED = Publication("docker:web", "tcp", 8080, ("172.17.0.2",))


@pytest.mark.parametrize(
    ("line", "user", "remedy"),
    [
        (f"docker-proxy {PROXY}", "root", "docker stop web frees the port"),
        ("docker-proxy", "root", "docker stop web frees the port"),
        (f"docker-proxy {PROXY.replace('172.17.0.2', '172.17.0.3')}", "root", "docker ps --filter publish=8080"),
        ("docker-proxy", "somebody", "docker ps --filter publish=8080"),  # whose docker is another one
    ],
)
def test_the_container_behind_a_relay_is_the_one_that_has_published_the_port(line, user, remedy):
    found = behind(Owner(7, "docker-proxy", None, user, command_line=tuple(line.split())), 8080, "tcp", [PUBLISHED])
    assert found.remedy.startswith(remedy)
    assert (found.container == "docker:web") is ("web" in remedy)


def test_a_container_s_name_that_a_shell_would_understand_is_not_part_of_a_command():
    line = ["conmon", "-c", "0123456789abcdef", "-n", "web; rm -rf /"]
    assert "rm -rf" not in identify(line, "conmon", None, 8080).remedy
    assert "$" not in identify(["ssh", "$(reboot)"], "ssh", None, 8080).remedy
    assert "`" not in identify(["ssh: /tmp/`reboot` [mux]"], "ssh", None, 8080).remedy


def test_the_containers_of_another_user_are_stopped_by_that_user():
    line = ["conmon", "-c", "0123456789abcdef", "-n", "web"]
    assert identify(line, "conmon", None, 8080, user="somebody").remedy == "as somebody: podman stop web"


@pytest.mark.parametrize(
    ("line", "to"),
    [
        ("pasta -t 8080:80 -- server", "port 80 of its network namespace, mostly a rootless container"),
        (
            "pasta --config-net -t 127.0.0.1/9000-9100:80,8070-8090:100-120 -u none x",
            "port 110 of its network namespace",
        ),
        ("pasta -t auto -u auto x", "its network namespace"),
        ("/usr/bin/passt -t 8080:22", "port 22 of a virtual machine"),
        ("passt", "a virtual machine"),
    ],
)
def test_pasta_and_passt(line, to):
    found = identify(line.split(), "passt.avx2", "/usr/bin/passt.avx2", 8080)
    assert found.to.startswith(to)
    assert found.kind == "container"


@pytest.mark.parametrize(
    ("line", "to"),
    [
        ("qemu -netdev user,id=n,hostfwd=tcp:127.0.0.1:8080-:22 -m 1", "port 22 of a virtual machine"),
        ("qemu -nic user,hostfwd=tcp::9090-:22,hostfwd=tcp::8080-10.0.2.15:80", "port 80 of a virtual machine"),
        ("qemu -netdev user,id=n,hostfwd=udp::8080-:53", None),
        ("qemu -vnc :2180", None),
    ],
)
def test_qemu(line, to):
    found = identify(line.split(), None, "/usr/bin/qemu-system-x86_64", 8080)
    assert (found.to if found else None) == to


@pytest.mark.parametrize(
    ("line", "exe", "to"),
    [
        ("lxd forkproxy -- 9 3 tcp:0.0.0.0:8080 8 4 tcp:127.0.0.1:80 log", "lxd", "tcp:127.0.0.1:80 of a container"),
        (
            f"slirp4netns -c --api-socket /run/user/1/libpod/tmp/{'0af1' * 16}.net tap0",
            "slirp4netns",
            "container 0af10af10af1",
        ),
        ("slirp4netns --api-socket /tmp/rootlesskit1/.s4nn.sock 7 tap0", "slirp4netns", "a rootless container"),
        ("lxd --group lxd", "lxd", None),
        ("rootlesskit --publish=0.0.0.0:8080:80/tcp dockerd", "rootlesskit", "port 80 of its network namespace"),
        ("rootlesskit dockerd", "rootlesskit", "a container of rootless docker"),
        ("ssh: /root/.ssh/cm-box [mux]", "ssh", "a target that ssh was asked for through its control socket"),
        ("ssh: /home/me/.colima/_lima/colima/ssh.sock [mux]", "ssh", "a port of a virtual machine of Lima or Colima"),
        ("busybox tcpsvd -E 0 8080 ftpd -w", "busybox", "ftpd, which it starts for each connection"),
        ("tcpsvd 0 8080 ftpd", "busybox", "ftpd, which it starts for each connection"),
        ("busybox httpd -p 8080", "busybox", None),
        ("/usr/sbin/inetd -p /run/inetd.pid", "inetd", "the program that /etc/inetd.conf names for 8080/tcp"),
        ("busybox inetd -f /etc/my.conf", "busybox", "the program that /etc/my.conf names for 8080/tcp"),
        ("xinetd -f /etc/x.conf -dontfork", "xinetd", "the program that /etc/x.conf names for 8080/tcp"),
    ],
)
def test_other_programs(line, exe, to):
    words = [line] if line.startswith("ssh: ") else line.split()
    found = identify(words, None, f"/usr/bin/{exe}", 8080)
    if to is None:
        assert found is None
    else:
        assert found.to.startswith(to)


def test_where_daemons_have_no_unix_sockets_nothing_is_published(monkeypatch):
    monkeypatch.delattr(os, "geteuid", raising=False)
    assert publications.take() == ((), [])


def test_a_name_that_a_process_chose_does_not_count_beside_its_executable():
    assert identify(["conmon", "-c", "0123456789abcdef"], "conmon", "/usr/bin/python3", 8080) is None


def test_every_row_is_in_the_documentation_with_the_version_that_was_tried():
    with open(f"{REPOSITORY}/docs/stop.md", encoding="utf-8") as file:
        rows = file.read().partition("## Relays")[2].splitlines()
    for name, program in relay.PROGRAMS.items():
        (row,) = [row for row in rows if row.startswith(f"| `{name}`")]
        _, _, kind, tried, _, _ = map(str.strip, row.split("|"))
        assert (kind, tried) == (program.kind, program.tried or "not tried"), name


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
    assert "db" not in found.to
    found = identify(["ssh", "-L", "8080:" + "x" * 1_000_000 + ":80", "y"], "ssh", None, 8080)
    assert len(found.to) < 2 * MOST_LENGTH
