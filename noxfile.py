"""The checks of this project: ``nox`` runs tests, types and lint; ``nox -s bench`` measures."""

import re
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True


def install_locked(session: nox.Session) -> None:
    """Install portbook and the tools of the check, each file with the hash that it had when the lock file was made."""
    session.install("--require-hashes", "-r", ".ci/requirements.txt")
    session.install("--no-deps", "--no-build-isolation", "-e", ".")


@nox.session
def lint(session: nox.Session) -> None:
    install_locked(session)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    install_locked(session)
    session.run("mypy")


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests with the lowest version of each direct dependency that pyproject.toml allows."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["test"]
    constraints = (
        Path(session.virtualenv.location) / "lowest.txt"
    )  # session.create_tmp() would set TMPDIR for the tests
    constraints.write_text("".join(re.sub(">=([^,;]*).*", r"==\1", line) + "\n" for line in requirements))
    session.install("-e", ".[test]", "-c", str(constraints))
    session.run("pytest", *session.posargs)


@nox.session
def windows(session: nox.Session) -> None:
    """The Windows tests alone, under Wine; makes the laboratory first, which takes about 30 s."""
    session.install("-e", ".[test]")
    session.run("tests/winlab/setup.sh", external=True)
    session.run("pytest", "tests/winlab", *session.posargs)


@nox.session
def wine10(session: nox.Session) -> None:
    """The Windows tests alone, under Wine 10 of Debian 13, in a root file system that is made first."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.winlab.wine10", *session.posargs)


@nox.session
def kernels(session: nox.Session) -> None:
    """portbook under other kernels, in QEMU: all of the table in tests/kernellab, or those that are named."""
    session.install("-e", ".[test]")
    chosen = session.posargs[0] if session.posargs else "all"
    names = [] if chosen == "all" else chosen.split(",")
    session.run("python", "-m", "tests.kernellab.laboratory", *names)
    session.run("pytest", "tests/kernellab", env={"PORTBOOK_KERNELS": chosen, "PORTBOOK_TEST_REQUIRE_ALL": "1"})


@nox.session
def scanner(session: nox.Session) -> None:
    """The tests of the scanner alone, in networks that are slow, lossy or limited."""
    session.install("-e", ".[test]")
    session.run("pytest", "tests/scanner", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    session.install("-e", ".[test]")
    for program in ("register", "reach", "lease"):
        session.run("python", f"benchmarks/{program}.py", *session.posargs)
