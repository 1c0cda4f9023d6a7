"""Boot other kernels under QEMU and run a Python program in them.

    python -m tests.kernellab.laboratory [--directory DIRECTORY] [KERNEL...]    makes what the tests need; README.md

Everything comes from Debian's archive: the kernels, and the root file system with Python that all kernels of one
architecture share. Nothing of the other architecture is executed here, so no emulation of user programs is needed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

from tests.debian import STEP_LIMIT_S, make_root, run, source

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DIRECTORY = Path(os.environ.get("PORTBOOK_KERNELLAB") or ROOT / ".kernellab")
GUEST_PYTHON = "3.11"  # of Debian 12, which the root file system is made of
GUEST_SUITE = "bookworm"
PROGRAMS = ("mmdebstrap", "cpio", "depmod", "apt-get")
GUEST_PACKAGES = ("python3", "iproute2", "util-linux", "busybox-static", "kmod")


class Machine(NamedTuple):
    """What differs between the architectures."""

    debian: str  # its name in Debian
    wheels: str  # its name in the file names of wheels (PEP 599)
    emulator: tuple[str, ...]
    console: str


class Kernel(NamedTuple):
    """A kernel of Debian: the suite that has it, and the architecture."""

    suite: str
    architecture: str


MACHINES = {
    "x86_64": Machine(
        "amd64", "manylinux2014_x86_64", ("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max"), "ttyS0"
    ),
    "aarch64": Machine(
        "arm64",
        "manylinux2014_aarch64",
        ("qemu-system-aarch64", "-M", "virt", "-accel", "tcg", "-cpu", "cortex-a72"),
        "ttyAMA0",
    ),
}
KERNELS = {
    "5.10-x86_64": Kernel("bullseye", "x86_64"),
    "6.1-x86_64": Kernel("bookworm", "x86_64"),
    "6.12-x86_64": Kernel("trixie", "x86_64"),
    "7.3-x86_64": Kernel("trixie-backports", "x86_64"),
    "6.1-aarch64": Kernel("bookworm", "aarch64"),
}
# Parts of the kernel's modules that the guest program uses; the initramfs lies in the guest's memory.
MODULES = ("kernel/net", "kernel/lib", "kernel/arch", "kernel/drivers/net/vxlan", "kernel/drivers/net/veth.ko")
UNUSED_MODULES = [
    "bluetooth",
    "wireless",
    "mac80211",
    "batman-adv",
    "ceph",
    "tipc",
    "rxrpc",
    "sunrpc",
    "smc",
    "can",
    "nfc",
    "openvswitch",
]


# --- making --------------------------------------------------------------------------------------------------------


def is_ready(name: str, directory: Path = DIRECTORY) -> bool:
    """Whether ``prepare`` has made everything for this kernel."""
    return (directory / name / "ready").exists()


def prepare(name: str, directory: Path = DIRECTORY) -> None:
    """Make a kernel and its root file system in the directory, unless they are there."""
    kernel = KERNELS[name]
    machine = MACHINES[kernel.architecture]
    directory.mkdir(parents=True, exist_ok=True)
    make_guest_root(directory / f"root-{kernel.architecture}", machine)
    make_dependencies(directory / f"packages-{kernel.architecture}", machine)
    if is_ready(name, directory):
        return
    fetch_kernel(directory / name, kernel, machine)
    (directory / name / "ready").touch()


def make_guest_root(root: Path, machine: Machine) -> None:
    """The guest's root file system: Python, ss and ip, busybox, modprobe."""
    if root.exists():
        return
    make_root(root, GUEST_SUITE, GUEST_PACKAGES, variant="extract", architecture=machine.debian)
    for part in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache", "var/lib/apt", "var/lib/dpkg"):
        shutil.rmtree(root / part, ignore_errors=True)


