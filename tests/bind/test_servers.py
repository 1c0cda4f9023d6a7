"""The table of servers, with the real programs: each recipe serves, and what is said about a command is so."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import portbook
from portbook.bind.servers import SERVERS, advise, identify
from tests.components import need

SRC = os.path.dirname(portbook.__path__[0])
pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows passes handles, which these servers do not take"
)
PYTHON = "/usr/bin/python3"  # with the distribution's packages
LIMIT_S = 30

WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

from flask import Flask
flask = Flask(__name__)
"""
DJANGO = """
import sys
from django.conf import settings
settings.configure(DEBUG=True, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
urlpatterns = []
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
RACK = 'run lambda { |_| [200, { "content-type" => "text/plain" }, ["ok"]] }\n'
NODE = 'require("http").createServer((request, response) => response.end("ok")).listen({ fd: 3 })\n'
HAPROXY = """
defaults
  mode http
  timeout client 5s
  timeout connect 5s
  timeout server 5s
frontend web
  bind fd@3
  http-request return status 200
"""
LIGHTTPD = """
server.document-root = "{directory}"
server.systemd-socket-activation = "enable"
server.bind = "127.0.0.1"
server.port = {port}
"""
NGINX = """
daemon off; pid {directory}/pid; error_log stderr;
events {{ }}
http {{
  access_log off; client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
  uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
  server {{ listen 127.0.0.1:{port}; return 200; }}
}}
"""
FILES = {
    "web.py": WSGI.replace("from flask import Flask\nflask = Flask(__name__)\n", ""),
    "flasked.py": "from flask import Flask\napp = Flask(__name__)\n",
    "manage.py": DJANGO,
    "config.ru": RACK,
    "web.js": NODE,
    "haproxy.cfg": HAPROXY,
}
SINGLE = ["--address", "127.0.0.1"]
# Name of the row, options of lease, command. {bin}: the directory of this Python's programs.
TAKERS = [
    ("uvicorn", ["--dual"], ["{bin}/uvicorn", "--fd", "3", "web:asgi"]),
    ("gunicorn", [], ["gunicorn", "web:app"]),
    ("daphne", ["--dual"], ["daphne", "--fd", "3", "web:asgi"]),
    ("puma", SINGLE, ["puma", "-b", "tcp://127.0.0.1:{port}", "config.ru"]),
    ("node", ["--dual"], ["node", "web.js"]),
    ("haproxy", ["--dual"], ["haproxy", "-f", "haproxy.cfg"]),
    ("lighttpd", SINGLE, ["lighttpd", "-D", "-f", "lighttpd.conf"]),
    ("nginx", SINGLE, ["env", "NGINX=3;", "nginx", "-p", ".", "-c", "nginx.conf"]),
]
BY_THEMSELVES = [
    ("http.server", [PYTHON, "-m", "http.server", "{port}"]),
    ("flask", [PYTHON, "-m", "flask", "--app", "flasked", "run", "--port", "{port}"]),
    ("runserver", [PYTHON, "manage.py", "runserver", "--noreload", "{port}"]),
    ("waitress-serve", [PYTHON, "-m", "waitress", "--port={port}", "web:app"]),
    ("php -S", ["php", "-S", "127.0.0.1:{port}"]),
]
PACKAGES = {"flask": "python3-flask", "runserver": "python3-django", "waitress-serve": "python3-waitress"}
MODULES = {"flask": "flask", "runserver": "django", "waitress-serve": "waitress"}


def needed(name: str, command: list[str]) -> list[str]:
    """The command with its paths; skip where the program is not there."""
    directory = os.path.dirname(sys.executable)
    command = [word.replace("{bin}", directory) for word in command]
    program = command[2] if command[0] == "env" else command[0]
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin")
    need(path is not None, f"{name} ({program})")
    if name in MODULES:
        done = subprocess.run([PYTHON, "-c", f"import {MODULES[name]}"], capture_output=True, timeout=60, check=False)
        need(done.returncode == 0, f"{name} (package {PACKAGES[name]})")
    return command


@contextlib.contextmanager
def leased(directory: str, options: list[str], command: list[str]) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command under lease, and what it has said so far."""
    environment = {**os.environ, "PYTHONPATH": f"{SRC}:{directory}", "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    process = subprocess.Popen(
        [sys.executable, "-m", "portbook", "lease", *options, "--", *command],
        cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    said: list[str] = []
    try:
        yield process, said
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        said.append(process.communicate(timeout=30)[0])


def port_of(process: subprocess.Popen[str], said: list[str]) -> int:
    """The port that portbook has announced."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        ready, _, _ = select.select([process.stdout], [], [], 1)
        if ready:
            said.append(os.read(process.stdout.fileno(), 4096).decode("utf-8", "replace"))
        found = re.search(r"port (\d+) \(", "".join(said))
        if found:
            return int(found[1])
        assert process.poll() is None, said
    raise AssertionError(said)


def status(process: subprocess.Popen[str], port: int, said: list[str]) -> int:
    """The status of an answer from the port, as soon as there is one."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/")
                return connection.getresponse().status
            finally:
                connection.close()
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {said} {process.stdout.read()}")
        time.sleep(0.02)
    raise AssertionError(f"no answer: {said}")


