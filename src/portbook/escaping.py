"""Text that others chose, made safe for people to read: one rule, for terminals, logs and messages.

Processes choose their own names and command lines, users the names of interfaces in their network namespaces, hosts
what they reply. Whoever puts such a text into a line escapes it here (CWE-117, CWE-150).
"""

from __future__ import annotations


def safe(text: str) -> str:
    """The text with every unprintable character escaped: controls, line ends, bidirectional overrides."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)  # as str.isprintable() is documented
