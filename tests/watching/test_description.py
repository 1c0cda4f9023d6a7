from __future__ import annotations

from datetime import UTC, datetime

import pytest

from portbook.events import EVENT_KINDS, MEANINGS, Event
from portbook.watching import description
from portbook.watching.description import describe, duration

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
NGINX = {
    "at": AT,
    "protocol": "tcp",
    "local_address": "0.0.0.0",
    "local_port": 80,
    "state": "LISTEN",
    "reach": "any",
    "pid": 12,
    "name": "nginx",
    "service": "nginx.service",
}
TEXTS = "name service container netns_name zone reason rule before comment error"
HOSTILE = "a\nb\x1b[31m\u202e" + "x" * 5_000


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"event": "opened"}, "nginx (pid 12, nginx.service) now listens on 0.0.0.0:80/tcp"),
        (
            {"event": "opened", "count": 3},
            "nginx (pid 12, nginx.service) now listens on 0.0.0.0:80/tcp; 3 sockets of this identity are open",
        ),
        (
            {"event": "opened", "state": "BOUND"},
            "nginx (pid 12, nginx.service) now holds 0.0.0.0:80/tcp without listening",
        ),
        (
            {"event": "closed", "lasted_ms": 7_200_000.0},
            "nginx (pid 12, nginx.service) has closed 0.0.0.0:80/tcp after 2 h",
        ),
        (
            {"event": "short_lived", "lasted_ms": 0.25},
            "nginx (pid 12, nginx.service) had 0.0.0.0:80/tcp for only 0.250 ms",
        ),
        (
            {"event": "bind_failed", "error": "EADDRINUSE", "reason": "it is held by apache2 (pid 7)", "count": 2},
            "nginx (pid 12, nginx.service) could not bind 0.0.0.0:80/tcp (EADDRINUSE): it is held by apache2 (pid 7); "
            "attempt 2",
        ),
        (
            {"event": "violation", "reason": "no rule allows it", "rule": "default"},
            "policy violation: nginx (pid 12, nginx.service) listens on 0.0.0.0:80/tcp: no rule allows it [default]",
        ),
        (
            {"event": "reach_changed", "before": "loopback"},
            "0.0.0.0:80/tcp of nginx (pid 12, nginx.service) can be reached from every network; before: this machine",
        ),
    ],
)  # fmt: skip
def test_sentences(fields, sentence):
    assert describe(Event(**{**NGINX, **fields})) == sentence


@pytest.mark.parametrize("kind", EVENT_KINDS)
def test_every_kind_has_a_sentence_whatever_others_wrote(kind):
    hostile = dict.fromkeys(TEXTS.split(), HOSTILE)
    for fields in ({}, {**NGINX, **hostile, "since": AT, "lasted_ms": 1.0}):
        sentence = describe(Event(**{"at": AT, **fields, "event": kind}))
        assert sentence.isprintable()
        assert 10 < len(sentence) < 3_000
        assert sentence.endswith("...") or not sentence.endswith(".")


def test_the_table_has_every_kind():
    assert dict(description.table()) == MEANINGS


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (86_400 * 3, "3 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
