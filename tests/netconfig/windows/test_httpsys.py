"""The request queues of http.sys, read from what netsh prints in many languages, and which of them has a port."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import SourceGarbled
from portbook.netconfig.facts import HttpQueue
from portbook.netconfig.windows import httpsys, netsh
from portbook.netconfig.windows.httpsys import UrlPrefix, parse, queues_of, url_prefix
from portbook.netconfig.windows.netsh import NetshOutput
from tests.netconfig.windows.test_netsh import ANY, CODEC, CODECS, in_utf8, sample, samples

EXPECTED = (
    HttpQueue(None, ("HTTPS://+:443/HOSTAGENT/VSWITCH/",), (2688,)),
    HttpQueue(None, ("HTTP://+:5985/WSMAN/", "HTTP://+:47001/WSMAN/"), (8496,)),
    HttpQueue(None, ("HTTP://127.0.0.1:19443:127.0.0.1/",), (33704,)),
    HttpQueue("DefaultAppPool", ("HTTP://*:80/",), (3408,)),
    HttpQueue("Shop", ("HTTPS://SHOP.EXAMPLE:8443/", "HTTP://[::1]:8080:127.0.0.1/A/"), (7120, 7344)),
    HttpQueue("Nobody", (), ()),
)
LANGUAGES = sorted(samples("queues") - {"english-2012.cp437"})


def queues(text: str) -> tuple[HttpQueue, ...]:
    return parse(NetshOutput(text.encode(), "cp437"))


TITLE = "Snapshot (Request Queue View):\r\n-----------------------------\r\n\r\n"


# --- parse ---------------------------------------------------------------------------------------------------------


def test_there_are_six_languages():
    assert {name.partition(".")[0] for name in LANGUAGES} == {
        "english",
        "german",
        "french",
        "chinese",
        "korean",
        "japanese",
    }


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_language_parses_to_the_same_rows(name):
    assert parse(sample("queues", name)) == EXPECTED
    assert parse(in_utf8(sample("queues", name))) == EXPECTED


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("codec", CODECS)
def test_with_the_wrong_code_page_all_but_names_is_right(name, codec):
    found = parse(sample("queues", name)._replace(codec=codec))
    assert [(queue.urls, queue.pids) for queue in found] == [(queue.urls, queue.pids) for queue in EXPECTED]


def test_the_layout_of_older_systems():
    found = parse(sample("queues", "english-2012.cp437"))
    assert found == (
        HttpQueue(None, ("HTTP://+:5985/WSMAN/", "HTTP://+:47001/WSMAN/"), (944,)),
        HttpQueue(None, ("HTTP://+:8871/",), (1344,)),
        HttpQueue(None, ("HTTP://+:80/",), (1552,)),
        HttpQueue(None, ("HTTP://+:19080/",), (4364,)),
    )


def test_a_process_never_belongs_to_the_queue_before():
    """As in a published answer, all of whose headings but the first are indented."""
    lines = sample("queues", "english-2012.cp437").data.decode().splitlines()
    first, second = [at for at, line in enumerate(lines) if line.startswith("Request")][:2]
    shifted = [*lines[:second], *("    " + line for line in lines[second:])]
    found = queues("\r\n".join(shifted))
    assert first < second
    assert [(queue.urls[-1], queue.pids) for queue in found] == [
        ("HTTP://+:47001/WSMAN/", (944,)),
        ("HTTP://+:8871/", (1344,)),
        ("HTTP://+:80/", (1552,)),
        ("HTTP://+:19080/", (4364,)),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\r\n",
        "Snapshot (Request Queue View):\r\n",
        "a: b\r\n    c: 1\r\n",
        "---\r\n",
        "HTTP://+:80/\r\n",
        "\0" * 60,
    ],
)
def test_an_answer_without_a_title_is_garbled_and_not_no_queue(answer):
    with pytest.raises(SourceGarbled, match="no title"):
        queues(answer)


def test_a_title_alone_means_that_there_is_no_queue():
    assert queues(TITLE) == ()
    assert queues(TITLE + "There is none.\r\n") == ()


@pytest.mark.parametrize("line", ["    HTTP://+:80/", "    944", "    State: Active"])
def test_a_line_that_belongs_to_no_queue_is_garbled(line):
    with pytest.raises(SourceGarbled, match="belongs to no queue"):
        queues(TITLE + line + "\r\n")


@pytest.mark.parametrize(
    ("lines", "pids"),
    [
        (["Attached: 0", "Controller: 3408", "Processes:"], (3408,)),
        (["Attached: 0", "Processes:"], ()),
        (["Cache hits: 0", "Attached: 0", "Processes:"], ()),
        (["Cache hits: 0", "Attached: 1", "Processes:", "?"], ()),  # not a pid: pids are multiples of 4
        (["Attached: 2", "Controller: 3408", "Processes:", "8", "12"], (8, 12)),
        (["Attached: 1", "Processes:", "ID: 944, image: <?>", "Log format: 0"], (944,)),
        (["Attached: 1", "Processes:", "4294967295"], (4294967295,)),
        (["Attached: 1", "Processes:", "4294967296"], ()),
        (["Max requests: 1000", "Timeout (secs): 120", "Max bandwidth: 4294967295"], ()),
    ],
)
def test_which_numbers_are_processes(lines, pids):
    text = "".join(f"    {line}\r\n" for line in lines)
    assert queues(f"{TITLE}Queue: Pool\r\n{text}") == (HttpQueue("Pool", (), pids),)


@pytest.mark.parametrize(
    ("headings", "names"),
    [
        (["Queue: Pool"], ["Pool"]),
        (["Queue: Queue is unnamed."], [None]),
        (["队列\uff1a队列未命名。"], [None]),
        (["Queue: sans nom", "Queue: sans nom"], [None, None]),
        (["Queue: a: b"], ["a: b"]),
    ],
)
def test_names(headings, names):
    assert [queue.name for queue in queues(TITLE + "".join(f"{line}\r\n" for line in headings))] == names


PIECES = st.lists(
    st.sampled_from(["-----\n", "A: b\n", "  ", "944\n", "HTTP://+:80/\n", "ID: 8, x: y\n", "P:\n", "n: 0\n", "\n"])
).map(lambda pieces: ("-----\n" + "".join(pieces)).encode())


@given(ANY | PIECES, CODEC)
def test_any_bytes_are_read_or_garbled(data, codec):
    try:
        found = parse(NetshOutput(data, codec))
    except SourceGarbled:
        return
    assert all(0 <= pid <= 0xFFFFFFFF for queue in found for pid in queue.pids)
    assert sum(len(queue.urls) for queue in found) <= data.upper().count(b"HTTP")


@pytest.mark.parametrize(
    "unit", [" ", "a: 1,", "a: 1," + " " * 99, ":", "1", "-", "HTTP://", "    HTTP://+:80/\r\n", "a: b\r\n"]
)
def test_the_longest_answer_takes_no_time(unit):
    raw = NetshOutput((TITLE + "a: b\r\n    " + unit * (netsh.MOST_BYTES // len(unit))).encode(), "cp850")
    started = time.process_time()
    found = parse(raw)
    queues_of(80, found)
    assert time.process_time() - started < 60  # what is quadratic takes days


# --- which queue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("HTTP://+:80/", UrlPrefix("http", "+", 80, None, "/")),
        ("HTTPS://*:443/", UrlPrefix("https", "*", 443, None, "/")),
        ("http://localhost:8080/a/b/", UrlPrefix("http", "localhost", 8080, None, "/a/b/")),
        ("HTTP://127.0.0.1:19443:127.0.0.1/", UrlPrefix("http", "127.0.0.1", 19443, "127.0.0.1", "/")),
        ("HTTP://[::1]:8080:127.0.0.1/A/", UrlPrefix("http", "::1", 8080, "127.0.0.1", "/A/")),
        ("HTTP://[2001:DB8:8000::1]:3000/", UrlPrefix("http", "2001:DB8:8000::1", 3000, None, "/")),
        ("HTTPS://SHOP.EXAMPLE:8443:[fe80::1%12]/", UrlPrefix("https", "SHOP.EXAMPLE", 8443, "fe80::1%12", "/")),
        ("HTTP://+:8200/path:8000/", UrlPrefix("http", "+", 8200, None, "/path:8000/")),
        ("HTTP://B\u00dcCHER.EXAMPLE:80/\u00fc b/", UrlPrefix("http", "B\u00dcCHER.EXAMPLE", 80, None, "/\u00fc b/")),
        ("HTTP://+:80", UrlPrefix("http", "+", 80, None, "/")),
        ("HTTP://+/", None),
        ("HTTP://+:0/", None),
        ("HTTP://+:65536/", None),
        ("HTTP://+:\u0668\u0660/", None),
        ("FTP://+:80/", None),
        ("HTTP://:80/", None),
        ("", None),
    ],
)
def test_urls_of_http_sys(url, prefix):
    assert url_prefix(url) == prefix


@pytest.mark.parametrize(
    ("port", "name", "pids"),
    [
        (443, None, (2688,)),
        (47001, None, (8496,)),
        (19443, None, (33704,)),
        (80, "DefaultAppPool", (3408,)),
        (8443, "Shop", (7120, 7344)),
        (8080, "Shop", (7120, 7344)),
    ],
)
def test_the_queue_of_a_port(port, name, pids):
    (queue,) = queues_of(port, EXPECTED)
    assert (queue.name, queue.pids) == (name, pids)


@pytest.mark.parametrize("port", [0, 1, 8, 44, 127, 5986, 4700, 800, 8000, 65535])
def test_a_port_without_a_queue(port):
    assert queues_of(port, EXPECTED) == ()


def test_several_queues_on_a_port():
    first, second = HttpQueue("a", ("HTTP://+:80/a/",), ()), HttpQueue("b", ("HTTP://+:80/b/",), (8,))
    assert queues_of(80, [first, second]) == (first, second)


@given(
    st.integers(1, 65535),
    st.sampled_from(["+", "*", "localhost", "192.0.2.1", "[::1]", "[2001:db8:80::443]"]),
    st.sampled_from(["", ":127.0.0.1", ":[::1]"]),
    st.sampled_from(["/", "/8080/", "/a:80/"]),
    st.integers(0, 65536),
)
def test_the_port_is_the_one_behind_the_host(port, host, bound, path, other):
    queue = HttpQueue(None, (f"HTTP://{host}:{port}{bound}{path}",), (8,))
    assert queues_of(port, [queue]) == (queue,)
    assert (queues_of(other, [queue]) == ()) == (other != port)


def test_the_command_is_the_documented_one():
    assert str(httpsys.SHOW_QUEUES) == "netsh http show servicestate view=requestq"
