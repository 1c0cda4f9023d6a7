"""What lets the command start quickly. Imported before anything else of the command line, and by nothing else.

Measured beside a bare Python on Linux: ``inspect`` is a fifth of what ``import click`` takes, and without a shell's
completion or ``--help`` click does not call it; the collector runs nine times while modules are imported, and finds
nothing, because modules stay.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import ModuleType

# Imported by click and msgspec; what uses them is help pages and JSON schemas.
UNUSED = ("inspect", "textwrap", "msgspec.inspect")
GC_THRESHOLD = 50_000  # objects, instead of 700; the collector still runs in a command that goes on for long


class Deferred(ModuleType):
    """A module of the standard library that is imported when an attribute of it is used.

    ``importlib.util.LazyLoader`` is not used: before Python 3.12 a second import statement loads the module.
    """

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)  # what the import system looks for, such as __path__
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = import_module(self.__name__)
        self.__dict__.update(vars(module))
        return getattr(module, name)


def prepare() -> None:
    """Defer imports that are not needed, and collect garbage less often."""
    gc.set_threshold(GC_THRESHOLD)
    for name in UNUSED:
        sys.modules.setdefault(name, Deferred(name))