def write_files(directory: str, port: int = 0) -> None:
    configurations = {"lighttpd.conf": LIGHTTPD, "nginx.conf": NGINX}
    texts = {name: text.format(directory=directory, port=port) for name, text in configurations.items()}
    for name, text in (FILES | texts).items():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(text)


@pytest.mark.parametrize(("name", "options", "command"), TAKERS, ids=[name for name, _, _ in TAKERS])
def test_a_server_takes_the_socket(tmp_path, name, options, command):
    command = needed(name, command)
    found = identify(command)
    assert (found.name, found.tried) == (name, True)
    configured = name in ("lighttpd", "nginx")
    port = portbook.free(address="127.0.0.1").ports[0] if configured else None  # their files need the number
    write_files(str(tmp_path), port or 0)
    with leased(str(tmp_path), [*([str(port)] if configured else []), *options], command) as (process, said):
        port = port or port_of(process, said)
        assert status(process, port, said) in (200, 403, 404)
    told = "".join(said)
    assert "cannot take a bound socket" not in told
    if found.takes in ("option", "environment"):
        assert not advise(command, 1)


@pytest.mark.parametrize(("name", "command"), BY_THEMSELVES, ids=[name for name, _ in BY_THEMSELVES])
def test_a_server_that_binds_by_itself(tmp_path, name, command):
    command = needed(name, command)
    found = identify(command)
    assert (found.name, found.takes, found.tried) == (name, "nothing", True)
    write_files(str(tmp_path))
    with leased(str(tmp_path), ["--number-only"], command) as (process, said):
        assert status(process, port_of(process, said), said) in (200, 404)


def test_what_is_said_before_a_server_fails(tmp_path):
    with leased(str(tmp_path), [], [sys.executable, "-m", "http.server", "{port}"]) as (process, said):
        process.wait(LIMIT_S)
    told = "".join(said)
    assert process.returncode == 1
    assert told.index("portbook: http.server cannot take a bound socket, and its own bind fails") < told.index(
        "Address already in use"
    )
    assert "portbook lease --number-only -- python3 -m http.server {port}" in told.replace("\n", " ")


# --- by their command lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python3 -m http.server 8000", "http.server"),
        ("/usr/bin/python3.11 -u -m http.server", "http.server"),
        (".venv/bin/python -m uvicorn app:app", "uvicorn"),
        ("/srv/venv/bin/gunicorn app:app", "gunicorn"),
        ("python3 /srv/venv/bin/gunicorn app:app", "gunicorn"),
        ("env A=1 B=2 gunicorn app:app", "gunicorn"),
        ("nice -n5 bundle exec puma", "puma"),
        ("poetry run uvicorn app:app", "uvicorn"),
        ("python manage.py runserver", "runserver"),
        ("./manage.py runserver 8000", "runserver"),
        ("python -m django runserver", "runserver"),
        ("python manage.py migrate", None),
        ("flask run", "flask"),
        ("flask db upgrade", None),
        ("node node_modules/.bin/vite --port 5000", "vite"),
        ("node node_modules/vite/bin/vite.js", "vite"),
        ("node server.js", "node"),
        ("next dev", "next"),
        ("next build", None),
        ("php -S localhost:8000", "php -S"),
        ("php script.php", None),
        ("php artisan serve", "artisan serve"),
        ("npm run dev", "npm"),
        ("npx vite", "npx"),
        ("sh -c gunicorn", "sh"),
        ("./server", None),
        ("python3", None),
        ("env", None),
        ("", None),
    ],
)
def test_servers_are_known_by_their_command_lines(command, name):
    found = identify(command.split())
    assert (found.name if found else None) == name


def test_a_shell_that_becomes_the_server_is_no_other_process():
    assert identify(["sh", "-c", "exec gunicorn app:app"]) is None
    assert identify(["bash", "-c", "gunicorn app:app"]).name == "sh"


@pytest.mark.parametrize(
    ("command", "count", "said"),
    [
        ("uvicorn app:app", 1, "takes the socket by an option only"),
        ("uvicorn --fd 3 app:app", 2, "serves one socket of 2"),
        ("uvicorn --fd=3 app:app", 1, ""),
        ("hypercorn -b fd://3 app:app", 1, ""),
        ("hypercorn --bind=fd://3 app:app", 1, ""),
        ("hypercorn -b 0.0.0.0:80 app:app", 1, "takes the socket by an option only"),
        ("gunicorn app:app", 2, ""),
        ("npm run dev", 1, "starts the server as a child process, which does not get descriptor 3"),
        ("make run", 2, "a server behind make gets descriptors 3 and 4"),
        ("./server", 4, "gets the bound sockets as descriptors 3 to 6 (LISTEN_FDS=4)"),
        ("node server.js", 1, "server.listen({fd: 3})"),
    ],
)
def test_what_is_said_about_a_command(command, count, said):
    told = advise(command.split(), count)
    assert said in told
    assert bool(told) is bool(said)


def test_every_row_is_in_the_documentation():
    path = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "lease.md")
    with open(path, encoding="utf-8") as file:
        page = file.read()
    for server in SERVERS:
        row = next((line for line in page.split("\n") if line.startswith(f"| {server.name} |")), "")
        assert row, f"docs/lease.md has no row for {server.name}"
        assert ("not tried" in row) is not server.tried, row