def make_dependencies(packages: Path, machine: Machine) -> None:
    """portbook's dependencies for the guest's Python and architecture; again when they are others than last time."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    record = packages / "dependencies.json"
    if record.exists() and json.loads(record.read_text()) == dependencies:
        return
    shutil.rmtree(packages, ignore_errors=True)
    unfinished = packages.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", "--python-version", GUEST_PYTHON]
    run(*pip, "--platform", machine.wheels, "--target", unfinished, *dependencies)
    (unfinished / record.name).write_text(json.dumps(dependencies))
    unfinished.rename(packages)


def fetch_kernel(directory: Path, kernel: Kernel, machine: Machine) -> None:
    """Unpack Debian's kernel for virtual machines, from its suite, with an apt configuration of its own."""
    shutil.rmtree(directory, ignore_errors=True)
    for part in ("lists/partial", "cache/archives/partial", "unpacked"):
        (directory / part).mkdir(parents=True)
    (directory / "status").touch()
    (directory / "sources.list").write_text(source(kernel.suite) + "\n")
    settings = {
        "APT::Architecture": machine.debian,
        "APT::Architectures": machine.debian,
        "APT::Sandbox::User": "root",
        "Dir::Etc::sourcelist": directory / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": directory / "lists",
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory / "cache",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    run("apt-get", *options, "update")
    # The package without a version depends on the newest kernel of the suite, which newer suites split in parts.
    image = kernel_packages(options, f"linux-image-cloud-{machine.debian}")[0]
    run("apt-get", *options, "download", image, *kernel_packages(options, image), cwd=directory)
    for archive in directory.glob("*.deb"):
        run("dpkg-deb", "-x", archive, directory / "unpacked")
        archive.unlink()
    for part in ("lists", "cache"):
        shutil.rmtree(directory / part)


def kernel_packages(options: list[str], package: str) -> list[str]:
    """The packages of one kernel version that a package depends on."""
    lines = run("apt-cache", *options, "depends", "--important", package).splitlines()
    names = [line.split()[-1] for line in lines if "Depends:" in line]
    return [name for name in names if re.match(r"linux-[a-z]+-\d", name)]


# --- running -------------------------------------------------------------------------------------------------------


def make_initramfs(name: str, program: Path, out: Path, directory: Path = DIRECTORY) -> Path:
    """Write the guest's initramfs with portbook as it is in this checkout; return the path of the kernel."""
    kernel = KERNELS[name]
    unpacked = directory / name / "unpacked"
    with tempfile.TemporaryDirectory(prefix="portbook-initramfs-") as work:
        root = Path(work) / "root"
        run("cp", "-a", directory / f"root-{kernel.architecture}", root)
        project = root / "opt" / "project"
        shutil.copytree(ROOT / "src" / "portbook", project / "portbook", ignore=shutil.ignore_patterns("__pycache__"))
        run("cp", "-a", f"{directory / f'packages-{kernel.architecture}'}/.", project)
        shutil.copy2(program, root / "opt" / "guest.py")
        shutil.copy2(HERE / "init", root / "init")
        os.chmod(root / "init", 0o755)
        add_modules(root, unpacked)
        for part in ("root", "tmp", "run", "proc", "sys", "dev"):
            (root / part).mkdir(exist_ok=True)
        (root / "bin" / "sh").unlink(missing_ok=True)
        (root / "bin" / "sh").symlink_to("busybox")
        (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
        (root / "etc" / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
        pack(root, out)
    (image,) = (*unpacked.glob("boot/vmlinuz-*"), *unpacked.glob("usr/lib/modules/*/vmlinuz"))
    return image


def add_modules(root: Path, unpacked: Path) -> None:
    """Copy the kernel modules that the guest uses, with the index that modprobe(8) and the kernel read."""
    (modules,) = [path for top in ("lib", "usr/lib") for path in (unpacked / top / "modules").glob("*")]
    target = root / "lib" / "modules" / modules.name
    target.mkdir(parents=True)
    for part in MODULES:
        for path in (modules / part).parent.glob(Path(part).name + "*"):  # a module may be compressed: .ko.xz
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            run("cp", "-a", path, (target / part).parent)
    for unused in UNUSED_MODULES:
        shutil.rmtree(target / "kernel" / "net" / unused, ignore_errors=True)
    for path in (*modules.glob("modules.builtin*"), *modules.glob("modules.order")):
        shutil.copy2(path, target)
    run("depmod", "-b", root, modules.name)


def pack(root: Path, out: Path) -> None:
    """Write a directory as a compressed cpio archive, the format of an initramfs."""
    names = b"\0".join(os.fsencode(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with gzip.open(out, "wb", compresslevel=1) as file:
        archive = subprocess.run(
            ["cpio", "--create", "--null", "--format=newc", "--quiet", "--owner=+0:+0"],
            cwd=root,
            input=names,
            stdout=subprocess.PIPE,
            timeout=STEP_LIMIT_S,
            check=True,
        )
        file.write(archive.stdout)


def boot(name: str, image: Path, initramfs: Path, limit_s: float) -> str:
    """Run the guest until it reboots, at most ``limit_s`` seconds; return what it wrote to its serial console."""
    machine = MACHINES[KERNELS[name].architecture]
    command = [*machine.emulator, "-smp", "2", "-m", "1024", "-nographic", "-no-reboot", "-nodefaults"]
    command += ["-serial", "stdio", "-net", "none", "-kernel", str(image), "-initrd", str(initramfs)]
    command += ["-append", f"console={machine.console} quiet panic=-1 rdinit=/init"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode("utf-8", "replace")
        raise RuntimeError(f"the guest did not end within {limit_s:g} s: {output[-3000:]}") from None
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def emulator(name: str) -> str:
    """The program that runs this kernel."""
    return MACHINES[KERNELS[name].architecture].emulator[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make what the tests in tests/kernellab need.")
    parser.add_argument("--directory", type=Path, default=DIRECTORY)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=", ".join(KERNELS))
    arguments = parser.parse_args()
    for name in arguments.kernels or KERNELS:
        if name not in KERNELS:
            parser.error(f"no kernel {name!r}: {', '.join(KERNELS)}")
        missing = [program for program in (*PROGRAMS, emulator(name)) if shutil.which(program) is None]
        if missing:
            parser.error(f"missing: {', '.join(missing)}; README.md names the packages")
        prepare(name, arguments.directory)
        print(f"ready: {arguments.directory / name}")


if __name__ == "__main__":
    main()
