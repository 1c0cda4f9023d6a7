"""The feed, and a program that opens many sockets in little time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from portbook.watching.feeds.base import FeedSettings
from portbook.watching.feeds.bpf import FEED
from portbook.watching.feeds.bpf.subscription import Subscription
from tests.components import need

SOURCE = Path(__file__).parents[4] / "benchmarks" / "socket_load.c"


@pytest.fixture(scope="session")
def works() -> None:
    reason = FEED.missing()
    need(reason is None, f"the feed bpf ({reason})")


@pytest.fixture
def feed(works: None) -> Iterator[Subscription]:
    feed = FEED.open(FeedSettings())
    assert isinstance(feed, Subscription)
    yield feed
    feed.close()


@pytest.fixture(scope="session")
def socket_load(tmp_path_factory: pytest.TempPathFactory) -> str:
    need(shutil.which("gcc") is not None, "gcc")
    directory = tmp_path_factory.mktemp("load")
    os.chmod(directory, 0o755)
    program = directory / "socket_load"
    subprocess.run(["gcc", "-O2", "-Wno-unused-result", "-o", program, SOURCE], check=True, timeout=60)
    return str(program)
