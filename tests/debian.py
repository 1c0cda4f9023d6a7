"""Root file systems made of Debian's packages, for the laboratories. Imported where the tests run as root on Debian."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
STEP_LIMIT_S = 900


def run(*command: str | Path, cwd: Path | None = None, limit_s: float = STEP_LIMIT_S) -> str:
    """Run a command to its end and return its output. Raises RuntimeError with the end of it when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=limit_s,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {output[-2000:]}")
    return output


def mirror() -> str:
    """The archive of Debian that this machine uses."""
    lines = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian", "Component: main").split()
    if not lines:
        raise RuntimeError("apt knows no archive of Debian on this machine")
    return lines[0]


def source(suite: str) -> str:
    """The line of sources.list(5) for a suite."""
    return f"deb [signed-by={KEYS}] {mirror()} {suite} main"


def make_root(root: Path, suite: str, packages: Sequence[str], *, variant: str, architecture: str) -> None:
    """Unpack (variant "extract") or install ("minbase") packages and what they need, unless the directory exists."""
    if root.exists():
        return
    unfinished = root.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = [f"--variant={variant}", f"--include={','.join(packages)}", f"--architectures={architecture}"]
    run("mmdebstrap", *options, suite, unfinished, source(suite))
    unfinished.rename(root)
