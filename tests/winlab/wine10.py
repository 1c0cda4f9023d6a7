"""Run the Windows tests under Wine 10: python -m tests.winlab.wine10 [arguments of pytest]

Debian 12 has Wine 8. Wine 10 is in Debian 13, so its packages are unpacked into a root file system of their own
(``.winlab10/root``), and the laboratory is made and used in there with chroot(2). What pip installs is fetched outside,
where pip is set up. On Debian 13 this is not needed: the laboratory of setup.sh has Wine 10 there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.debian import make_root, run

ROOT = Path(__file__).parents[2]
DIRECTORY = Path(os.environ.get("PORTBOOK_WINLAB10") or ROOT / ".winlab10")
SUITE, PYTHON = "trixie", "3.13"
PACKAGES = ("python3", "iproute2", "openssl", "procps", "util-linux", "wine", "wine64")
RUN_LIMIT_S = 2400
# Both mount namespaces and the processes in them end with the command. /repository is this checkout.
ENTER = r"""
root=$1
shift
mkdir -p "$root/repository" "$root/lab"
for part in proc sys dev; do mount --rbind "/$part" "$root/$part"; done
mount --bind "$REPOSITORY" "$root/repository"
mount --bind "$LABORATORY" "$root/lab"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
exec chroot "$root" "$@"
"""


def prepare() -> None:
    """Make the root file system, what pip installs, and the laboratory in it."""
    DIRECTORY.mkdir(exist_ok=True)
    make_root(DIRECTORY / "root", SUITE, PACKAGES, variant="minbase", architecture="amd64")
    laboratory = DIRECTORY / "lab"
    laboratory.mkdir(exist_ok=True)
    run("env", "WINLAB_WITHOUT_WINE=1", f"PYTHON={sys.executable}", ROOT / "tests" / "winlab" / "setup.sh", laboratory)
    packages = laboratory / "packages"
    if not packages.exists():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        tools = [line for line in project["optional-dependencies"]["test"] if line.startswith(("hypothesis", "pytest"))]
        requirements = project["dependencies"] + tools
        pip = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--python-version", PYTHON]
        run(*pip, "--implementation=cp", "--target", packages, *requirements)


def enter(*command: str) -> int:
    """Run a command in the root file system; its exit code."""
    variables = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": "/tmp",  # a tmpfs of this command alone
        "PYTHONPATH": "/lab/packages:/repository/src:/repository",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PORTBOOK_WINLAB": "/lab",
        "PORTBOOK_TEST_REQUIRE_ALL": "1",
        "REPOSITORY": str(ROOT),
        "LABORATORY": str(DIRECTORY / "lab"),
    }
    unshare = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    script = ["bash", "-e", "-c", ENTER, "enter", str(DIRECTORY / "root"), *command]
    return subprocess.run([*unshare, *script], env=variables, timeout=RUN_LIMIT_S, check=False).returncode


def main() -> int:
    prepare()
    if code := enter("/repository/tests/winlab/setup.sh", "/lab"):
        return code
    return enter("python3", "-m", "pytest", "-p", "no:cacheprovider", "/repository/tests/winlab", *sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
