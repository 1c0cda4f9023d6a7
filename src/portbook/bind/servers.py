"""How common servers take a bound socket, or that they do not: a table, tried with each program. Pure.

docs/lease.md has the versions with which each row was tried; a row of programs that were not there is marked so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

# option: with an option that names the descriptor. environment: by LISTEN_FDS, as systemd passes sockets.
# configuration: what its configuration or script says. nothing: it binds the port by itself. child: it starts the
# server as a child process without the sockets. other-process: with the sockets, but LISTEN_PID names its parent.
Takes = Literal["option", "environment", "configuration", "nothing", "child", "other-process"]
LEASE = "portbook lease"
NUMBER_ONLY = "portbook lease --number-only"


class KnownServer(Struct, frozen=True):
    """A row of the table."""

    name: str
    takes: Takes
    recipe: str  # a command, or what its configuration needs
    option: str = ""  # a regular expression: the word by which it takes a socket
    tried: bool = True  # with the real program


def _by_itself(name: str, command: str, tried: bool = True) -> KnownServer:
    return KnownServer(name, "nothing", f"{NUMBER_ONLY} -- {command}", tried=tried)


SERVERS = (
    KnownServer("uvicorn", "option", f"{LEASE} --dual -- uvicorn --fd 3 app:app", r"--fd(=.*)?"),
    KnownServer("hypercorn", "option", f"{LEASE} --dual -- hypercorn -b fd://3 app:app", r"(.*=)?fd://\d+"),
    KnownServer("daphne", "option", f"{LEASE} --dual -- daphne --fd 3 app:app", r"--fd(=.*)?"),
    KnownServer("twistd", "option", f"{LEASE} --dual -- twistd -n web --listen systemd:domain=INET6:index=0",
                r"(.*=)?systemd:.*"),
    KnownServer("gunicorn", "environment", f"{LEASE} -- gunicorn app:app"),
    KnownServer("puma", "environment", f"{LEASE} --address 127.0.0.1 -- puma -b tcp://127.0.0.1:{{port}}"),
    KnownServer("rails", "environment", f"{LEASE} --address 127.0.0.1 -- rails server -b 127.0.0.1 -p {{port}}",
                tried=False),
    KnownServer("lighttpd", "configuration",
                'server.systemd-socket-activation = "enable", and server.bind and server.port as leased'),
    KnownServer("haproxy", "configuration", "bind fd@3"),
    KnownServer("nginx", "configuration",
                f"{LEASE} 8080 --address 127.0.0.1 -- env 'NGINX=3;' nginx, with listen 127.0.0.1:8080"),
    KnownServer("node", "configuration", "server.listen({fd: 3})"),
    KnownServer("deno", "configuration", "Deno.serve has no option for a descriptor: use --number-only", tried=False),
    _by_itself("http.server", "python3 -m http.server {port}"),
    _by_itself("flask", "flask run --port {port}"),
    _by_itself("runserver", "python3 manage.py runserver {port}"),
    _by_itself("waitress-serve", "waitress-serve --port={port} app:app"),
    _by_itself("granian", "granian --port {port} app:app"),
    _by_itself("fastapi", "fastapi dev --port {port}", tried=False),
    _by_itself("streamlit", "streamlit run app.py --server.port {port}"),
    _by_itself("jupyter", "jupyter server --port={port}"),
    _by_itself("mkdocs", "mkdocs serve -a 127.0.0.1:{port}"),
    _by_itself("bottle", "python3 -m bottle -b 127.0.0.1:{port} app"),
    _by_itself("php -S", "php -S 127.0.0.1:{port}"),
    _by_itself("artisan serve", "php artisan serve --port={port}", tried=False),
    _by_itself("vite", "vite --port {port} --strictPort"),
    _by_itself("next", "next dev -p {port}"),
    _by_itself("webpack", "webpack serve --port {port}"),
    _by_itself("http-server", "http-server -p {port}"),
    _by_itself("serve", "serve -l {port}"),
    _by_itself("ng", "ng serve --port {port}", tried=False),
    _by_itself("hugo", "hugo server --port {port}", tried=False),
    _by_itself("jekyll", "jekyll serve --port {port}", tried=False),
    _by_itself("caddy", "caddy file-server --listen :{port}"),
    _by_itself("apache2", "apache2 -DFOREGROUND -c 'Listen {port}'"),
    _by_itself("httpd", "httpd -DFOREGROUND -c 'Listen {port}'", tried=False),
    KnownServer("npm", "child", f"{NUMBER_ONLY} -- npm run dev, and $PORT in the script"),
    KnownServer("npx", "child", f"{NUMBER_ONLY} -- npx vite --port {{port}}"),
    KnownServer("yarn", "child", f"{NUMBER_ONLY} -- yarn dev --port {{port}}", tried=False),
    KnownServer("pnpm", "child", f"{NUMBER_ONLY} -- pnpm dev --port {{port}}", tried=False),
    KnownServer("nodemon", "child", f"{NUMBER_ONLY} -- nodemon server.js, which reads $PORT"),
    KnownServer("sh", "other-process", "exec before the server: sh -c 'exec gunicorn app:app'"),
    KnownServer("make", "other-process", f"{LEASE} -- the server itself"),
    KnownServer("uv", "other-process", f"{LEASE} -- .venv/bin/uvicorn --fd 3 app:app", tried=False),
)  # fmt: skip
BY_NAME = {server.name: server for server in SERVERS}
SAME = {"bash": "sh", "dash": "sh", "zsh": "sh", "nodejs": "node", "twist": "twistd", "http.server": "http.server"}
MODULES = {"waitress": "waitress-serve", "twisted": "twistd", "django": "django-admin", "bottle": "bottle"}
# Words without which a program is no server: "next build", "php -r".
ONLY_WITH: dict[str, frozenset[str]] = {
    "flask": frozenset(("run",)),
    "runserver": frozenset(("runserver",)),
    "fastapi": frozenset(("dev", "run")),
    "streamlit": frozenset(("run",)),
    "jupyter": frozenset(("server", "lab", "notebook")),
    "mkdocs": frozenset(("serve",)),
    "next": frozenset(("dev", "start")),
    "webpack": frozenset(("serve",)),
    "ng": frozenset(("serve",)),
    "hugo": frozenset(("server", "serve")),
    "jekyll": frozenset(("serve",)),
    "rails": frozenset(("server", "s")),
    "caddy": frozenset(("file-server", "respond", "reverse-proxy")),
}
# Programs that become what follows, in the same process.
WRAPPERS = frozenset(("env", "nice", "nohup", "stdbuf", "setsid", "chrt", "ionice", "exec"))
WRAPPERS_OF_TWO = frozenset((("bundle", "exec"), ("poetry", "run")))
VERSION = re.compile(r"[\d.]+$")
MOST_WORDS = 200


def identify(command: Sequence[str]) -> KnownServer | None:
    """The server that a command runs; None if it is not one of the table."""
    words = _without_wrappers(list(command[:MOST_WORDS]))
    if not words:
        return None
    program, rest = _name(words[0]), words[1:]
    if VERSION.sub("", program) in ("python", "pypy"):
        program, rest = _of_python(rest)
    elif program in ("node", "nodejs") and rest and not rest[0].startswith("-"):
        script = _name(rest[0])
        if script in BY_NAME:
            program, rest = script, rest[1:]
    elif program == "php":
        program = "php -S" if "-S" in rest else "php"
        if "artisan" in rest and "serve" in rest:
            program = "artisan serve"
    if program in ("manage", "django-admin") and "runserver" in rest:
        program = "runserver"
    if program == "sh" and rest[:1] == ["-c"] and len(rest) > 1 and rest[1].lstrip().startswith("exec "):
        return None
    server = BY_NAME.get(SAME.get(program, program))
    needed = ONLY_WITH.get(server.name) if server is not None else None
    if needed is not None and needed.isdisjoint(rest):
        return None
    return server


def _name(word: str) -> str:
    """``/usr/bin/node`` is node, ``bottle.py`` bottle, ``vite.js`` vite, ``php.exe`` php."""
    name = word.replace("\\", "/").rpartition("/")[2].lower()
    for ending in (".exe", ".cmd", ".py", ".js", ".mjs"):
        name = name.removesuffix(ending)
    return SAME.get(name, name)


def _without_wrappers(words: list[str]) -> list[str]:
    while words:
        if tuple(words[:2]) in WRAPPERS_OF_TWO:
            words = words[2:]
        elif _name(words[0]) in WRAPPERS:
            words = words[1:]
            while words and (words[0].startswith("-") or "=" in words[0]):
                words = words[1:]
        else:
            break
    return words


def _of_python(rest: list[str]) -> tuple[str, list[str]]:
    """The module or script that a Python runs, and its arguments."""
    for at, word in enumerate(rest):
        if word == "-m" and at + 1 < len(rest):
            module = rest[at + 1].removesuffix(".__main__")
            return MODULES.get(module, module), rest[at + 2 :]
        if not word.startswith("-"):
            return _name(word), rest[at + 1 :]
    return "python", []


def advise(command: Sequence[str], count: int) -> str:
    """What a user should know who runs this command with the sockets; empty if it takes them.

    :param count: how many sockets it gets
    """
    server = identify(command)
    last = 2 + count
    sockets = "descriptor 3"
    noun = "socket" if count == 1 else "sockets"
    if count == 2:
        sockets = "descriptors 3 and 4"
    elif count > 2:
        sockets = f"descriptors 3 to {last}"
    if server is None or server.takes == "configuration":
        text = (
            f"the command gets the bound {noun} as {sockets} (LISTEN_FDS={count}); if it binds the port itself, use "
            "--number-only, which releases the port and passes its number alone"
        )
        return text if server is None else f"{text}; {server.name}: {server.recipe}"
    if server.takes == "option":
        return _option_advice(server, command, count)
    texts = {
        "environment": "",
        "nothing": f"{server.name} cannot take a bound socket, and its own bind fails, because it holds the port as "
        f"{sockets}; use {server.recipe}",
        "child": f"{server.name} starts the server as a child process, which does not get {sockets}; use "
        f"{server.recipe}",
        "other-process": f"a server behind {server.name} gets {sockets}, but LISTEN_PID is that of {server.name}; if "
        f"it looks at that, use {server.recipe}",
    }
    return texts[server.takes]


def _option_advice(server: KnownServer, command: Sequence[str], count: int) -> str:
    if not any(re.fullmatch(server.option, word) for word in command):
        return f"{server.name} takes the socket by an option only; use {server.recipe}"
    if count > 1:
        return (
            f"{server.name} serves one socket of {count}, and clients of the others wait without an answer: "
            "lease one, with --dual or --address"
        )
    return ""
