"""Reads the socket tables beside the loop: there may be a hundred thousand sockets, and hostile namespaces."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

from msgspec import Struct

from portbook.errors import PortbookError
from portbook.query import Query, term
from portbook.records import Gap, Socket

JOIN_S = 30.0  # a reading ends by itself before: namespaces.VISIT_LIMIT_S


class SocketTables(Struct, frozen=True):
    """What the socket tables show."""

    sockets: tuple[Socket, ...]
    source: str
    is_whole: bool = True  # with other network namespaces
    gaps: tuple[Gap, ...] = ()


ReadTables = Callable[[], SocketTables]


def look(source: str | None, all_namespaces: bool) -> SocketTables:
    """Read every socket that waits, with its owners; raise SourceError."""
    from portbook import inventory, sources

    request = Query((term("state", ["listening"]),))
    listing = inventory.read_listing(request, source=source, all_namespaces=all_namespaces)
    is_whole = all_namespaces and "namespaces" in sources.load(listing.source).capabilities
    return SocketTables(listing.sockets, listing.source, is_whole, listing.gaps)


class TableReader:
    """One reading at a time, in a thread of its own."""

    def __init__(self, look: ReadTables) -> None:
        self._look = look
        self._thread: Thread | None = None
        self._answer: SocketTables | Exception | None = None

    @property
    def is_reading(self) -> bool:
        """Whether a reading was begun and not taken yet."""
        return self._thread is not None

    def begin(self) -> None:
        """Begin to read."""
        self._answer = None
        thread = Thread(target=self._read, name="portbook-comparison", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads: setrlimit(2), RLIMIT_NPROC
            return
        self._thread = thread

    def _read(self) -> None:
        try:
            self._answer = self._look()
        except Exception as error:  # noqa: BLE001  the answer of ``take``, which reports it
            self._answer = error

    def take(self) -> SocketTables | Exception | None:
        """The answer, or why there is none; None while it is read."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread.join()
        self._thread = None
        return self._answer

    def close(self) -> None:
        """Wait for a reading that is under way."""
        if self._thread is not None:
            self._thread.join(JOIN_S)
            self._thread = None


class InlineTableReader(TableReader):
    """Reads at once, in the thread of the loop: for tests."""

    def begin(self) -> None:
        """Read."""
        self._read()

    def take(self) -> SocketTables | Exception | None:
        """The answer."""
        answer, self._answer = self._answer, None
        return answer


def reason_of(error: Exception) -> str:
    """Why a reading failed, for an event."""
    return str(error) if isinstance(error, PortbookError) else f"{type(error).__name__}: {error}"
