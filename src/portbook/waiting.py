"""Wait until something is ready: asked again with growing pauses, several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic, sleep

from portbook.dialing import at_once
from portbook.resilience import waits

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


def wait_for(
    ready: Iterable[tuple[str, Callable[[float], bool]]],
    timeout_s: float = 60.0,
    tell: Callable[[Sequence[str]], None] | None = None,
) -> list[str]:
    """Ask again, with growing pauses, until everything is ready; return the names of what is still missing.

    :param ready: a name, and what says whether it is ready, given the seconds that are left
    :param timeout_s: for all together
    :param tell: called with the names of what is missing, after each round
    """
    missing = list(ready)
    deadline = monotonic() + timeout_s
    pauses = waits(FIRST_PAUSE_S, LONGEST_PAUSE_S, deadline_s=timeout_s)
    while True:
        left_s = max(deadline - monotonic(), FIRST_PAUSE_S)
        answers = at_once(lambda item, left_s=left_s: item[1](left_s), missing)  # type: ignore[misc]
        missing = [item for item, is_ready in zip(missing, answers, strict=True) if not is_ready]
        names = [name for name, _ in missing]
        if tell is not None:
            tell(names)
        pause = next(pauses, None)
        if not missing or pause is None:
            return names
        sleep(pause)
