"""``portbook`` and ``python -m portbook``.

Until ``ended`` runs, Ctrl-C ends the interpreter in its own way: nothing is imported before that is not there anyway.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

TYPE_CHECKING = False  # importing typing would double the time of "portbook --version"
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn, TextIO

YES, UNKNOWN, INTERRUPTED = 0, 5, 130
SIGNALLED = 128  # and the number of the signal, as shells report it (POSIX, Shell Command Language, section 2.8.2)
NO_THREAD = "can't start new thread"  # what _thread raises, in every version of Python
SHORTAGES = {  # by the name in errno
    "EMFILE": "this process may not open a further file; ulimit -n shows the limit",
    "ENFILE": "this machine cannot open a further file; sysctl fs.file-max shows the limit",
}
FULL = ("ENOSPC", "EDQUOT", "EFBIG")  # of files of portbook's own they are a StoreError
MOST_TEXT = 500  # characters of an unforeseen error that are shown
PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def main() -> int:
    """Run the command line and return its exit code."""
    return ended(_version if sys.argv[1:] in (["--version"], ["-V"]) else _run)


def _version() -> int:
    """Answered before anything is imported: scripts ask this in loops."""
    from portbook import __version__

    try:
        sys.stdout.write(f"portbook {__version__}\n")
    except BrokenPipeError:
        return YES
    return YES


def _run() -> int:
    from portbook.cli import exits

    return exits.run(sys.argv[1:])


class Terminated(SystemExit):
    """A signal asks the process to end. A SystemExit, because event loops pass on no other exception."""


def ended(command: Callable[[], int]) -> int:
    """Run a command to its end without a traceback, whatever becomes of its output, and return its exit code.

    An answer that could not be written was not given: the code is then 5. What cannot be written to standard error is
    lost and changes nothing. An error that nobody foresaw is no answer either: Python's own code for it, 1, means "no".
    """
    _prepare_streams()
    _handle_signals()
    code: int | None = None
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        if code is None:  # else the command has done what it was asked
            code = _report("the reader of the output has gone before the end")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Terminated as signalled:
        _forget_output()
        return _end_by_signal(signalled)
    except SystemExit as done:
        return _code(done)
    except BaseException as error:  # noqa: BLE001  the last resort
        code = _report(_describe(error))
    else:
        return code
    _forget_output()
    return code


def _code(end: SystemExit) -> int:
    return end.code if isinstance(end.code, int) else UNKNOWN


def _report(message: str) -> int:
    try:
        sys.stderr.write(f"portbook: {message}\n")
    except Exception:  # noqa: BLE001  such as MemoryError
        return UNKNOWN
    return UNKNOWN


def _describe(error: BaseException) -> str:
    """One line: an error of the output, or what a report about an error in portbook needs."""
    if isinstance(error, OSError):
        try:
            sys.stdout.flush()  # what could not be written is still there, unless it is more than the buffer holds
            os.write(sys.stdout.fileno(), b"")
        except OSError as failure:
            return f"the output cannot be written: {failure.strerror or failure}"
        from errno import errorcode  # built into the interpreter: it needs no file

        name = errorcode.get(error.errno or 0, "")
        if name in FULL:
            return f"the output cannot be written: {error.strerror}"
        shortage = SHORTAGES.get(name)
        if shortage:
            return shortage
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, RuntimeError) and error.args == (NO_THREAD,):
        return "no further thread can be started; ulimit -u and ulimit -v show the limits"
    try:
        text = f": {error}"
    except Exception:  # noqa: BLE001  of its __str__
        text = ""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:MOST_TEXT])
    return f"an error in portbook, please report it: {type(error).__name__}{line}{_place(error)}"


def _place(error: BaseException) -> str:
    """Where in portbook it was raised."""
    place = ""
    step = error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if file.startswith(PACKAGE):
            place = f" ({file.removeprefix(PACKAGE)}:{step.tb_lineno})"
        step = step.tb_next
    return place


# --- standard streams ----------------------------------------------------------------------------------------------


class _Forgiving:
    """Standard error, to which writing never fails: a full disk or a reader that has gone changes no answer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _prepare_streams() -> None:
    """Replace what was closed when the process started: a descriptor that is free is soon another file's.

    Standard output then refuses to be written; who only reads the exit code misses nothing.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            flags = os.O_WRONLY if descriptor == 2 else os.O_RDONLY
            os.open(os.devnull, flags)  # takes the lowest that is free
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for the rest of the process
    _buffer_output()
    if not isinstance(sys.stderr, _Forgiving):
        sys.stderr = _Forgiving(sys.stderr)


def _buffer_output() -> None:
    """Buffer standard output also under PYTHONUNBUFFERED, which images of containers set.

    Without a buffer a write may write a part and say so only in its result (Python documentation, io.RawIOBase.write),
    and what could not be written is not there any more to find out why.
    """
    raw = getattr(sys.stdout, "buffer", None)
    if hasattr(raw, "readall"):  # of io.RawIOBase only
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = open(sys.stdout.fileno(), "w", encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115


def _forget_output() -> None:
    """Keep the interpreter from flushing what is left when it ends (Python documentation, signal: SIGPIPE)."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


# --- signals -------------------------------------------------------------------------------------------------------


def _handle_signals() -> None:
    """Have SIGTERM and SIGHUP end the command as an exception does, so that what it has begun is taken back.

    The default action would leave a file that is half written under the name that it has until it is whole. As process
    1 of a container there is no default action at all (pid_namespaces(7)). Ignored signals stay ignored: nohup(1).
    """
    if os.name != "posix":
        return
    import _signal  # type: ignore[import-not-found]  # the C module below signal, without its enums

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(_signal, name)
        try:
            if _signal.getsignal(number) == _signal.SIG_DFL:
                _signal.signal(number, _terminate)
        except ValueError:  # not the main thread
            return
    _raise_again_what_is_lost()


LOST_S = 0.005  # until an exception of a signal is raised once more


def _raise_again_what_is_lost() -> None:
    """Raise an exception of a signal again when it was raised where exceptions are reported and dropped.

    A signal is handled between two instructions, and these may be of a callback: of a weak reference in the import
    system, of a destructor (Python documentation, sys.unraisablehook). A timer raises it again, outside of it.
    """
    import _signal

    report = sys.unraisablehook

    def raise_again(lost: sys.UnraisableHookArgs) -> None:
        end = lost.exc_value
        if not isinstance(end, Terminated | KeyboardInterrupt):
            report(lost)
            return

        def handle(number: int, frame: FrameType | None) -> None:
            raise end

        _signal.signal(_signal.SIGALRM, handle)
        _signal.setitimer(_signal.ITIMER_REAL, LOST_S)

    sys.unraisablehook = raise_again


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(SIGNALLED + number)


def _end_by_signal(signalled: Terminated) -> int:
    """End as the signal would have ended the process; where it cannot, return the exit code that shells show for it."""
    import _signal

    code = _code(signalled)
    _signal.signal(code - SIGNALLED, _signal.SIG_DFL)
    os.kill(os.getpid(), code - SIGNALLED)
    return code


def start() -> NoReturn:
    """Run the command line and end the process at once.

    The interpreter would first free every module and object, which takes as long as a bare Python runs. What that
    skips: functions registered with atexit (portbook has none), and waiting for threads that nobody needs any more.
    """
    code = UNKNOWN
    try:
        code = main()
        sys.stderr.flush()
    except Terminated as signalled:  # a second signal, while the first one ends the command
        code = _code(signalled)
    except BaseException:  # noqa: BLE001
        code = INTERRUPTED
    finally:
        os._exit(code)


if __name__ == "__main__":
    start()
