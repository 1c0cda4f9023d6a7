"""Asking many ports at once. The package can be called: ``portbook.scan("10.0.0.0/24", "@web")``, see ``run.scan``."""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from portbook.probe.request import Limits, Listener
    from portbook.scan.run import Scan


class Package(ModuleType):
    """The package, and the public function of its name: importing any module of it sets ``portbook.scan``."""

    def __call__(
        self,
        targets: str | Iterable[str],
        ports: str | Iterable[int],
        *,
        udp: bool = False,
        limits: Limits | None = None,
        allow_public: bool = False,
        only_open: bool = False,
        tell: Listener | None = None,
    ) -> Scan:
        """As ``run.scan``, whose documentation takes the place of this line when it is imported."""
        from portbook.scan.run import scan

        return scan(
            targets, ports, udp=udp, limits=limits, allow_public=allow_public, only_open=only_open, tell=tell
        )  # fmt: skip


sys.modules[__name__].__class__ = Package
