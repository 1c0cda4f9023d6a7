"""New sockets become changes: with their owners and the parents of these, as far as they can be read at once."""

from __future__ import annotations

from collections.abc import Sequence

from portbook.enrich import owners, process
from portbook.records import Owner, Socket
from portbook.watching.feeds.base import Change, ChangeKind, key_of


def complete(sockets: Sequence[Socket], at_ns: int, *, all_known: bool = False) -> list[Change]:
    """A change for each socket, in their order, of which it is known only when it was noticed.

    :param at_ns: when, by ``time.monotonic_ns``
    :param all_known: the source has reported every owner
    """
    if not sockets:
        return []
    completed, _ = owners.complete(list(sockets), all_known=all_known)
    known: dict[int, Owner] = {}
    numbered = {s.cookie or s.inode: s for s in completed if s.cookie or s.inode}
    others = iter([s for s in completed if not (s.cookie or s.inode)])  # no enricher leaves any of these out
    changes: list[Change] = []
    for raw in sockets:
        number = raw.cookie or raw.inode
        s = numbered.get(number) if number else next(others, None)
        changes.append(_change(raw, s, at_ns, known))
    return changes


def _change(raw: Socket, s: Socket | None, at_ns: int, known: dict[int, Owner]) -> Change:
    kind: ChangeKind = "listening" if raw.state == "LISTEN" else "bound"
    if s is None:  # it vanished while its owners were looked for
        return Change(kind, at_ns, key_of(raw), raw, process_gone=True, exact=False)
    first = s.owners[0] if s.owners else None
    parents = process.parents(first.pid, known) if first else ()
    has_ended = first is not None and first.name is None and first.exe is None
    return Change(kind, at_ns, key_of(raw), s, parents, process_gone=has_ended, exact=False)
