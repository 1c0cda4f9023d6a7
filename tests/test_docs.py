"""The documentation names what the code defines: names that drift apart fail here."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from errno import errorcode
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import click
import pytest
from msgspec import Struct

from portbook import dialing, errors, events, query, records, resilience, sources
from portbook.bind.attempt import BindAttempt, Options
from portbook.bind.free import Free
from portbook.cli import COMMANDS, portbook
from portbook.managers import supervisor
from portbook.probe import error_queue, outcome, tcp
from portbook.probe.outcome import Evidence
from portbook.probe.request import ScanEventKind
from portbook.probe.tls import records as tls_records
from portbook.scanner.udp import refusals, schedule, state
from portbook.sources.base import CAPABILITIES, Capability
from portbook.stop import protected
from portbook.stop import records as stop_records
from portbook.store import records as store_records
from portbook.verdict.findings import CODES, Finding, FindingCode
from portbook.verdict.judge import Verdict
from portbook.watching import assessment, feeds
from portbook.watching.policy import difference, explanation, keys, summary
from portbook.watching.policy import parse as parse_policy
from portbook.watching.sinks import SINKS
from portbook.watching.sinks import load as load_sink

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def first_cells(page: str) -> set[str]:
    """The names in backquotes in the first column of every table of a page."""
    cells = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def chapter(page: str, title: str) -> str:
    """The text below one heading, without the headings that follow."""
    text = (DOCS / page).read_text()
    assert f"\n## {title}\n" in text, f"{page} has no chapter {title}"
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(page: str, title: str) -> dict[str, str]:
    """The first table of a chapter: what is in backquotes in the first column, and the last column."""
    lines = chapter(page, title).partition("\n| `")[2].partition("\n\n")[0].splitlines()
    cells = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines]
    return {row[0].strip("`"): row[-1] for row in cells}


JSON_RECORDS = (
    records.Listing,
    records.Socket,
    records.Owner,
    records.Gap,
    records.Holding,
    records.Holder,
    outcome.Answer,
    outcome.Evidence,
    dialing.Dial,
    dialing.DialedAddress,
    dialing.Timing,
    tls_records.Tls,
    tls_records.Certificate,
    Free,
    Verdict,
    Options,
    BindAttempt,
    Finding,
    stop_records.StopReport,
    stop_records.StopTarget,
    stop_records.Refusal,
    supervisor.Supervisor,
    stop_records.Ended,
    events.Event,
    store_records.Interval,
    store_records.Unwatched,
    store_records.Excerpt,
    store_records.PastHolding,
    store_records.Verification,
    store_records.Break,
    assessment.PolicyReport,
    assessment.JudgedSocket,
    assessment.CheckedRequirement,
    explanation.PolicyExplanation,
    explanation.ExplainedSocket,
    explanation.RuleOpinion,
    summary.RuleSummary,
    difference.PolicyDifference,
    difference.RuleChange,
    difference.SocketChange,
)
OTHER_PAGES = (FindingCode, stop_records.RefusalCode)  # in why.md and stop.md: the tests below


@pytest.mark.parametrize("record", JSON_RECORDS)
def test_json_page_has_exactly_the_fields_of_a_record(record: type[Struct]) -> None:
    assert tuple(table("json.md", record.__name__)) == record.__struct_fields__


def literals(hint: object) -> list[str]:
    """The words of a closed set, also where it may be None or is inside a tuple."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [word for part in get_args(hint) for word in literals(part)]


@pytest.mark.parametrize("record", JSON_RECORDS)
def test_json_page_has_exactly_the_words_of_every_closed_set(record: type[Struct]) -> None:
    meanings = table("json.md", record.__name__)
    for field, hint in get_type_hints(record).items():
        words = literals(hint)
        if words and hint not in OTHER_PAGES:
            assert set(names(meanings[field])) - {"null"} == set(words) - {""}, field


def test_policy_page_has_exactly_the_keys() -> None:
    cells = first_cells(chapter("policy.md", "The file").partition("### Reach")[0])
    assert cells == {"version", "default", *keys.KEYS}


