"""The checks of this project: ``nox`` runs tests, types and lint; ``nox -s bench`` measures."""

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
def lint(session: nox.Session) -> None:
    session.install("ruff>=0.9,<1", "import-linter>=2.1", "-e", ".")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    session.install("mypy>=1.14", "types-psutil>=6.1", "-e", ".[test]")
    session.run("mypy")


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def windows(session: nox.Session) -> None:
    """The Windows tests alone, under Wine; makes the laboratory first, which takes about 30 s."""
    session.install("-e", ".[test]")
    session.run("tests/winlab/setup.sh", external=True)
    session.run("pytest", "tests/winlab", *session.posargs)


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
