"""What a UDP service is asked, and how its answer is read: a module for each way to write things down.

Readers are pure, and take an answer apart until it is not what they expect: they return None, or raise IndexError,
ValueError or struct.error.
"""

from __future__ import annotations


def as_text(data: bytes) -> str:
    """What a stranger says, whatever its bytes."""
    return data.decode("utf-8", "replace")
