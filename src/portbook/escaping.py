"""Text that others chose, made safe: one rule for what people read (terminals, logs, messages), one for JSON.

Processes choose their own names and command lines, users the names of interfaces in their network namespaces, hosts
what they reply. Whoever puts such a text into a line escapes it here (CWE-117, CWE-150).
"""

from __future__ import annotations

from typing import Any

import msgspec


def safe(text: str) -> str:
    """The text with every unprintable character escaped: controls, line ends, bidirectional overrides."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)  # as str.isprintable() is documented


class Encoder:
    """As ``msgspec.json.Encoder``, for text that others chose."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()

    def encode(self, record: object) -> bytes:
        """The record as one line without a line end."""
        try:
            data = self._encoder.encode(record)
        except UnicodeEncodeError:
            data = self._encoder.encode(_encodable(msgspec.to_builtins(record)))
        return _escaped(data)

    def encode_lines(self, records: list[Any] | tuple[Any, ...]) -> bytes:
        """The records, each as a line."""
        try:
            data = self._encoder.encode_lines(records)
        except UnicodeEncodeError:
            return b"".join(self.encode(record) + b"\n" for record in records)
        return _escaped(data)


def _encodable(value: Any) -> Any:
    """The same with U+FFFD for each surrogate: UTF-8 has none (RFC 3629 section 3), and JSON is in UTF-8 (RFC 8259)."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value


def _escaped(data: bytes) -> bytes:
    """JSON with every unprintable character escaped (RFC 8259 section 7). Outside of strings there are none.

    The encoder escapes those below 32; others are rare, and DEL is the only one in ASCII.
    """
    if data.isascii() and b"\x7f" not in data:
        return data
    text = data.decode()
    for character in set(text):
        if not character.isprintable() and character != "\n":
            units = character.encode("utf-16-be")
            escape = "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
            text = text.replace(character, escape)
    return text.encode()
