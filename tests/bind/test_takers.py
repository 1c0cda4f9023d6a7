"""Those who take a lease's sockets: asyncio, http.server, uvicorn, a child of ours, whatever the command runs."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

import portbook
from tests.bind.sockets import nothing_left_open, opened, refusal
from tests.components import need

SRC = os.path.dirname(portbook.__path__[0])
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="tests/windows/test_lease.py")


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


def answer(port: int, address: str = "127.0.0.1") -> bytes:
    with contextlib.closing(http.client.HTTPConnection(address, port, timeout=30)) as client:
        client.request("GET", "/")
        return client.getresponse().read()


def test_http_server():
    with nothing_left_open(), portbook.lease(address="127.0.0.1") as held:
        server = http.server.HTTPServer(("127.0.0.1", held.port), Hello, bind_and_activate=False)
        server.socket.close()
        server.socket = held.socket
        server.server_activate()
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert answer(held.port) == b"hello"
        thread.join()
        server.server_close()


def test_asyncio_takes_every_socket():
    async def serve(reader, writer):
        writer.write(await reader.readline())
        writer.close()
        await writer.wait_closed()

    async def use():
        async with portbook.lease() as held:
            servers = [await asyncio.start_server(serve, sock=sock) for sock in held.take()]
            said = []
            for address in ("127.0.0.1", "::1"):
                reader, writer = await asyncio.open_connection(address, held.port)
                writer.write(address.encode() + b"\n")
                said.append(await reader.read())
                writer.close()
                await writer.wait_closed()
            for server in servers:
                server.close()
                await server.wait_closed()
            assert refusal(held.port, reuse=True) is None
        return said

    with nothing_left_open():
        assert asyncio.run(use()) == [b"127.0.0.1\n", b"::1\n"]


def test_asyncio_takes_a_datagram_socket():
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, addr):
            self.transport.sendto(data, addr)

    async def use():
        async with portbook.lease(protocols=("udp",), address="127.0.0.1") as held:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(Echo, sock=held.socket)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", held.port))
                await loop.sock_sendall(client, b"hello")
                said = await asyncio.wait_for(loop.sock_recv(client, 10), 30)
            transport.close()
            return said

    assert asyncio.run(use()) == b"hello"


# --- children --------------------------------------------------------------------------------------------------------

# What sd_listen_fds(3) and sd_is_socket(3) do, with nothing of ours.
SERVER = r"""
import json, os, socket, stat, sys
if os.environ.get("LISTEN_PID") != str(os.getpid()):
    sys.exit("not for me")
found = []
for number, name in enumerate(os.environ["LISTEN_FDNAMES"].split(":"), 3):
    sock = socket.socket(fileno=number)
    listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    found.append([name, sock.family.name, sock.type.name, sock.getsockname()[:2], listens])
    sock.detach()
others = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and fd >= 3 + len(found)
          and os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode)]
print(json.dumps([os.environ["LISTEN_FDS"], os.environ["PORT"], os.getpid(), found, others, sys.argv[1:]]), flush=True)
if "serve" in sys.argv:
    server = socket.socket(fileno=3)
    while True:
        client, _ = server.accept()
        request = client.recv(100)
        client.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello " + str(os.getpid()).encode())
        client.close()
        if b"/end" in request:
            sys.exit(7)
