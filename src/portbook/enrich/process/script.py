"""What an interpreter runs: the script, module, archive or class, from its command line. Pure; hostile text.

The tables say which options take the next word, so that the first word after the options is found. Sources: the help
texts and manual pages of the interpreters (python3(1), node(1), ``java -help-extra``, perlrun(1), php(1), ruby(1),
``deno help run``, ``bun --help``, bash(1), dotnet on learn.microsoft.com).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

MOST_ARGUMENTS = 2_000
MOST_LENGTH = 4_096  # of one argument
VERSION = "0123456789.-"  # at the end of a name: python3.11, php8.2
SCRIPTS = (".js", ".mjs", ".cjs", ".ts", ".mts", ".cts", ".tsx", ".jsx", ".py", ".rb", ".php", ".pl")

_Arguments = Sequence[str]


class Interpreter(Struct, frozen=True):
    """How an interpreter reads its command line."""

    takes_value: frozenset[str] = frozenset()  # options that take the next word
    # One-letter options that may stand together, as in "-Im", and take the rest of their word, else the next word.
    letters: str = ""
    joined: str = ""  # of these, the ones that take nothing but the rest of their word
    names_program: frozenset[str] = frozenset()  # options whose value is the program: -m MODULE, -jar FILE
    has_code: frozenset[str] = frozenset()  # options whose value is code
    verbs: frozenset[str] = frozenset()  # words before the script: "deno run"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SHELL = Interpreter(_words("-o +o -O +O --rcfile --init-file"), has_code=_words("-c"))
# Each was tried with the real program, except bun, dotnet, Rscript, zsh and ksh.
INTERPRETERS: Mapping[str, Interpreter] = {
    "python": Interpreter(
        _words("--check-hash-based-pycs"), letters="cmWX", names_program=_words("-m"), has_code=_words("-c")
    ),
    "node": Interpreter(
        _words(
            "-r --require --import --loader --experimental-loader -C --conditions --env-file --env-file-if-exists "
            "--title --icu-data-dir --input-type --openssl-config --redirect-warnings --unhandled-rejections "
            "--dns-result-order --disable-warning --test-name-pattern --test-reporter --watch-path --stack-trace-limit"
        ),
        has_code=_words("-e --eval -p --print -pe"),
        names_program=_words("--run"),
        verbs=_words("inspect"),
    ),
    "java": Interpreter(
        _words(
            "-cp -classpath --class-path -p --module-path --upgrade-module-path --add-modules --add-exports "
            "--add-opens --add-reads --patch-module --limit-modules --enable-native-access --source -d "
            "--describe-module"
        ),
        names_program=_words("-jar -m --module"),
    ),
    "deno": Interpreter(
        _words("-c --config --import-map --lock --cert --location --seed -L --log-level --env-file --host --port"),
        has_code=_words("eval"),
        verbs=_words("run serve task test"),
    ),
    "bun": Interpreter(
        _words(
            "-r --preload --require --import -c --config --cwd --env-file --port --conditions -d --define -l --loader"
        ),
        has_code=_words("-e --eval -p --print"),
        verbs=_words("run x"),
    ),
    "ruby": Interpreter(letters="CEIrxW", joined="ExW", has_code=_words("-e")),
    "perl": Interpreter(letters="ImMCDx", joined="mMCDx", has_code=_words("-e -E")),
    "php": Interpreter(
        _words("-c -d -z -t --docroot --php-ini --define"),
        has_code=_words("-r --run"),
        names_program=_words("-S --server -f --file"),
    ),
    "dotnet": Interpreter(
        _words("--roll-forward --additionalprobingpath --additional-deps --depsfile --runtimeconfig --fx-version"),
        verbs=_words("exec"),
    ),
    "Rscript": Interpreter(has_code=_words("-e")),
    **dict.fromkeys(("sh", "bash", "dash", "zsh", "ksh"), SHELL),
}
SYNONYMS = {"nodejs": "node", "pypy": "python", "pythonw": "python", "javaw": "java", "bunx": "bun", "jruby": "ruby"}


def find_script(command_line: _Arguments | None, exe: str | None) -> str | None:
    """What the process runs, if it is an interpreter: ``server.py``, ``-m http.server``, ``uvicorn shop:app``.

    Code on the command line is not repeated: the option that it follows is returned, such as ``-c``.
    """
    arguments = [word[:MOST_LENGTH] for word in (command_line or ())[:MOST_ARGUMENTS]]
    if len(arguments) < 2:
        return None  # no arguments, or a title that the process has written over them: setproctitle(3)
    for path in (exe, arguments[0]):
        interpreter = INTERPRETERS.get(_interpreter_name(path))
        if interpreter is not None:
            return _find(interpreter, arguments[1:])
    return None


def _interpreter_name(path: str | None) -> str:
    name = _base_name(path or "").removesuffix(".exe").removeprefix("-")  # "-bash": a login shell
    name = name.rstrip(VERSION)
    return SYNONYMS.get(name, name)


def _base_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _find(interpreter: Interpreter, arguments: _Arguments) -> str | None:
    at = 0
    while at < len(arguments):
        word = arguments[at]
        if word in interpreter.has_code:
            return word
        if word in interpreter.names_program:
            return _named(word, arguments[at + 1 :])
        if word in interpreter.verbs:
            at += 1
        elif word in interpreter.takes_value:
            at += 2
        elif word.startswith("@") or (word.startswith(("-", "+")) and len(word) > 1):
            found, step = _letters(interpreter, word, arguments[at + 1 :])
            if found is not None:
                return found
            at += step
        else:
            return _launched(word, arguments[at + 1 :])
    return None


def _letters(interpreter: Interpreter, word: str, rest: _Arguments) -> tuple[str | None, int]:
    """What a word of one-letter options names, such as "-um http.server"; and how many words it takes."""
    if word.startswith("--") or not word.startswith("-"):
        return None, 1
    for at, letter in enumerate(word[1:], 2):
        option = f"-{letter}"
        if option in interpreter.has_code and interpreter.letters:
            return option, 1
        if letter not in interpreter.letters:
            continue
        value = word[at:]
        if option in interpreter.names_program:
            return _named(option, [value, *rest] if value else rest), 1
        if value or letter in interpreter.joined:
            return None, 1
        return None, 2
    return None, 1


def _named(option: str, words: _Arguments) -> str | None:
    """A program that is the value of an option."""
    if not words:
        return None
    if _launcher(words[0]) is not None:
        return _launched(words[0], words[1:])
    return f"{option} {words[0]}"


# --- servers and tools that run an application ---------------------------------------------------------------------


def _launched(script: str, arguments: _Arguments) -> str | None:
    """A script; of a well-known one its name and what it runs."""
    if script == "-":
        return None  # standard input
    launcher = _launcher(script)
    if launcher is None:
        return script
    target = LAUNCHERS[launcher](arguments)
    if target is None:
        return launcher
    return f"{launcher} {target}"


def _launcher(script: str) -> str | None:
    name = _base_name(script)
    name = LAUNCHER_FILES.get(name, name)
    for ending in (".js", ".mjs", ".cjs", ".exe"):
        name = name.removesuffix(ending)
    return name if name in LAUNCHERS else None


def _application(arguments: _Arguments) -> str | None:
    """``shop.main:app``, of WSGI and ASGI servers."""
    for word in arguments:
        module, colon, name = word.partition(":")
        is_name = name[:1].isalpha() or name[:1] == "_"
        if colon and is_name and module != "unix" and module.replace(".", "").replace("_", "").isalnum():
            return word
    return None


def _flask(arguments: _Arguments) -> str | None:
    for at, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option in ("--app", "-A"):
            if equals:
                return value
            return arguments[at + 1] if at + 1 < len(arguments) else None
    return None


def _file(arguments: _Arguments) -> str | None:
    """The first word that has the ending of a script."""
    for word in arguments:
        if word.endswith(SCRIPTS) and not word.startswith("-"):
            return _base_name(word)
    return None


def _verb(arguments: _Arguments) -> str | None:
    """The first word, unless it is an option; of "run dev" both."""
    if not arguments or arguments[0].startswith("-"):
        return None
    if arguments[0] in ("run", "run-script"):
        return " ".join(arguments[:2])
    return arguments[0]


# By the name of the file that is run, without .js. Tried with the real program, except granian, ts-node, yarn, pnpm,
# next, ng, rails and artisan.
LAUNCHERS: Mapping[str, Callable[[_Arguments], str | None]] = {
    **dict.fromkeys(("uvicorn", "gunicorn", "hypercorn", "daphne", "waitress-serve", "granian"), _application),
    "waitress": _application,
    "flask": _flask,
    **dict.fromkeys(("nodemon", "tsx", "ts-node", "streamlit"), _file),
    **dict.fromkeys(("npm", "npx", "yarn", "pnpm", "vite", "next", "ng", "rails", "artisan", "manage.py"), _verb),
}
LAUNCHER_FILES = {"npm-cli.js": "npm", "npx-cli.js": "npx", "pnpm.cjs": "pnpm"}
