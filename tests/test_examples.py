"""The examples run, and say what they show."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted(Path(__file__).parent.parent.joinpath("examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path) -> None:
    run = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in run.stderr, run.stderr
    assert run.returncode in ((0, 1) if example.stem == "exposed" else (0,)), run.stderr


def test_there_are_at_least_five() -> None:
    assert len(EXAMPLES) >= 5