"""


@contextlib.contextmanager
def running(*arguments: str, **more: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "portbook", "lease", *arguments]
    environment = {**os.environ, "PYTHONPATH": SRC}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **{**pipes, **more}) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_real_server_through_the_command():
    with running(
        "--address", "127.0.0.1", "--", sys.executable, "-c", SERVER, "serve", "{port}", "a{port}{port}"
    ) as run:
        count, port, pid, found, others, words = json.loads(run.stdout.readline())
        number = int(port)
        assert (count, others) == ("1", [])
        assert found == [["tcp-ipv4", "AF_INET", "SOCK_STREAM", ["127.0.0.1", number], 1]]
        assert words == ["serve", port, f"a{port}{port}"]
        assert pid == run.pid  # the same process
        assert answer(number) == b"hello %d" % pid
        assert refusal(number, reuse=True) == "EADDRINUSE"
        with socket.create_connection(("127.0.0.1", number)) as client:
            client.sendall(b"GET /end\r\n\r\n")
            assert client.recv(10)
        assert run.wait(30) == 7  # the exit code is the command's
        first, second = run.stderr.read().splitlines()
        assert first == f"portbook: port {number} (tcp-ipv4)"
        assert second.startswith("portbook: the command gets the bound socket as descriptor 3 (LISTEN_FDS=1); ")
    assert refusal(number, reuse=True) is None


@pytest.mark.parametrize(
    "first", ["", "exec 3</dev/null; ", "exec 3</dev/null 4</dev/null 5</dev/null 6</dev/null 7</dev/null; "]
)
def test_all_sockets_in_order_whatever_was_open_before(own_network, first):
    shell = f"{first}exec {sys.executable} -m portbook lease 17000 -q --both -- {sys.executable} -c '{SERVER}'"
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": SRC}, check=True
    )
    _, port, _, found, others, _ = json.loads(done.stdout)
    assert (port, others, done.stderr) == ("17000", [], "")
    assert found == [
        ["tcp-ipv4", "AF_INET", "SOCK_STREAM", ["0.0.0.0", 17000], 1],
        ["tcp-ipv6", "AF_INET6", "SOCK_STREAM", ["::", 17000], 1],
        ["udp-ipv4", "AF_INET", "SOCK_DGRAM", ["0.0.0.0", 17000], False],
        ["udp-ipv6", "AF_INET6", "SOCK_DGRAM", ["::", 17000], False],
    ]


def test_a_child_of_the_library():
    held = portbook.lease(protocols=("tcp", "udp"))
    with held, held.start([sys.executable, "-c", SERVER, "serve"], stdout=subprocess.PIPE, text=True) as child:
        count, port, pid, found, others, _ = json.loads(child.stdout.readline())
        assert (count, port, pid, others) == ("4", str(held.port), child.pid, [])
        assert [place[0] for place in found] == ["tcp-ipv4", "tcp-ipv6", "udp-ipv4", "udp-ipv6"]
        held.close()
        assert answer(held.port) == b"hello %d" % pid
        child.kill()
    assert refusal(held.port, reuse=True) is None


def test_a_shell_is_no_program():
    with portbook.lease() as held, pytest.raises(portbook.UsageError):
        held.start("exit 1", shell=True)


def test_a_child_that_cannot_be_run():
    with portbook.lease() as held, held.start(["/no/such/program"], stderr=subprocess.PIPE) as child:
        assert child.stderr.read() == b"portbook: '/no/such/program' cannot be run: No such file or directory\n"
        assert child.wait(30) == 127


def test_a_child_that_knows_portbook():
    script = (
        "import json, os, portbook; sockets = portbook.inherited();"
        "print(json.dumps([[s.getsockname()[1] for s in sockets], [s.get_inheritable() for s in sockets],"
        "len(portbook.inherited()), [w for w in os.environ if w.startswith('LISTEN')]]))"
    )
    with portbook.lease() as held:
        environment = {**os.environ, "PYTHONPATH": SRC}
        with held.start([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as child:
            told = json.loads(child.stdout.read())
    assert told == [[held.port] * 2, [False] * 2, 0, []]


@pytest.mark.parametrize(
    "said", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": "me"}]
)
def test_what_is_for_somebody_else_is_not_taken(monkeypatch, said):
    for word, value in said.items():
        monkeypatch.setenv(word, value.replace("me", str(os.getpid())))
    assert portbook.inherited() == ()


def test_uvicorn():
    need(importlib.util.find_spec("uvicorn") is not None, "uvicorn (pip install -e '.[test]')")
    app = (
        "async def app(scope, receive, send):\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'hello from uvicorn'})\n"
    )
    python = f"{app}import uvicorn; uvicorn.run(app, fd=3, lifespan='off', log_level='warning')"
    with running("--dual", "--", sys.executable, "-c", python) as run:
        port = int(run.stderr.readline().split()[2])
        assert answer(port) == answer(port, "::1") == b"hello from uvicorn"
        run.send_signal(signal.SIGTERM)
        run.wait(30)


def test_uvicorn_inside_a_program():
    need(importlib.util.find_spec("uvicorn") is not None, "uvicorn (pip install -e '.[test]')")
    import uvicorn

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    async def use():
        async with portbook.lease() as held:
            server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
            serving = asyncio.create_task(server.serve(sockets=list(held.sockets)))
            said = [await asyncio.to_thread(answer, held.port, address) for address in ("127.0.0.1", "::1")]
            server.should_exit = True
            await serving
            return said

    assert asyncio.run(use()) == [b"hello", b"hello"]


# --- the command -----------------------------------------------------------------------------------------------------


def ended(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "portbook", "lease", *arguments]
    environment = {**os.environ, "PYTHONPATH": SRC}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment, **more)


@pytest.mark.parametrize("code", [0, 1, 3, 77])
def test_the_exit_code_is_that_of_the_command(code):
    assert ended("--", "sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_command(number):
    script = f"trap 'echo got it; exit 9' {number:d}; echo ready; while :; do sleep 0.05; done"
    with running("-q", "--", "sh", "-c", script) as run:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(number)
        assert (run.stdout.readline(), run.wait(30)) == ("got it\n", 9)


def test_signals_that_python_ignores_are_given_back():
    """A command that writes to a reader that has gone ends, instead of running on: bits of SigIgn, proc(5)."""
    done = ended("-q", "--", "grep", "SigIgn", "/proc/self/status")
    ignored = int(done.stdout.split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


def test_a_held_port_is_no():
    with opened(0) as held:
        held.listen()
        port = held.getsockname()[1]
        done = ended(str(port), "--", "echo", "never")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"portbook: cannot lease port {port}: bind() on 0.0.0.0 (tcp) failed with EADDRINUSE, address already in use; "
        f"run portbook why {port} for the reason\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command to run"),
        (["8080"], "no command to run"),
        (["70000", "--", "true"], "70000"),
        (["--dual", "--address", "127.0.0.1", "--", "true"], "dual-stack"),
        (["--range", "x", "--", "true"], "not a number"),
    ],
)
def test_usage_errors(arguments, said):
    done = ended(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_command_that_cannot_be_run_is_reported(tmp_path):
    script = tmp_path / "script"
    script.write_text("no interpreter line")
    script.chmod(0o755)
    done = ended("-q", "--", str(script))
    assert (done.returncode, done.stdout) == (126, "")
    assert f"cannot run {script}: Exec format error; begin a script with #!" in done.stderr


def test_a_command_that_is_not_there_or_cannot_be_run(tmp_path):
    """As a shell says it: 127 and 126."""
    plain, orphan = tmp_path / "plain", tmp_path / "orphan"
    plain.write_text("#!/bin/sh\n")
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o755)
    for command, code, said in (
        ("no-such-command-anywhere", 127, "there is no command"),
        (f"{tmp_path}/nothing", 127, "there is no command"),
        (str(orphan), 127, "the interpreter that its first line names is not there"),
        (str(plain), 126, "it is not executable; chmod +x"),
        (str(tmp_path), 126, "it is a directory"),
    ):
        done = ended("-q", "--", command)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
        assert said in done.stderr


def test_the_number_alone():
    """The command binds the port itself; nothing blocks it, and stderr says that this is a race."""
    bind = (
        "import os, socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print(os.environ['PORT']);"
        "print([w for w in os.environ if w.startswith('LISTEN')], len(os.listdir('/proc/self/fd')))"
    )
    done = ended("--number-only", "--", sys.executable, "-c", bind, "{port}")
    port, rest = done.stdout.splitlines()
    assert (done.returncode, rest) == (0, "[] 5")  # 0, 1, 2, the server, the directory
    assert done.stderr == (
        f"portbook: port {port} (tcp-ipv4, tcp-ipv6) is released now: "
        "another program may take it before the command binds it\n"
    )


def test_without_descriptors_the_sockets_cannot_be_passed():
    """Four sockets and as many copies are needed: with fewer, the call that fails is reported."""
    command = f"ulimit -n $0; exec {sys.executable} -m portbook lease -q --both -- echo run"
    environment = {**os.environ, "PYTHONPATH": SRC}
    for limit in (5, 6, 7, 8, 9, 10):
        run = ["sh", "-c", command, str(limit)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert (done.returncode, done.stdout) == (5, ""), limit
        assert re.match(
            r"portbook: cannot (lease a port: socket\(\) on \S+ \(\w+\) failed with EMFILE"
            r"|pass the sockets to the command: ).*\n$",
            done.stderr,
        )
    done = subprocess.run(["sh", "-c", command, "12"], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "run\n")
