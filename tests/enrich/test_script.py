"""What an interpreter runs: from command lines, and from those of the real programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.enrich import process
from portbook.enrich.process.script import MOST_LENGTH, find_script
from portbook.records import Owner
from tests.components import need

COMMAND_LINES = [
    # Python: python3(1)
    ("python3 server.py --port 80", "server.py"),
    ("/usr/bin/python3.11 -u -W error -X dev /srv/server.py", "/srv/server.py"),
    ("python3 -Im http.server 8000", "-m http.server"),
    ("python3 -um uvicorn --port 80 shop.main:app", "uvicorn shop.main:app"),
    ("python -mhttp.server", "-m http.server"),
    ("python3 -X dev -c 'pass'", "-c"),
    ("python3 -cpass", "-c"),
    ("python3 -", None),
    ("python3", None),
    ("python3 -i", None),
    ("pypy3 app.py", "app.py"),
    ("python3 -Werror app.py", "app.py"),
    ("python3 --check-hash-based-pycs always app.py", "app.py"),
    # servers and tools: their own documentation
    ("/venv/bin/python3 /venv/bin/uvicorn --host 0.0.0.0 app:app", "uvicorn app:app"),
    ("/venv/bin/python3 /venv/bin/gunicorn -b 127.0.0.1:8000 -w 4 shop.wsgi:create()", "gunicorn shop.wsgi:create()"),
    ("/venv/bin/python3 /venv/bin/gunicorn --bind unix:socket -c conf.py", "gunicorn"),
    ("/venv/bin/python3 /venv/bin/hypercorn -b localhost:8000 app:app", "hypercorn app:app"),
    ("/venv/bin/python3 /venv/bin/flask --app hello run -p 80", "flask hello"),
    ("/venv/bin/python3 /venv/bin/flask --app=hello run", "flask hello"),
    ("/venv/bin/python3 /venv/bin/flask run", "flask"),
    ("/venv/bin/python3 /venv/bin/streamlit run /srv/page.py --server.port 80", "streamlit page.py"),
    ("python3 manage.py runserver 0.0.0.0:8000", "manage.py runserver"),
    ("node /srv/node_modules/.bin/nodemon --watch src server.js", "nodemon server.js"),
    ("node /srv/node_modules/vite/bin/vite.js --port 3000", "vite"),
    ("node /srv/node_modules/.bin/next dev -p 3000", "next dev"),
    ("node /usr/lib/node_modules/npm/bin/npm-cli.js run dev", "npm run dev"),
    # Node.js: node(1)
    ("node app.js", "app.js"),
    ("node --inspect=9229 -r dotenv/config --import ./loader.mjs /srv/app.mjs", "/srv/app.mjs"),
    ("node -e setTimeout(f,9)", "-e"),
    ("node --run dev", "--run dev"),
    ("node --watch server.ts", "server.ts"),
    ("node inspect app.js", "app.js"),
    ("nodejs app.js", "app.js"),
    # Java: java -help-extra, JEP 330
    ("java -Dserver.port=80 -Xmx1g -jar /opt/shop.jar --debug", "-jar /opt/shop.jar"),
    ("java -Da=b S.java", "S.java"),
    ("java -cp a.jar:b.jar -Da=b org.example.Main -x", "org.example.Main"),
    ("java --add-modules jdk.httpserver -m shop/org.example.Main", "-m shop/org.example.Main"),
    ("java @options org.example.Main", "org.example.Main"),
    ("/usr/lib/jvm/bin/java --class-path x Main", "Main"),
    # others
    ("deno run --allow-net -c deno.json server.ts", "server.ts"),
    ("deno serve app.ts", "app.ts"),
    ("bun run dev", "dev"),
    ("bun --watch server.ts", "server.ts"),
    ("ruby -W0 -I lib server.rb", "server.rb"),
    ("ruby -run -e httpd . -p 80", "-e"),
    ("perl -w -Ilib -MPOSIX server.pl", "server.pl"),
    ("perl -I lib server.pl", "server.pl"),
    ("perl -MHTTP::Daemon -e loop", "-e"),
    ("php -S 127.0.0.1:80 -t public", "-S 127.0.0.1:80"),
    ("php8.2 -d memory_limit=1M artisan serve", "artisan serve"),
    ("dotnet exec --roll-forward Major shop.dll", "shop.dll"),
    ("bash -o pipefail ./start.sh", "./start.sh"),
    ("sh -c 'vite | cat'", "-c"),
    ("-bash -l", None),
    # no interpreters, and titles that a process has written over its arguments: setproctitle(3)
    ("nginx -g daemon off;", None),
    ("/usr/sbin/pythonic server.py", None),
]


@pytest.mark.parametrize(("line", "script"), COMMAND_LINES)
def test_command_lines(line, script):
    assert find_script(tuple(line.replace("'", "").split(" ")), None) == script


def test_the_executable_counts_whatever_the_process_calls_itself():
    assert find_script(("server", "app.js"), "/usr/bin/node") == "app.js"
    assert find_script(("server", "app.js"), "/usr/sbin/nginx") is None
    assert find_script(("npm run dev",), "/usr/bin/node") is None
    assert find_script(None, "/usr/bin/node") is None


def test_windows_paths():
    line = (r"C:\Python\python.exe", r"C:\venv\Scripts\uvicorn.exe", "app:app")
    assert find_script(line, r"C:\Python\python.exe") == "uvicorn app:app"
    assert find_script(("node.exe", "app.js"), r"C:\Program Files\nodejs\node.exe") == "app.js"


@given(
    st.lists(st.text(max_size=5), max_size=5),
    st.sampled_from(["python3", "node", "java", "deno", "ruby", "perl", "php", "sh"]),
)
def test_any_arguments(arguments, name):
    script = find_script((name, *arguments), None)
    assert script is None or any(word in script for word in arguments) or script[:1] == "-"


def test_hostile_command_lines_are_read_within_limits():
    before = time.process_time()
    assert find_script(("python3", *["-W"] * 100_000, "x" * 1_000_000), None) in ("-W", None)
    assert len(find_script(("python3", "x" * 1_000_000), None)) == MOST_LENGTH
    assert time.process_time() - before < 2


# --- the real programs ---------------------------------------------------------------------------------------------

SOURCES = {
    "a.py": "import time; print(1, flush=True); time.sleep(600)",
    "a.js": "console.log(1); setTimeout(() => 0, 600000)",
    "a.rb": "$stdout.sync = true; puts 1; sleep 600",
    "a.pl": "$| = 1; print 1, qq(\\n); sleep 600",
    "a.php": "<?php echo 1, PHP_EOL; sleep(600);",
    "a.sh": "echo 1\nread forever\n",
    "A.java": "public class A { public static void main(String[] a) throws Exception "
    "{ System.out.println(1); Thread.sleep(600000); } }",
}
REAL = [
    ([sys.executable, "-u", "a.py"], "a.py"),
    ([sys.executable, "-ISum", "http.server", "0", "-b", "127.0.0.1"], "-m http.server"),
    (["node", "--stack-size=900", "a.js"], "a.js"),
    (["java", "-Da=b", "A.java"], "A.java"),
    (["ruby", "-W0", "a.rb"], "a.rb"),
    (["perl", "-w", "-Ilib", "a.pl"], "a.pl"),
    (["php", "-d", "memory_limit=64M", "a.php"], "a.php"),
    (["sh", "a.sh"], "a.sh"),
]


@pytest.mark.parametrize(("command", "script"), REAL, ids=lambda value: value[0] if isinstance(value, list) else None)
def test_real_programs(command, script, tmp_path):
    need(shutil.which(command[0]) is not None, command[0])
    for name, text in SOURCES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text("")
    running = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert running.stdout.readline(), "it has ended"
        (owner,), _ = process.enrich([Owner(running.pid)])
        owner = process.add_origin(owner)
        assert owner.script == script
        assert os.path.basename(command[0]).startswith(owner.name.rstrip("0123456789."))
        if sys.platform == "linux":
            assert owner.directory == owner.project == str(tmp_path)
    finally:
        running.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        running.communicate(timeout=60)
