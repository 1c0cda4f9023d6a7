"""What the commands about policies share: reading the file, and writing one."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from portbook.cli import base, exits
from portbook.errors import PolicyError, StoreError

if TYPE_CHECKING:
    from portbook.watching.policy import Policy

policy_option = base.option(
    "--policy", "path", metavar="FILE", help="the policy (default: that of the machine or user)"
)
file_argument = click.argument("file", required=False, metavar="[FILE]")


def read(*paths: str | None) -> Policy:
    """Read the policy that is given, or the default one; its warnings go to standard error.

    :raises click.exceptions.Exit: it is not valid: every mistake has been written
    """
    from portbook.render.policy import warnings
    from portbook.render.text import note
    from portbook.watching import policy

    given = [path for path in paths if path is not None]
    if len(given) > 1:
        raise click.UsageError("the policy is given twice")
    try:
        found = policy.read(given[0] if given else None)
    except PolicyError as error:
        refuse(error)
    for warning in warnings(found):
        sys.stderr.write(note(warning))
    return found


def refuse(error: PolicyError) -> NoReturn:
    """Write every mistake, each on a line, and end."""
    from portbook.render.text import note

    for problem in error.problems:
        sys.stderr.write(note(str(problem)))
    raise click.exceptions.Exit(exits.USAGE)


def write(path: str, text: str, is_new: bool) -> None:
    """Write a policy as a whole; make the directory of the default place.

    :param is_new: it must not exist
    :raises StoreError: it exists, or cannot be written
    """
    from portbook.system.files import new_file
    from portbook.watching.policy import default_path

    if is_new and os.path.lexists(path):
        raise StoreError(f"{path!r} exists", "write --force to replace it, or portbook policy learn to add to it")
    if path == default_path():
        try:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path!r} could not be written: {error.strerror or error}") from error
    parent = os.path.dirname(path)
    if parent and not os.path.isdir(parent):
        raise StoreError(f"there is no directory {parent!r}", f"mkdir -p {parent}")
    with new_file(path, mode=0o644 if is_new else None) as file:
        file.write(text.encode())
