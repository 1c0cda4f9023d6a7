"""The ring buffer between the programs and this process, read in place.

Documentation/bpf/ringbuf.rst: a page with the position of the reader, which it writes; a page with the position of the
writers; the data, mapped twice in a row, so that no record is cut at the end. A record begins with its length, bit 31
of which says that it is still being written.
"""

from __future__ import annotations

import mmap
from itertools import islice
from threading import Lock

from portbook.sources.bpf import calls
from portbook.watching.feeds.bpf.record import IN_RING, KINDS, Record

BUSY = 1 << 31
MOST_AT_ONCE = 8192  # records: what one reading may hold back of those that follow
WORD = 4
HEADER_SIZE = 8


class Ring:
    """A ring of records, and the counts of those that found no room in it."""

    def __init__(self, size: int) -> None:
        """Make both maps.

        :param size: bytes, a power of two and at least a page
        :raises SourceError: the kernel does not make them
        """
        page = mmap.PAGESIZE
        self.descriptor = calls.make_ring(size)
        self.counters = calls.make_counters(len(KINDS))
        self._mask = size - 1
        self._maps = (
            mmap.mmap(self.descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            mmap.mmap(self.descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page),
            mmap.mmap(self.counters, page, mmap.MAP_SHARED, mmap.PROT_READ),
        )
        reader, writers, counters = [memoryview(each) for each in self._maps]
        self._read_to = reader[:8].cast("Q")
        self._written_to = writers[:8].cast("Q")
        self._data = writers[page:]
        self._lost = counters[: 8 * len(KINDS)].cast("Q")
        self._position = self._read_to[0]  # up to where records were taken
        self._fence = Lock()
        self._fence.acquire()

    def take(self) -> list[Record]:
        """The records that are whole, in order, at most MOST_AT_ONCE; empty if there are none."""
        begin = self._position
        count = min((self._written_to[0] - begin) // IN_RING.size, MOST_AT_ONCE)
        if not count:
            return []
        self._order()
        at = begin & self._mask
        data = self._data[at : at + count * IN_RING.size]
        headers = data.cast("I")[:: IN_RING.size // WORD].tolist()
        if max(headers) >= BUSY:
            count = next(number for number, header in enumerate(headers) if header >= BUSY)
        self._order()
        records = list(islice(IN_RING.iter_unpack(data), count))
        self._order()
        self._position = begin + count * IN_RING.size
        return records

    def free(self, wake: bool) -> None:
        """Give back the room of what was taken.

        The kernel wakes the reader when a record is added to a ring that is wholly read, and only then: with a record
        less given back it does not. Waking costs the process that binds more than all the rest.

        :param wake: whether the descriptor is to become readable with the next record
        """
        self._read_to[0] = self._position if wake else max(self._read_to[0], self._position - IN_RING.size)
        self._order()

    def is_empty(self) -> bool:
        """Whether everything was taken, also what was still being written."""
        return bool(self._written_to[0] == self._position)

    def lost(self) -> list[int]:
        """How many records found no room so far, by kind."""
        return self._lost.tolist()

    def _order(self) -> None:
        """Keep what is read after this from being read before: processors other than x86 may do so.

        A lock is the only thing of Python that orders memory: giving it up is a release, taking it an acquisition.
        """
        self._fence.release()
        self._fence.acquire()

    def close(self) -> None:
        """Give up the memory and the maps."""
        import os

        for view in (self._read_to, self._written_to, self._data, self._lost):
            view.release()
        for each in self._maps:
            each.close()
        os.close(self.descriptor)
        os.close(self.counters)
