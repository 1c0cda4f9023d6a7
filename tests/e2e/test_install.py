"""The command that root has: what the line of README's table installs ignores the environment of whoever calls it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.components import need

README = Path(__file__).parents[2] / "README.md"
HOSTILE = "import os; os.write(2, b'the code of a stranger'); os._exit(66)\n"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the install of Linux")


@pytest.fixture
def installed(tmp_path):
    """A copy of the command after README's edit."""
    script = Path(sys.executable).with_name("portbook")
    need(script.exists(), "portbook installed as a command")
    copy = tmp_path / "portbook"
    shutil.copy(script, copy)
    edit = re.search(r"sudo (sed -i '[^']*') /opt/portbook/bin/portbook", README.read_text(encoding="utf-8"))
    assert edit is not None
    subprocess.run(["sh", "-c", f'{edit[1]} "$0"', str(copy)], check=True, timeout=30)
    return copy


def run(command, directory, **environment):
    return subprocess.run(
        [command, "sources"],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("module", ["sitecustomize", "usercustomize", "re", "click", "portbook", "msgspec"])
def test_no_module_of_a_stranger_is_imported(installed, tmp_path, module):
    there = tmp_path / "there"
    there.mkdir()
    (there / f"{module}.py").write_text(HOSTILE)
    done = run(str(installed), there, PYTHONPATH=str(there), PYTHONUSERBASE=str(there), PYTHONSTARTUP=str(there))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"bpf: ") or b"available" in done.stdout


def test_without_the_edit_the_stranger_would_have_been_heard(tmp_path):
    """What the test above is worth."""
    (tmp_path / "click.py").write_text(HOSTILE)
    script = Path(sys.executable).with_name("portbook")
    need(script.exists(), "portbook installed as a command")
    assert run(str(script), tmp_path, PYTHONPATH=str(tmp_path)).returncode == 66
