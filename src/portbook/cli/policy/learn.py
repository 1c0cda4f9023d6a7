"""``portbook policy learn``: rules for what the history has seen."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from portbook.cli import base, exits, output
from portbook.cli.policy import files

if TYPE_CHECKING:
    from datetime import datetime

    from portbook.watching.policy import Policy
    from portbook.watching.policy.learning import Proposal


@base.command("learn")
@files.file_argument
@files.policy_option
@base.option("--for", "span", metavar="TIME", default="7d", help="how far back: 90m, 12h, 7d, 4w (default: 7d)")
@base.option("--db", "--store", "history", metavar="FILE", help="the history (default: that of the machine or user)")
@base.option("-w", "--write", "write", is_flag=True, help="add the rules to the file")
def command(file: str | None, path: str | None, span: str, history: str | None, write: bool) -> int:
    """Add what the history has seen to a policy.

    The history is what portbook watch has recorded. The rules for what the policy does not allow yet are shown; with
    --write they are added at its end, and what is there stays as it is. What a rule denies is never added. Without a
    policy, a whole new one is made.

    \b
    Examples:
      portbook policy learn --for 7d
      portbook policy learn policy.toml --for 4w --write
    """
    from datetime import UTC, datetime, timedelta

    from portbook.times import parse_duration
    from portbook.watching.policy import default_path, learning

    reach_back = timedelta(seconds=parse_duration(span))
    place = file or path or default_path()
    policy = files.read(file, path) if os.path.lexists(place) else None
    now = datetime.now(UTC)
    proposal = learning.from_history(policy, now - reach_back, history, now)
    if policy is None or proposal.count:
        sys.stdout.write(proposal.text)
        sys.stdout.flush()
    _write_notes(proposal, policy, place)
    if write and (policy is None or proposal.count):
        _write(place, proposal, policy, now)
    return exits.YES


def _write_notes(proposal: Proposal, policy: Policy | None, place: str) -> None:
    from portbook.render.text import note

    if policy is not None and not proposal.count:
        sys.stderr.write(note(f"{place} allows everything that the history has seen: nothing to add"))
    for reason in proposal.refused:
        sys.stderr.write(note(f"not added: {reason}"))
    output.write_gaps(proposal.gaps)


def _write(place: str, proposal: Proposal, policy: Policy | None, now: datetime) -> None:
    from portbook.render.text import note
    from portbook.watching.policy import learning
    from portbook.watching.policy.file import read_text
    from portbook.watching.policy.text import parse

    text = proposal.text
    if policy is not None:
        text = learning.merge(read_text(place), proposal.text, now)
        parse(text, place)  # raises PolicyError: nothing is written
    files.write(place, text, is_new=policy is None)
    sys.stderr.write(note(f"wrote {place}: {proposal.summary}"))