def test_the_policy_on_the_page_is_valid_and_has_no_warnings() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (DOCS / "policy.md").read_text(), re.DOTALL)
    found = parse_policy(example, now=datetime(2026, 1, 1, tzinfo=UTC))
    assert [rule.kind for rule in found.rules] == ["allow", "allow", "allow", "deny", "require"]
    assert found.warnings == ()


def test_stop_page_has_exactly_the_codes_of_refusals() -> None:
    assert tuple(table("stop.md", "What is refused")) == get_args(stop_records.RefusalCode)


def test_stop_page_names_every_protected_process_and_supervisor() -> None:
    page = (DOCS / "stop.md").read_text()
    assert all(f"`{name}`" in page for name in (*protected.UNIX, *protected.WINDOWS, *supervisor.SUPERVISORS))


def test_why_page_has_exactly_the_codes() -> None:
    assert first_cells((DOCS / "why.md").read_text()) == set(get_args(FindingCode))


def test_every_code_of_a_finding_has_a_meaning() -> None:
    assert tuple(CODES) == get_args(FindingCode)


def test_query_page_has_exactly_the_fields_and_aliases() -> None:
    assert first_cells((DOCS / "query.md").read_text()) == set(query.FIELDS) | set(query.ALIASES)


def test_query_page_names_every_state_and_group() -> None:
    page = (DOCS / "query.md").read_text()
    assert all(f"`{name.lower()}`" in page for name in (*records.STATES, *query.STATE_GROUPS))


def test_sources_page_has_exactly_the_sources() -> None:
    assert list(table("sources.md", "Sources")) == list(sources.SOURCES)


def test_sources_page_has_exactly_the_capabilities_and_their_meanings() -> None:
    assert table("sources.md", "Capabilities") == CAPABILITIES
    assert tuple(CAPABILITIES) == get_args(Capability)


def test_watch_page_says_what_each_feed_sees_misses_and_needs() -> None:
    page = (DOCS / "watch.md").read_text()
    for name in feeds.FEEDS:
        kind = feeds.load(name)
        seen = (kind.sees_udp, kind.sees_failed, kind.sees_other_namespaces, kind.sees_processes)
        cells = " | ".join("yes" if each else "no" for each in seen)
        assert f"| `{name}` | {cells} | {kind.needs} |" in page
        missed = ". ".join(text[0].upper() + text[1:] for text in kind.all_missed(1.0))
        assert f"- `{name}`: {missed}." in page


def test_scan_page_has_exactly_the_kinds_of_events() -> None:
    assert list(table("scan.md", "Events")) == list(get_args(ScanEventKind))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_examples_and_a_page(name: str) -> None:
    ctx = click.Context(portbook)
    command = portbook.get_command(ctx, name)
    assert command is not None
    examples = (command.help or "").partition("Examples:")[2]
    assert len(re.findall(r"^ *portbook ", examples, re.MULTILINE)) >= 2
    assert name in ("man", "help") or (DOCS / f"{name}.md").exists()


def test_architecture_draws_every_error_with_its_code() -> None:
    drawing = errors.__doc__ or ""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    for kind in kinds:
        assert re.search(rf"{kind.__name__} +(exit code|{kind.exit_code})", drawing), kind


def test_architecture_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    modules = {p.stem for p in (ROOT / "src/portbook").rglob("*.py")} - {"__init__", "__main__", "list_"}
    platforms = {"linux", "windows", "portable", "systemd"}
    missing = {m for m in modules - platforms if not re.search(rf"\b{m}\b", text)}
    assert not missing


def test_man_page_in_docs_is_the_generated_one() -> None:
    """In a process of its own: click keeps the help option that another test made first."""
    run = subprocess.run([sys.executable, "-m", "portbook", "man"], capture_output=True, timeout=60, check=True)
    assert (DOCS / "portbook.1").read_text() == run.stdout.decode(), "run: portbook man > docs/portbook.1"


# --- what an answer means ------------------------------------------------------------------------------------------


