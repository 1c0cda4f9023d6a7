"""Port proxies, from the registry and from netsh. The registry itself is in tests/windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import SourceGarbled
from portbook.netconfig.facts import PortProxy
from portbook.netconfig.windows.netsh import NetshOutput
from portbook.netconfig.windows.portproxy import KINDS, ProxyValue, parse, parse_text
from tests.netconfig.windows.test_netsh import ANY, CODEC, CODECS, in_utf8, sample


@pytest.mark.parametrize(
    ("kind", "name", "data", "proxy"),
    [
        ("v4tov4", "0.0.0.0/9999", "192.0.2.101/22", ("0.0.0.0", 9999, "192.0.2.101", 22)),
        ("v4tov4", "*/80", "wsl.example/8080", ("*", 80, "wsl.example", 8080)),
        ("v6tov4", "::1/443", "127.0.0.1/8443", ("::1", 443, "127.0.0.1", 8443)),
        ("v4tov6", "192.0.2.7/53", "2001:db8::1/5353", ("192.0.2.7", 53, "2001:db8::1", 5353)),
        ("v6tov6", "*/65535", "::1/1", ("*", 65535, "::1", 1)),
    ],
)
def test_values_of_the_registry(kind, name, data, proxy):
    assert parse(ProxyValue(kind, name, data)) == PortProxy(kind, *proxy)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("", ""),
        ("0.0.0.0", "192.0.2.1/22"),
        ("0.0.0.0/80", "192.0.2.1"),
        ("/80", "192.0.2.1/22"),
        ("0.0.0.0/80", "/22"),
        ("0.0.0.0/0", "192.0.2.1/22"),
        ("0.0.0.0/80", "192.0.2.1/65536"),
        ("0.0.0.0/80", "192.0.2.1/http"),
        ("0.0.0.0/-80", "192.0.2.1/22"),
        ("0.0.0.0/80", "None"),
    ],
)
def test_a_value_that_is_no_proxy_is_garbled(name, data):
    with pytest.raises(SourceGarbled, match="not understood"):
        parse(ProxyValue("v4tov4", name, data))


ROWS = {
    "english.cp437": [("192.0.2.40", 3000, "198.51.100.1", 3000), ("192.0.2.40", 8081, "198.51.100.1", 8081)],
    "chinese.cp936": [("*", 9000, "198.51.100.7", 9000), ("127.0.0.1", 8765, "198.51.100.7", 80)],
}


@pytest.mark.parametrize("name", ROWS)
def test_text_in_every_language(name):
    proxies = tuple(PortProxy("v4tov4", *row) for row in ROWS[name])
    assert parse_text(sample("portproxy", name), "v4tov4") == proxies
    assert parse_text(in_utf8(sample("portproxy", name)), "v4tov4") == proxies
    for codec in CODECS:
        assert parse_text(sample("portproxy", name)._replace(codec=codec), "v4tov4") == proxies


def test_an_empty_output_is_not_read_as_no_proxy():
    with pytest.raises(SourceGarbled, match="there is no such proxy, or netsh does not show it"):
        parse_text(sample("portproxy", "none.cp437"), "v4tov4")


@pytest.mark.parametrize("row", ["* 80 192.0.2.1", "* 80 192.0.2.1 80 80", "* x 192.0.2.1 80", "* 80 192.0.2.1 70000"])
def test_a_row_that_is_cut_or_wrong_is_garbled(row):
    ruler = "--------------- ----------  --------------- ----------"
    with pytest.raises(SourceGarbled, match="not understood"):
        parse_text(NetshOutput(f"{ruler}\r\n{row}\r\n".encode(), "cp437"), "v4tov4")


@given(ANY, CODEC, st.sampled_from(KINDS), st.text(), st.text())
def test_anything_is_read_or_garbled(data, codec, kind, name, text):
    for parser in (lambda: parse_text(NetshOutput(data, codec), kind), lambda: (parse(ProxyValue(kind, name, text)),)):
        try:
            proxies = parser()
        except SourceGarbled:
            continue
        assert all(0 < proxy.listen_port <= 65535 and proxy.listen_address for proxy in proxies)
