"""What lets the command start quickly. Imported before anything else of the command line, and by nothing else.

click and msgspec import modules of the standard library that a listing does not use: they are imported when they are
used. Counted in instructions, beside a bare Python (1.0): click takes 2.2 and msgspec 0.5; without ``inspect`` 0.6
less, ``platform`` 0.2, ``gettext`` and ``locale`` 0.2, ``textwrap`` and ``msgspec.inspect`` 0.1. The garbage collector
would run nine times during the imports and find nothing, because modules stay.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from types import ModuleType

GC_THRESHOLD = 50_000  # objects, instead of 700; the collector still runs in a command that goes on for long


# Imported by click and msgspec, and used for help pages, JSON schemas and other formats.
UNUSED = ("inspect", "textwrap", "msgspec.inspect", "msgspec.msgpack", "msgspec.toml", "msgspec.yaml")


class Deferred(ModuleType):
    """A module that is imported when an attribute of it is used, but for those given here.

    ``importlib.util.LazyLoader`` does not serve: before Python 3.12 a second import statement loads the module.
    """

    def __init__(self, name: str, **attributes: object) -> None:
        super().__init__(name)
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)  # what the import system looks for, such as __path__
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = import_module(self.__name__)
        self.__dict__.update(vars(module))
        return getattr(module, name)


def _system() -> str:
    """What ``platform.system`` returns on POSIX; ``uuid`` calls it when it is imported."""
    return os.uname().sysname


def _gettext(message: str) -> str:
    """As ``gettext.gettext``, which click imports by name and calls for messages about wrong usage."""
    return str(_real_gettext("gettext", message))


def _ngettext(singular: str, plural: str, number: int) -> str:
    """As ``gettext.ngettext``."""
    return str(_real_gettext("ngettext", singular, plural, number))


def _real_gettext(name: str, *arguments: object) -> object:
    if isinstance(sys.modules["gettext"], Deferred):
        del sys.modules["gettext"]
    return getattr(import_module("gettext"), name)(*arguments)


def prepare() -> None:
    """Defer imports, and collect garbage less often."""
    gc.set_threshold(GC_THRESHOLD)
    deferred = [Deferred(name) for name in UNUSED]
    deferred += [Deferred("gettext", gettext=_gettext, ngettext=_ngettext)]
    if os.name == "posix":
        deferred += [Deferred("platform", system=_system)]
    for module in deferred:
        sys.modules.setdefault(module.__name__, module)
