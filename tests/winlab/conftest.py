"""The Windows runs are started when the tests are collected, and judged by the tests here, which are the last."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.components import need
from tests.winlab.runs import ROOT, Background

LABORATORY = Path(os.environ.get("PORTBOOK_WINLAB") or ROOT / ".winlab")
BACKGROUND = pytest.StashKey[Background]()
DIRECTORY = pytest.StashKey[str]()


def is_ready() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0 and (LABORATORY / "prefix" / "portbook-ready").exists()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "windows_run(name): judges a run of tests/winlab/runs.py")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the runs of the tests that are selected."""
    markers = [item.get_closest_marker("windows_run") for item in session.items]
    names = [marker.args[0] for marker in markers if marker is not None]
    if not names or session.config.option.collectonly or not is_ready():
        return
    directory = tempfile.mkdtemp(prefix="portbook-windows-runs-")
    session.config.stash[DIRECTORY] = directory
    session.config.stash[BACKGROUND] = Background(LABORATORY, Path(directory), names)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the runs that no test has waited for, as after Ctrl-C."""
    background = session.config.stash.get(BACKGROUND, None)
    if background is not None:
        background.close()
        shutil.rmtree(session.config.stash[DIRECTORY], ignore_errors=True)


@pytest.fixture(scope="module")
def background(request: pytest.FixtureRequest) -> Background | None:
    need(
        (LABORATORY / "prefix" / "portbook-ready").exists(), f"a laboratory in {LABORATORY}: run tests/winlab/setup.sh"
    )
    need(os.geteuid() == 0, "root, for a network namespace")
    return request.config.stash.get(BACKGROUND, None)


@pytest.fixture
def laboratory(background: Background | None) -> Path:
    """The directory of the laboratory, when no run uses it any more."""
    if background is not None:
        background.wait_for_all()
    return LABORATORY
