"""What lets the command start quickly. Imported before anything else of the command line, and by nothing else.

click and msgspec import modules of the standard library that a listing does not use: they are imported when they are
used. Counted in instructions, beside a bare Python (1.0), click takes 2.4, of which ``inspect`` is 1.0, and msgspec
0.6; with the modules below deferred they take 1.4 and 0.3. The garbage collector would run many times during the
imports and find nothing, because modules stay.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

GC_THRESHOLD = 50_000  # objects, instead of 700; the collector still runs in a command that goes on for long
# Imported by click and msgspec, and used for help pages, JSON schemas and other formats.
UNUSED = ("inspect", "textwrap", "msgspec.inspect", "msgspec.msgpack", "msgspec.toml", "msgspec.yaml")
# Functions of modules that click and msgspec import by name: messages about wrong usage, JSON schemas.
BY_NAME = {"gettext": ("gettext", "ngettext"), "msgspec._json_schema": ("schema", "schema_components")}


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


def _call_later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported at the first call."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        if isinstance(sys.modules.get(module), Deferred):
            del sys.modules[module]
        return getattr(import_module(module), name)(*arguments, **keywords)

    return call


def prepare() -> None:
    """Defer imports, and collect garbage less often."""
    gc.set_threshold(GC_THRESHOLD)
    deferred = [Deferred(name) for name in UNUSED]
    for module, names in BY_NAME.items():
        deferred.append(Deferred(module, **{name: _call_later(module, name) for name in names}))
    if os.name == "posix":
        deferred += [Deferred("platform", system=_system)]
    for stand_in in deferred:
        sys.modules.setdefault(stand_in.__name__, stand_in)
