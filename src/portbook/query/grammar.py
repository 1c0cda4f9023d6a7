"""The text of a query: words with quotes and commas become terms, and a term becomes text."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from portbook.addresses import MOST_SHOWN, parse_host
from portbook.errors import UsageError, nearest
from portbook.numerals import is_number
from portbook.ports import Ports, is_range
from portbook.ports import parse as parse_port
from portbook.query import Term, term
from portbook.query.fields import ALIASES, FIELDS, FieldValue, network_of, state_word
from portbook.records import FAMILIES, PROTOCOLS

# Words that stand for a term of their own, without a field. "localhost" is what only this machine can reach.
WORDS: dict[str, tuple[str, str]] = {
    **{word: ("protocol", word) for word in PROTOCOLS},
    **{word: ("family", word) for word in FAMILIES},
    "loopback": ("reach", "loopback"),
    "localhost": ("reach", "loopback"),
}
COMPOUND = {f"{protocol}{number}": f"{protocol} ipv{number}" for protocol in PROTOCOLS for number in (4, 6)}


def terms(text: str) -> Iterator[Term]:
    """Parse each word of a text; raise UsageError that names the wrong one and the valid values."""
    return map(_term, _tokens(text))


def is_term(word: str) -> bool:
    """Whether a word without a field means more than part of the name of a process, or almost does."""
    from portbook.names import port_of

    try:
        fields = set(map(_field_of, word.split(",")))
    except UsageError:
        return True  # "127.1", "80/sctp": parse says what is wrong with it
    return fields != {"word"} or any(map(port_of, word.split(",")))


# --- words ---------------------------------------------------------------------------------------------------------

QUOTED = set(' \t\n\r\f\v,"\\')


class Token(Struct, frozen=True):
    """A word of the text, quotes and backslashes resolved."""

    characters: list[tuple[str, bool]]  # character, and whether it is literal: it separates nothing


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    word: list[tuple[str, bool]] | None = None
    quoted = False
    characters = iter(text)
    for c in characters:
        if c.isspace() and not quoted:
            word = None
            continue
        if word is None:
            word = []
            tokens.append(Token(word))
        if c == '"':
            quoted = not quoted
            word.append(("", True))  # so that "" is an empty value
        elif c == "\\":
            word.append((next(characters, "\\"), True))
        else:
            word.append((c, quoted))
    if quoted:
        raise UsageError(f"unclosed quote in {text!r}", 'write field:"a value"')
    return tokens


def _split(characters: list[tuple[str, bool]], separator: str, limit: int = -1) -> list[list[tuple[str, bool]]]:
    """As str.split(): at separators that are not literal."""
    parts: list[list[tuple[str, bool]]] = [[]]
    for c in characters:
        if c == (separator, False) and limit != 0:
            limit -= 1
            parts.append([])
        else:
            parts[-1].append(c)
    return parts


def _text(characters: list[tuple[str, bool]]) -> str:
    return "".join(c for c, _ in characters)


def _term(token: Token) -> Term:
    characters = token.characters
    negated = characters[0] == ("-", False)
    if negated:
        characters = characters[1:]
    before, *after = _split(characters, ":", 1)
    name = ALIASES.get(_text(before), _text(before))
    if after and name in FIELDS:
        return term(name, map(_text, _split(after[0], ",")), negated)
    if after:
        return _term_with_colon(_text(characters), name, negated)
    return _term_without_field([_text(v) for v in _split(before, ",")], (",", True) in characters, negated)


def _term_with_colon(text: str, name: str, negated: bool) -> Term:
    """A port with something before it, or an IPv6 address; raise UsageError for a field that there is none of."""
    before = text.partition(":")[0]
    is_named = before.lower() in (*PROTOCOLS, "", "*", "localhost") or "." in before
    if not (is_named or "://" in text or before.startswith("[") or is_number(before) or text.count(":") > 1):
        raise _unknown_field(name, text)
    if network_of(text):
        return term("address", [text], negated)
    if "://" in text:
        return term("port", [text], negated)  # a URL may have commas
    return term("port", text.split(","), negated)


def _unknown_field(name: str, text: str) -> UsageError:
    shown = text[:MOST_SHOWN]
    likely = nearest(name, FIELDS)
    hint = f"valid values are {', '.join(FIELDS)}"
    if likely is not None:
        hint = f"did you mean {likely}:{shown.partition(':')[2]}? {hint}"
    elif is_number(text.partition(":")[2]):
        hint = f"{hint}; to reach another host: portbook dial {shown}"
    return UsageError(f"unknown field {name[:MOST_SHOWN]!r}", hint)


def _term_without_field(values: list[str], is_quoted: bool, negated: bool) -> Term:
    """What a word means by itself. Several words with commas are of one kind, or any words."""
    fields = {"word"} if is_quoted else set(map(_field_of, values))
    if fields == {"port", "word"} and all(is_range(v) for v in values if _field_of(v) == "port"):
        fields = {"word"}
    if len(fields) > 1:
        shown = ",".join(values)[:MOST_SHOWN]
        hint = "separate them by blanks, or name the field: process:a,b"
        raise UsageError(f"{shown!r} has values of different fields: {', '.join(sorted(fields))}", hint)
    (field,) = fields
    if field in ("protocol", "family", "reach"):
        values = [WORDS[v.lower()][1] for v in values]
    return term(field, values, negated)


def _field_of(text: str) -> str:
    """The field that a word is a value of; raise UsageError for what is almost a value."""
    word = text.lower()
    if is_range(text) or ("/" in text and text.rpartition("/")[2].lower() in PROTOCOLS):
        return "port"
    if word in WORDS:
        return WORDS[word][0]
    if word in COMPOUND:
        raise UsageError(f"{text!r} is a protocol and a family", f"write {COMPOUND[word]}")
    if state_word(text) is not None:
        return "state"
    if "/" in text:
        if not network_of(text):
            raise _wrong_slash(text)
        return "address"
    name, equals, value = text.partition("=")
    if equals and ALIASES.get(name.lower(), name.lower()) in FIELDS:
        shown = f"{name.lower()}:{value}"[:MOST_SHOWN]
        raise UsageError(f"{text[:MOST_SHOWN]!r} has an equals sign behind a field", f"write {shown}")
    if _looks_like_ipv4(word):
        parse_host(text)  # raises UsageError for what is almost an address
        return "address"
    _refuse_other_grammar(text)
    return "word"


# What other programs and languages have for ranges and logic, by what is written here.
NO_GRAMMAR = {
    "or": "write the values with commas: port:80,443",
    "and": "write the terms without it: tcp port:80",
    "not": "write a minus in front of the term: -port:80",
}


def _refuse_other_grammar(text: str) -> None:
    """Raise UsageError for a word that nobody means as the name of a process: ``80..90``, ``!tcp``, ``or``."""
    hint = NO_GRAMMAR.get(text.lower())
    if text[:1] == "!" and len(text) > 1:
        hint = f"write -{text[1:]}"[:MOST_SHOWN]
    elif text[:1].isascii() and text[:1].isdigit() and not text.strip("0123456789.-_+"):
        numbers = [part for part in text.replace(".", "-").replace("+", "-").replace("_", "-").split("-") if part]
        hint = f"write {'-'.join(numbers[:2])}"[:MOST_SHOWN]
    if hint is not None:
        raise UsageError(f"{text[:MOST_SHOWN]!r} has no meaning in a query", hint)


def _looks_like_ipv4(word: str) -> bool:
    parts = word.split(".")
    return len(parts) > 1 and all(part[:1].isdigit() and not part.strip("0123456789abcdefx") for part in parts)


def _wrong_slash(text: str) -> UsageError:
    if text.startswith(("/", "./", "../")):
        return UsageError(f"{text[:MOST_SHOWN]!r} is a path", f"write process:{text.rpartition('/')[2][:MOST_SHOWN]}")
    try:
        parse_port(text)
    except UsageError as error:
        return error
    return UsageError(f"{text[:MOST_SHOWN]!r} is not a port", "write 8080/udp")


def print_value(value: FieldValue) -> str:
    """A value as text that ``terms`` reads back."""
    if isinstance(value, Ports):
        return str(value)
    if isinstance(value, tuple):
        first, last = value
        return str(first) if first == last else f"{first}-{last}"
    needs_quotes = not value or any(c in QUOTED or c.isspace() for c in value)
    if needs_quotes:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return value
