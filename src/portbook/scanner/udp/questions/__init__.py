"""The requests to UDP services, and the readers of their replies: a module for each family of encodings.

Readers are pure. A reply that is not what a reader expects makes it return None, or raise IndexError, ValueError or
struct.error. A reply is up to 65,507 bytes that a stranger chose: whatever a reader repeats has a limit.
"""

from __future__ import annotations


def as_text(data: bytes) -> str:
    """Decode bytes that a stranger chose, whatever they are."""
    return data.decode("utf-8", "replace")
