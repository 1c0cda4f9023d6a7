"""``portbook who PORT --at TIME``: the answer of ``who`` from the history."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from portbook.cli import exits, output
from portbook.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from portbook.ports import Ports
    from portbook.store.reader import History
    from portbook.store.records import PastHolding


def answer(
    requested: Sequence[Ports], at: str, path: str | None, source: str | None, as_json: bool, strict: bool
) -> int:
    """Write who held each port at a moment, and return the exit code, as that of ``who``."""
    from portbook.render import history as render
    from portbook.store.reader import History
    from portbook.times import parse_past

    if source is not None:
        raise UsageError("--source is about now, --at about the past", "omit one")
    moment = parse_past(at, datetime.now(UTC))
    with History(path) as history:
        groups = [_answers(history, ports, moment) for ports in requested]
    answers = [each for group in groups for each in group]
    if as_json:
        from portbook.render.machine import ENCODER

        output.write_bytes(ENCODER.encode(each) + b"\n" for each in answers)
    else:
        from portbook.render.text import note, style_of

        sys.stdout.write("".join(f"{line}\n" for line in render.past_lines(answers, style_of(sys.stdout))))
        sys.stdout.flush()
        for text in render.gap_notes(dict.fromkeys(gap for each in answers for gap in each.gaps)):
            sys.stderr.write(note(text))
    if strict and any(each.gaps for each in answers):
        return exits.GAPS
    if all(any(each.held for each in group) for group in groups):
        return exits.YES
    return exits.NO


def _answers(history: History, ports: Ports, moment: datetime) -> list[PastHolding]:
    """The answer for a port; of a range, those for the ports that were held."""
    from portbook.ports import Ports
    from portbook.query import Query, Term

    if ports.first == ports.last:
        return [history.who(ports, moment)]
    held = {i.local_port for i in history.intervals(Query((Term("port", (ports,)),)), at=moment)}
    numbers = sorted(held) or [ports.first]
    return [history.who(Ports(number, number, ports.protocol, ports.host), moment) for number in numbers]
