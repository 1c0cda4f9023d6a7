"""No hostile text, in any field of an event, forges anything in any sink.

Events are made from the types of their fields, each text hostile (``tests/render/hostile``). What a sink writes is
read by a parser that is independent of it, and must have exactly what the event has.
"""

from __future__ import annotations

import json
import re
from random import Random

import pytest

from portbook.escaping import safe
from portbook.events import Event, compact
from portbook.watching.sinks import command, journald, jsonl, post, text
from portbook.watching.sinks.base import EncodedEvent
from portbook.watching.sinks.fields import MOST_TEXT, texts_of
from portbook.watching.sinks.spool import SpoolRecord
from portbook.watching.sinks.syslog import SyslogEncoder, frame_by_count
from portbook.watching.sinks.webhook import WebhookSink
from tests.render import hostile
from tests.watching.sinks.events import settings
from tests.watching.sinks.test_syslog import parse

SEEDS = range(60)
NAMES = set(Event.__struct_fields__)
DEFAULTS = {name: getattr(Event(at=hostile.FIRST, event="opened", severity="info"), name) for name in NAMES}


@pytest.fixture(params=SEEDS)
def one(request):
    return EncodedEvent(hostile.record(Random(request.param), Event))


def decodable(value):
    """As a parser of JSON has it: surrogates are replaced, tuples are lists."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, tuple):
        return [decodable(part) for part in value]
    return value


def test_texts_are_one_printable_line(one):
    for name, value in one.fields.items():
        assert name in NAMES
        assert value.isprintable()
        assert len(value) <= 4 * MOST_TEXT
    assert one.sentence.isprintable()


def test_json_lines(one):
    data = jsonl.encode([one, one])
    assert data.count(b"\n") == 2
    assert data.decode().replace("\n", "").isprintable()
    record = json.loads(data.splitlines()[0])
    assert record.keys() <= NAMES
    for name in ("name", "exe", "command_line", "service", "container", "netns_name", "reason", "comment", "parents"):
        value = getattr(one.event, name)
        assert record.get(name, DEFAULTS[name]) == decodable(value) or (name not in record and not value), name


def test_a_text_log(one):
    data = text.encode([one, one])
    lines = data.decode().splitlines()
    assert len(lines) == data.count(b"\n") == 2
    assert all(line.isprintable() for line in lines)
    at, severity, kind, *_ = lines[0].split(" ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", at)
    assert (severity, kind) == (one.event.severity, one.event.event)


@pytest.mark.parametrize("most_bytes", [480, 2048, 60_000])
def test_syslog(one, most_bytes):
    message = SyslogEncoder("daemon", "host\n<1>1 x", 32473, most_bytes).encode(one)
    assert len(message) <= most_bytes
    assert message.decode().replace("\ufeff", "").isprintable()
    header, values, sentence = parse(message)
    assert header[2] == b"host<1>1x"
    assert header[5].decode() == one.event.event
    cut = values.pop("truncated", None)
    assert values.items() <= one.fields.items(), "no field but those of the event, with their texts"
    assert one.sentence.startswith(sentence)
    if cut is None:
        assert (values, sentence) == (one.fields, one.sentence)
    assert frame_by_count(message).startswith(b"%d <" % len(message))


def test_the_journal(one):
    lines = journald.encode(one).decode().split("\n")
    assert lines.pop() == ""
    fields = dict(line.split("=", 1) for line in lines)
    assert len(fields) == len(lines)
    own = {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"}
    assert {name for name in fields if not name.startswith("PORTBOOK_")} == own
    assert {name.removeprefix("PORTBOOK_").lower(): value for name, value in fields.items() if name not in own} == dict(
        one.fields
    )
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", name) for name in fields), "systemd.journal-fields(7)"
    assert fields["MESSAGE"] == one.sentence


def test_a_webhook(one, monkeypatch):
    sent = []
    monkeypatch.setattr(post.Poster, "post", lambda self, body, headers: sent.append((body, headers)))
    sink = WebhookSink(settings("webhook", "http://127.0.0.1/"))
    sink.post("0123456789abcdef", [SpoolRecord(7, one.json), SpoolRecord(8, one.json)])
    ((body, headers),) = sent
    assert headers.keys() == {"Content-Type", "User-Agent", "Idempotency-Key"}
    assert headers["Idempotency-Key"] == '"0123456789abcdef-7-8"'
    record = json.loads(body)
    assert record.keys() == {"schema", "spool", "first", "events"}
    assert record["events"] == [json.loads(one.json)] * 2


def test_a_command(one, monkeypatch):
    started = []

    class Ran(Exception):
        pass

    def start(argv, limit_s, **options):
        started.append((argv, options))
        raise Ran

    monkeypatch.setattr(command.program, "start", start)
    sink = command.CommandSink(["/bin/true", "argument"], 1, {"PATH": "/bin"})
    with pytest.raises(Ran):
        sink.deliver([one])
    ((argv, options),) = started
    assert argv == ["/bin/true", "argument"]
    environment = dict(options["environment"])
    assert environment.pop("PATH") == "/bin"
    assert environment.pop("PORTBOOK_MESSAGE") == one.sentence
    assert environment == {f"PORTBOOK_{name.upper()}": value for name, value in one.fields.items()}
    assert all("\0" not in value for value in environment.values())
    assert json.loads(options["stdin"]) == json.loads(one.json)
    assert options["stdin"].count(b"\n") == 1


@pytest.mark.parametrize("part", hostile.PARTS)
def test_every_part_in_every_text_field(part):
    """One at a time, so that no other text hides it."""
    texts = [name for name, kind in Event.__annotations__.items() if "str" in str(kind)]
    for name in texts:
        hint = str(Event.__annotations__[name])
        value = (part, part) if hint.startswith("tuple") else part
        fields = {"at": hostile.FIRST, "event": "opened", "severity": "info", name: value}
        if name == "event":
            continue
        found = texts_of(compact(Event(**fields)))
        expected = safe(" ".join(value) if isinstance(value, tuple) else value)
        if value and len(part) <= MOST_TEXT:
            assert found[name] == expected
