"""The answers of a scan for programs: JSON, JSON lines, CSV. All of it streams."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from portbook.probe.outcome import Answer, Evidence
from portbook.render.machine import ENCODER, csv_cell, encode_items, take_written
from portbook.scanner.report import SCHEMA, Report

CHUNK = 1000  # rows encoded at once

EVIDENCE_AT = Answer.__struct_fields__.index("evidence")
ANSWER_COLUMNS = tuple(field for field in Answer.__struct_fields__ if field != "evidence")
ANSWER_VALUES = attrgetter(*ANSWER_COLUMNS)
EVIDENCE_COLUMNS = Evidence.__struct_fields__
EVIDENCE_VALUES = attrgetter(*EVIDENCE_COLUMNS)


def json(answers: Iterable[Answer], report: Callable[[], Report]) -> Iterator[bytes]:
    """One object: the answers, one on each line, then the report, which is complete when they are."""
    yield b'{"schema":%d,"answers":[' % SCHEMA
    separator = b"\n"
    for chunk in chunks(answers):
        yield separator + encode_items(chunk)
        separator = b",\n"
    yield b'],\n"report":' + ENCODER.encode(report()) + b"}\n"


def jsonl(answers: Iterable[Answer], report: Callable[[], Report]) -> Iterator[bytes]:
    """One answer a line."""
    for chunk in chunks(answers):
        yield ENCODER.encode_lines(chunk)


def csv(answers: Iterable[Answer], report: Callable[[], Report]) -> Iterator[bytes]:
    """One answer on each line, its evidence in separate columns (RFC 4180)."""
    from csv import writer

    buffer = io.StringIO(newline="")
    rows = writer(buffer)
    rows.writerow([*ANSWER_COLUMNS[:EVIDENCE_AT], "evidence", *EVIDENCE_COLUMNS[1:], *ANSWER_COLUMNS[EVIDENCE_AT:]])
    for chunk in chunks(answers):
        for answer in chunk:
            values = ANSWER_VALUES(answer)
            flat = (*values[:EVIDENCE_AT], *EVIDENCE_VALUES(answer.evidence), *values[EVIDENCE_AT:])
            rows.writerow(map(csv_cell, flat))
        yield take_written(buffer)
    yield take_written(buffer)


def chunks(answers: Iterable[Answer]) -> Iterator[list[Answer]]:
    """Yield some answers at a time, an open port at once: a reader may be waiting for it."""
    chunk: list[Answer] = []
    for answer in answers:
        chunk.append(answer)
        if answer.outcome == "open" or len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


FORMATS: dict[str, Callable[[Iterable[Answer], Callable[[], Report]], Iterator[bytes]]] = {
    "json": json,
    "jsonl": jsonl,
    "csv": csv,
}