def reach(title: str) -> list[list[str]]:
    """The rows of the tables in one chapter of the page about outcomes, without their headings."""
    chapter = (DOCS / "reach.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in chapter.splitlines() if line.startswith("| `")]
    assert rows, title
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell.replace("\\|", "|"))


def test_reach_page_has_exactly_the_outcomes() -> None:
    assert [names(row[0])[0] for row in reach("Outcomes")] == list(get_args(outcome.Outcome)), "and in their order"


def test_reach_page_has_exactly_the_kinds_of_evidence() -> None:
    rows = reach("Kinds of evidence")
    assert [names(row[0])[0] for row in rows] == list(get_args(outcome.EvidenceKind))
    assert {name for row in rows for name in names(row[2]) if "…" not in name} == set(Evidence.__struct_fields__) - {
        "kind"
    }


def icmp(version: int, number: int, code: int) -> list[object]:
    """What the engines make of a message from the target itself, and from another host."""
    target = "10.0.0.1" if version == 4 else "fd00::1"
    found = tcp.icmp_result(error_queue.QueuedError(version, number, code, target, 80, 0))
    outcomes = [
        refusals.refusal_outcome(Evidence("icmp", icmp_type=number, icmp_code=code, sender=sender), target)
        for sender in (target, "10.0.0.254")
    ]
    return [found.evidence.text, found.outcome, *dict.fromkeys(outcomes)]


def test_reach_page_has_exactly_the_icmp_messages_and_what_they_mean() -> None:
    told = {
        tuple(map(int, names(row[0])[0].split("/"))): [row[1], *names(row[2]), *names(row[3])]
        for row in reach("ICMP messages")
    }
    known = {
        (tcp.DESTINATION_UNREACHABLE[version], code): icmp(version, tcp.DESTINATION_UNREACHABLE[version], code)
        for version, codes in tcp.UNREACHABLE.items()
        for code in codes
    }
    assert told == known


def test_reach_page_has_exactly_the_error_numbers_and_what_they_mean() -> None:
    told = {
        names(row[0])[0]: [re.findall(r"\d+", row[3]), *(names(cell) for cell in row[4:])]
        for row in reach("Error numbers")
    }
    known = {
        name: [
            [str(number) for number, (_, posix) in resilience.WINDOWS.items() if posix == name],
            [tcp.ERRORS_AFTER_SYN.get(name, tcp.NOT_SENT)[0]],
            [tcp.ERRORS_OF_CONNECT.get(name, tcp.NOT_SENT)[0]],
            [found] if (found := refusals.OUTCOMES.get(name, "error")) else [],
        ]
        for name in (*tcp.ERRORS_AFTER_SYN, "EMSGSIZE")
    }
    assert told == known
    posix = {name for name in refusals.OUTCOMES if name in errorcode.values()}
    assert posix <= told.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers are those of Linux")
def test_reach_page_has_the_error_numbers_of_linux() -> None:
    assert all(errorcode[int(row[1])] == names(row[0])[0] for row in reach("Error numbers"))


def test_reach_page_has_every_kind_of_silence() -> None:
    told = {name for row in reach("Silence over UDP") for name in names(row[0])}
    assert told == {state.PROVEN, state.STOPPED_REFUSING, schedule.LIMITED, schedule.TIME_UP}


def test_sinks_page_has_exactly_the_kinds_and_their_options() -> None:
    page = (DOCS / "sinks.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\| ([^|]*) \| `(\w+)` \|$", page, re.MULTILINE)
    kinds = {name: load_sink(name, "") for name in SINKS}
    assert [row[0] for row in rows] == list(kinds)
    for name, targets, meaning, severity in rows:
        kind = kinds[name]
        assert (names(targets), meaning, severity) == ([t for t in kind.targets if t], kind.meaning, kind.severity)
    for name, kind in kinds.items():
        if kind.options:
            title = "text, jsonl" if name in ("text", "jsonl") else name
            assert table("sinks.md", title) == {key: option.meaning for key, option in kind.options.items()}
