"""``portbook`` and ``python -m portbook``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    if sys.argv[1:] in (["--version"], ["-V"]):  # answered before anything is imported: scripts ask this in loops
        from portbook import __version__

        sys.stdout.write(f"portbook {__version__}\n")
        return 0
    from portbook.cli import exits

    return exits.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
