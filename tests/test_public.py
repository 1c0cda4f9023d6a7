"""The public interface: every name can be pickled, and records keep the order of their fields."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from types import FunctionType

import pytest
from msgspec import Struct

import portbook
from portbook import errors, records
from portbook.bind.attempt import BindError, Endpoint, Options, bind
from portbook.probe import outcome
from portbook.probe.request import Limits, ScanEvent
from portbook.scanner.report import Report
from portbook.stop.records import StopReport
from portbook.verdict.findings import Finding
from portbook.verdict.judge import Verdict
from portbook.watching import policy

LIMIT_S = 60.0  # for a pool: its workers import portbook first
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]

OWNER = records.Owner(1, "init", started=datetime(2026, 1, 1, tzinfo=UTC), how="fd", command_line=("/sbin/init", ""))
SOCKET = records.Socket("tcp", "ipv6", "::1", 80, state="LISTEN", owners=(OWNER,), v6only=True)
GAP = records.Gap("owner", 2, "not visible", "run with sudo")
HOLDER = records.Holder(OWNER, 1.5, (OWNER,), (SOCKET,), ("443/tcp",))
EVIDENCE = outcome.Evidence("icmp", 111, "ECONNREFUSED", 3, 3, "10.0.0.1", "port unreachable")
ANSWER = outcome.Answer("localhost", "127.0.0.1", None, 80, "tcp", "closed", EVIDENCE, 0.1)
FINDING = Finding("listener", "blocks", "in use", "stop it", {"pids": [1]}, ("[::]",), "likely", ("0.0.0.0",))
POLICY = policy.parse('version = 1\n[[allow]]\nport = 80\nexe = "/usr/*"\nreach = "::1"\nuntil = 2100-01-01\n')
INSTANCES = (
    OWNER,
    SOCKET,
    GAP,
    HOLDER,
    records.Listing(1, "host", "linux", datetime.now(UTC), "bpf", False, (SOCKET,), (GAP,), 1, 2),
    records.Holding(1, 80, None, True, (HOLDER,), (SOCKET,), (GAP,)),
    EVIDENCE,
    ANSWER,
    FINDING,
    Verdict(1, "linux", 80, "tcp", Options(), False, (), ("[::]",), (FINDING,), (), False, (GAP,)),
    Limits(timeout_s=1.0),
    ScanEvent("deadline", None, "the time was up", 1.0),
    StopReport(1, 80, "tcp", "stopped", ()),
    portbook.parse("state:listening port:80"),
    POLICY,
    portbook.judge(POLICY, SOCKET, datetime(2026, 1, 1, tzinfo=UTC)),
)


def copy(value: object) -> object:
    return pickle.loads(pickle.dumps(value))


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", portbook.__all__)
def test_every_public_name_is_pickled_by_reference(name: str) -> None:
    public = getattr(portbook, name)
    assert copy(public) is public


def test_everything_public_is_a_function_or_a_class() -> None:
    assert all(isinstance(getattr(portbook, name), FunctionType | type) for name in portbook.__all__)


def test_names_and_their_modules_agree() -> None:
    listed = [name for names in portbook._HOMES.values() for name in names.split()]
    assert sorted(listed) == sorted(portbook.__all__)


# --- records and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", INSTANCES, ids=lambda record: type(record).__name__)
def test_a_record_is_the_same_after_pickling(record: object) -> None:
    assert copy(record) == record


def test_no_public_record_is_forgotten_here() -> None:
    public = {getattr(portbook, name) for name in portbook.__all__}
    public_records = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Struct)}
    from_calls = {portbook.Dial, portbook.Free}  # results of real calls, below
    assert public_records <= {type(record) for record in INSTANCES} | from_calls


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_keeps_its_message_and_hint(kind: type[errors.PortbookError]) -> None:
    after = copy(kind("it failed", "try again"))
    assert type(after) is kind
    assert isinstance(after, errors.PortbookError)
    assert (after.args, after.hint, after.exit_code) == (("it failed",), "try again", kind.exit_code)
    assert str(after) == "it failed; try again"


def test_a_bind_error_keeps_everything_but_its_cause(listener: socket.socket) -> None:
    endpoint = Endpoint("127.0.0.1")
    with pytest.raises(BindError) as caught:
        bind(listener.getsockname()[1], endpoint, Options(), socket.socket)
    before, after = caught.value, copy(caught.value)
    assert isinstance(after, BindError)
    assert (after.step, after.endpoint, after.protocol) == ("bind", endpoint, "tcp")
    assert (after.errno, after.strerror, after.number) == (before.errno, before.strerror, before.number)
    assert after.fault == before.fault
    assert str(after) == str(before)


# --- results -------------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def test_results_are_the_same_after_pickling(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    for result in (
        portbook.take(f"port:{port}"),
        portbook.who(port),
        portbook.why(port),
        portbook.free(2, address="127.0.0.1"),
        portbook.dial(f"127.0.0.1:{port}"),
    ):
        assert copy(result) == result


def test_a_scan_is_not_pickled_but_its_answers_and_report_are(listener: socket.socket) -> None:
    with portbook.scan("127.0.0.1", str(listener.getsockname()[1])) as scan:
        with pytest.raises(TypeError, match="cannot be pickled: pickle its answers"):
            pickle.dumps(scan)
        answers = list(scan)
    assert [answer.outcome for answer in answers] == ["open"]
    assert copy(answers) == answers
    assert isinstance(scan.report, Report)
    assert copy(scan.report) == scan.report


def test_a_lease_is_not_pickled() -> None:
    with portbook.lease(address="127.0.0.1") as lease, pytest.raises(TypeError, match="holds open sockets"):
        pickle.dumps(lease)


def test_another_process_takes_work_and_returns_results_and_errors(listener: socket.socket) -> None:
    """With spawn, as on Windows and macOS: function, arguments and results are pickled."""
    port = listener.getsockname()[1]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        listing = pool.submit(portbook.take, f"port:{port} state:listen")
        verdict = pool.submit(portbook.why, port, address="127.0.0.1")
        usage = pool.submit(portbook.take, "port:nonsense")
        bound = pool.submit(bind, port, Endpoint("127.0.0.1"), Options(), socket.socket)
        assert [s.local_port for s in listing.result(LIMIT_S).sockets] == [port]
        assert "listener" in [finding.code for finding in verdict.result(LIMIT_S).findings]
        with pytest.raises(portbook.UsageError) as refused:
            usage.result(LIMIT_S)
        assert refused.value.hint
        with pytest.raises(BindError) as failed:
            bound.result(LIMIT_S)
        assert failed.value.step == "bind"


# --- the order of fields -------------------------------------------------------------------------------------------

# Fields of version 0.1, in their order. Records are made by position, in hot paths and by callers: new fields are
# added at the end, and these lists grow with them.
FIELDS = {
    records.Socket: "protocol family local_address local_port remote_address remote_port state reach zone service_name "
    "uid user inode owners recv_queue send_queue accept_queue backlog v6only interface created state_text cookie "
    "cgroup_id service container netns netns_name ends_in_ms kernel",
    records.Owner: "pid name exe user started service container how confidence command_line ppid cgroup service_tag",
    records.Gap: "what count why hint",
    records.Listing: "schema host platform taken_at source complete sockets gaps listeners_elsewhere "
    "namespaces_elsewhere",
    records.Holder: "owner age_s parents sockets other_ports",
    records.Holding: "schema port protocol held holders sockets gaps holders_elsewhere sockets_elsewhere",
    outcome.Answer: "target address zone port protocol outcome evidence rtt_ms attempts service",
    outcome.Evidence: "kind errno error icmp_type icmp_code sender text",
    Finding: "code severity text remedy evidence endpoints confidence perhaps",
}


@pytest.mark.parametrize("record", FIELDS, ids=lambda record: record.__name__)
def test_fields_are_only_added_at_the_end(record: type[Struct]) -> None:
    recorded = tuple(FIELDS[record].split())
    assert record.__struct_fields__[: len(recorded)] == recorded


@pytest.mark.parametrize("record", FIELDS, ids=lambda record: record.__name__)
def test_added_fields_have_a_default(record: type[Struct]) -> None:
    added = len(record.__struct_fields__) - len(FIELDS[record].split())
    assert len(record.__struct_defaults__) >= added
