from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from portbook.addresses import NamedHost
from portbook.errors import UsageError
from portbook.inventory import push_down
from portbook.ports import PORTS, Ports
from portbook.query import ALIASES, FIELDS, NUMBERS, Query, Term, parse, term
from portbook.records import FAMILIES, PROTOCOLS, REACHES, STATES, Owner, Socket

# --- grammar -------------------------------------------------------------------------------------------------------

EXAMPLES = [
    ("", ()),
    ("  \t\n ", ()),
    ("80", (Term("port", ((80, 80),)),)),
    ("1", (Term("port", ((1, 1),)),)),
    ("65535", (Term("port", ((65535, 65535),)),)),
    ("080", (Term("port", ((80, 80),)),)),
    ("80,443", (Term("port", ((80, 80), (443, 443))),)),
    ("80,80", (Term("port", ((80, 80),)),)),
    ("80 443", (Term("port", ((80, 80), (443, 443))),)),
    ("8000-8100", (Term("port", ((8000, 8100),)),)),
    ("80-80", (Term("port", ((80, 80),)),)),
    ("port:80,8000-8100", (Term("port", ((80, 80), (8000, 8100))),)),
    ("-80", (Term("port", ((80, 80),), True),)),
    ("-port:80", (Term("port", ((80, 80),), True),)),
    ("node", (Term("word", ("node",)),)),
    ("http", (Term("word", ("http",)),)),
    ("8080/tcp", (Term("port", (Ports(8080, 8080, "tcp"),)),)),
    ("53/udp,80", (Term("port", (Ports(53, 53, "udp"), (80, 80))),)),
    ("udp:53", (Term("port", (Ports(53, 53, "udp"),)),)),
    ("-53/udp", (Term("port", (Ports(53, 53, "udp"),), True),)),
    (":8080", (Term("port", ((8080, 8080),)),)),
    ("*:8080", (Term("port", ((8080, 8080),)),)),
    ("port:http", (Term("port", ((80, 80),)),)),
    ("remote-port:https", (Term("remote-port", ((443, 443),)),)),
    ("127.0.0.1:8080", (Term("port", (Ports(8080, 8080, None, NamedHost("127.0.0.1", is_address=True)),)),)),
    ("[::1]:8080", (Term("port", (Ports(8080, 8080, None, NamedHost("::1", is_address=True)),)),)),
    ("localhost:3000", (Term("port", (Ports(3000, 3000, None, NamedHost("localhost")),)),)),
    ("http://localhost:3000/a,b", (Term("port", (Ports(3000, 3000, None, NamedHost("localhost")),)),)),
    ("tcp", (Term("protocol", ("tcp",)),)),
    ("-UDP", (Term("protocol", ("udp",), True),)),
    ("ipv6", (Term("family", ("ipv6",)),)),
    ("loopback", (Term("reach", ("loopback",)),)),
    ("localhost", (Term("reach", ("loopback",)),)),
    ("listening", (Term("state", ("LISTENING",)),)),
    ("estab,time-wait", (Term("state", ("ESTABLISHED", "TIME_WAIT")),)),
    ("127.0.0.1", (Term("address", ("127.0.0.1",)),)),
    ("10.0.0.0/8", (Term("address", ("10.0.0.0/8",)),)),
    ("::1", (Term("address", ("::1",)),)),
    ("python3.11", (Term("word", ("python3.11",)),)),
    ("node,python", (Term("word", ("node", "python")),)),
    ("80,node", (Term("word", ("80", "node")),)),
    ("name:80", (Term("process", ("80",)),)),
    ('"80"', (Term("port", ((80, 80),)),)),
    ("-node", (Term("word", ("node",), True),)),
    ("\\-node", (Term("word", ("-node",)),)),
    ('"-node"', (Term("word", ("-node",)),)),
    ('process:"my own, server"', (Term("process", ("my own, server",)),)),
    ("process:my\\ own\\,\\ server", (Term("process", ("my own, server",)),)),
    ('process:"say \\"hi\\""', (Term("process", ('say "hi"',)),)),
    ("process:a\\\\b", (Term("process", ("a\\b",)),)),
    ("process:a:b", (Term("process", ("a:b",)),)),
    ("process:C\\:x", (Term("process", ("C:x",)),)),
    ("state:listen", (Term("state", ("LISTEN",)),)),
    ("state:LISTEN", (Term("state", ("LISTEN",)),)),
    ("state:listening", (Term("state", ("LISTENING",)),)),
    ("state:time-wait", (Term("state", ("TIME_WAIT",)),)),
    ("state:estab", (Term("state", ("ESTABLISHED",)),)),
    ("state:fin_wait_2", (Term("state", ("FIN_WAIT2",)),)),
    ("address:127.0.0.1", (Term("address", ("127.0.0.1",)),)),
    ("address:::1", (Term("address", ("::1",)),)),
    ("address:[::1]", (Term("address", ("::1",)),)),
    ("address:0:0:0:0:0:0:0:1", (Term("address", ("::1",)),)),
    ("address:10.1.2.3/8", (Term("address", ("10.0.0.0/8",)),)),
    ("address:fe80::1%eth0", (Term("address", ("fe80::1",)),)),
    ("address:*", (Term("address", ("*",)),)),
    ("proto:TCP", (Term("protocol", ("tcp",)),)),
    ("addr:::1", (Term("address", ("::1",)),)),
    ("rport:443", (Term("remote-port", ((443, 443),)),)),
    ("pid:1", (Term("pid", ((1, 1),)),)),
    ("pid:0", (Term("pid", ((0, 0),)),)),
    ("inode:4294967295", (Term("inode", ((2**32 - 1, 2**32 - 1),)),)),
    (
        "state:listen port:8000-8100 -reach:loopback process:node",
        (
            Term("state", ("LISTEN",)),
            Term("port", ((8000, 8100),)),
            Term("reach", ("loopback",), True),
            Term("process", ("node",)),
        ),
    ),
]


@pytest.mark.parametrize(("text", "terms"), EXAMPLES)
def test_examples(text, terms):
    assert parse(text) == Query(terms)


ERRORS = [
    ("0", "port '0'", "1 to 65535"),
    ("port:0", "port '0'", "1 to 65535"),
    ("port:65536", "port '65536'", "1 to 65535"),
    ("port:0-80", "port '0-80'", "1 to 65535"),
    ("port:80-70", "port '80-70'", "70-80"),
    ("80-70", "port '80-70'", "70-80"),
    ("port:abc", "port 'abc'", "write 8080"),
    ("8080/sctp", "unknown protocol 'sctp'", "tcp, udp"),
    ("80..90", "'80..90'", "write 80-90"),
    ("80-", "'80-'", "write 80"),
    ("!tcp", "'!tcp'", "write -tcp"),
    ("port:80 or port:53", "'or'", "commas"),
    ("state=listen", "equals sign", "write state:listen"),
    ("Port=8080", "equals sign", "write port:8080"),
    ("name=node", "equals sign", "write name:node"),
    ("tcp/80", "'tcp/80'", "80/tcp"),
    ("/usr/bin/node", "is a path", "process:node"),
    ("127.1", "'127.1'", "127.0.0.1"),
    ("010.0.0.1", "'010.0.0.1'", "write the one"),
    ("127.1:80", "'127.1'", "127.0.0.1"),
    ("tcp4", "'tcp4'", "write tcp ipv4"),
    ("8080/tcp,udp", "different fields: port, protocol", "separate them by blanks"),
    ("listen,nginx", "different fields: state, word", "process:a,b"),
    ("53/udp,dnsmasq", "different fields: port, word", "separate them"),
    ("example.org:443", "not an address of this machine", "portbook dial example.org:443"),
    ("db:5432", "field 'db'", "portbook dial db:5432"),
    ("remote-port:1.2.3.4:80", "has an address", "remote-address:1.2.3.4 remote-port:80"),
    ("word:0", "port '0'", "1 to 65535"),
    ("80,nginx,99999", "port '99999'", "1 to 65535"),
    ("protcol:tcp", "field 'protcol'", "did you mean protocol:tcp?"),
    ("port:", "port ''", "1 to 65535"),
    ("port:-80", "port '-80'", "write 1-80"),
    ("port:80-", "port '80-'", "write 80-65535"),
    ("port:1-2-3", "port '1-2-3'", "1 to 65535"),
    ("port:80,,443", "port ''", "1 to 65535"),
    ("port:٨٠", "port '٨٠'", "1 to 65535"),
    ("port:²", "port '²'", "1 to 65535"),
    ("port:+80", "port '+80'", "1 to 65535"),
    ("port:8_0", "port '8_0'", "1 to 65535"),
    ("port:1.5", "port '1.5'", "1 to 65535"),
    ("port:" + "9" * 5000, "out of range", "1 to 65535"),
    ("remote-port:0", "remote-port '0'", "1 to 65535"),
    ("pid:-1", "pid '-1'", "0 to 4294967295"),
    ("pid:4294967296", "pid '4294967296'", "0 to 4294967295"),
    ("pid:me", "pid 'me'", "0 to 4294967295"),
    ("state:open", "state 'open'", "listen"),
    ("state:", "state ''", "listen"),
    ("protocol:sctp", "protocol 'sctp'", "tcp, udp"),
    ("family:ip", "family 'ip'", "ipv4, ipv6"),
    ("reach:far", "reach 'far'", "loopback, address, any"),
    ("address:localhost", "address 'localhost'", "127.0.0.1"),
    ("address:1.2.3", "address '1.2.3'", "127.0.0.1"),
    ("address:1.2.3.4/33", "address '1.2.3.4/33'", "127.0.0.1"),
    ("address:", "address ''", "127.0.0.1"),
    ("process:", "process is empty", "part of the name"),
    ("user:", "user is empty", "part of the name"),
    ("ports:80", "field 'ports'", "port, remote-port"),
    (":", "':'", "write 8080"),
    ("-", "word is empty", "part of the name"),
    ('""', "word is empty", "part of the name"),
    ('process:"node', "quote", 'field:"a value"'),
]


@pytest.mark.parametrize(("text", "wrong", "valid"), ERRORS)
def test_errors_say_what_is_wrong_and_what_is_valid(text, wrong, valid):
    with pytest.raises(UsageError) as caught:
        parse(text)
    message = str(caught.value)
    assert wrong in message
    assert valid in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_an_unknown_field_of_an_option_names_the_valid_ones():
    with pytest.raises(UsageError, match="valid values are port, remote-port"):
        term("ports", ["80"])


@pytest.mark.parametrize("field", FIELDS)
def test_no_alias_hides_a_field(field):
    assert field not in ALIASES


@pytest.mark.parametrize(("alias", "field"), ALIASES.items())
def test_aliases_lead_to_fields(alias, field):
    assert field in FIELDS


# --- properties ----------------------------------------------------------------------------------------------------


def ranges(limits):
    bounds = st.tuples(st.integers(*limits), st.integers(*limits))
    return bounds.map(sorted).map(lambda pair: f"{pair[0]}-{pair[1]}") | st.integers(*limits).map(str)


def hosts():
    addresses = st.ip_addresses().map(lambda ip: NamedHost(str(ip), is_address=True))
    return st.none() | addresses | st.just(NamedHost("localhost"))


def qualified_ports():
    protocols = st.sampled_from([*PROTOCOLS, None])
    return st.builds(Ports, st.integers(1, 9000), st.integers(9000, 65535), protocols, hosts())


NETWORKS = st.ip_addresses().flatmap(
    lambda ip: st.integers(0, ip.max_prefixlen).map(lambda n: f"{ip}/{n}")
) | st.ip_addresses().map(str)
VALUES = {
    "port": ranges(PORTS) | qualified_ports().map(str),
    "remote-port": ranges(PORTS) | ranges(PORTS).map(lambda text: f"{text}/udp"),
    "word": st.text(alphabet="htps,:/*ü", min_size=1),
    "pid": ranges(NUMBERS),
    "inode": ranges(NUMBERS),
    "protocol": st.sampled_from(PROTOCOLS),
    "family": st.sampled_from(FAMILIES),
    "reach": st.sampled_from(REACHES),
    "state": st.sampled_from([*STATES, "listening", "all", "estab", "unconn", "connected"]),
    "address": NETWORKS | st.just("*"),
    "remote-address": NETWORKS,
} | {field: st.text(min_size=1) for field in ("process", "command", "user", "service", "container", "netns")}


def terms():
    one = st.sampled_from(sorted(FIELDS)).flatmap(
        lambda field: st.builds(
            lambda values, negated: term(field, values, negated),
            st.lists(VALUES[field], min_size=1, max_size=4),
            st.booleans(),
        )
    )
    return st.lists(one, max_size=6)


def joined(several):
    query = Query()
    for one in several:
        query &= Query((one,))
    return query


def test_the_properties_cover_every_field():
    assert VALUES.keys() == FIELDS.keys()


@given(terms())
def test_what_is_printed_reads_back_the_same(several):
    query = joined(several)
    assert parse(str(query)) == query


@given(terms())
def test_options_and_text_mean_the_same(several):
    """Terms one by one, as options give them, and all in one text."""
    assert parse(" ".join(map(str, several))) == joined(several)


@given(st.text() | st.text(alphabet='portsae:-,"\\ 0189*[]%/.'))
@example("\\")
@example('"\\')
@example("-:")
@example("--")
@example("address:fe80::%")
@example("address:%")
@example("address:[/]")
@example("state:\u0131")
@example("port:" + "1" * 20_000)
@example("\ud800")
def test_any_text_is_a_query_or_a_usage_error(text):
    try:
        query = parse(text)
    except UsageError:
        return
    assert parse(str(query)) == query


# --- meaning -------------------------------------------------------------------------------------------------------

NODE = Owner(
    7, name="node", exe="/usr/bin/node-18", user="web", service="shop.service", container="docker:web",
    command_line=("node", "server.js", "--port=8080"),
)  # fmt: skip
WINDOWS = Owner(8, name="svchost.exe", exe=r"C:\Windows\System32\svchost.exe", user=r"NT AUTHORITY\SYSTEM")
SOCKETS = {
    "web": Socket("tcp", "ipv4", "0.0.0.0", 8080, state="LISTEN", reach="any", uid=1000, inode=11, owners=(NODE,)),
    "web6": Socket("tcp", "ipv6", "::", 8080, state="LISTEN", reach="any", uid=1000, inode=12, owners=(NODE, WINDOWS)),
    "db": Socket("tcp", "ipv4", "127.0.0.1", 5432, state="LISTEN", reach="loopback", uid=70, inode=13),
    "held": Socket(
        "tcp",
        "ipv6",
        "::1",
        9000,
        state="BOUND",
        reach="loopback",
        uid=0,
        inode=14,
        owners=(WINDOWS,),
        netns=4026532000,
    ),
    "client": Socket(
        "tcp", "ipv4", "10.1.2.3", 40000, "1.1.1.1", 443, "ESTABLISHED", uid=1000, inode=15, owners=(NODE,)
    ),
    "mapped": Socket("tcp", "ipv6", "::ffff:10.1.2.3", 8080, "::ffff:10.9.9.9", 50000, "ESTABLISHED", inode=16),
    "old": Socket("tcp", "ipv4", "10.1.2.3", 8080, "10.9.9.9", 50001, "TIME_WAIT", inode=0),
    "dns": Socket(
        "udp",
        "ipv4",
        "127.0.0.53",
        53,
        reach="loopback",
        uid=101,
        inode=17,
        service="resolved.service",
        netns=4026532001,
        netns_name="podman:web",
    ),
    "mdns": Socket("udp", "ipv6", "fe80::1", 5353, zone="eth0", uid=102, inode=18, container="podman:x"),
    "quic": Socket("udp", "ipv4", "10.1.2.3", 40001, "1.1.1.1", 443, "ESTABLISHED", uid=1000, inode=19, owners=(NODE,)),
}
MEANING = [
    ("", SOCKETS),
    ("8080", {"web", "web6", "mapped", "old"}),
    ("5000-9000", {"web", "web6", "mapped", "old", "db", "held", "mdns"}),
    ("8079,8081", set()),
    ("53,5353", {"dns", "mdns"}),
    ("-port:8080", SOCKETS.keys() - {"web", "web6", "mapped", "old"}),
    ("8080 -port:8080", set()),
    ("port:5000-9000 -port:8080", {"db", "held", "mdns"}),
    ("8080/tcp", {"web", "web6", "mapped", "old"}),
    ("8080/udp", set()),
    ("53/udp,8080/udp", {"dns"}),
    ("53/tcp,5432", {"db"}),
    (":8080", {"web", "web6", "mapped", "old"}),
    ("127.0.0.1:8080", {"web", "web6"}),
    ("10.1.2.3:8080", {"web", "web6", "mapped", "old"}),
    ("0.0.0.0:5432", {"db"}),
    ("[::1]:8080", {"web6"}),
    ("[::]:8080", {"web", "web6", "mapped", "old"}),
    ("localhost:5432", {"db"}),
    ("[fe80::1%eth0]:5353", {"mdns"}),
    ("[fe80::1%eth1]:5353", set()),
    ("remote-port:443/udp", {"quic"}),
    ("postgresql", {"db"}),
    ("domain,postgres", {"dns", "db"}),
    ("tcp", SOCKETS.keys() - {"dns", "mdns", "quic"}),
    ("localhost", {"db", "held", "dns"}),
    ("80,node", {"web", "web6", "client", "quic"}),
    ("5432,node", {"web", "web6", "client", "quic", "db"}),
    ("remote-port:443", {"client", "quic"}),
    ("-remote-port:443", SOCKETS.keys() - {"client", "quic"}),
    ("remote-port:1-65535", {"client", "mapped", "old", "quic"}),
    ("protocol:udp", {"dns", "mdns", "quic"}),
    ("protocol:tcp,udp", SOCKETS),
    ("family:ipv6", {"web6", "held", "mapped", "mdns"}),
    ("state:listen", {"web", "web6", "db"}),
    ("state:listening", {"web", "web6", "db", "held", "dns", "mdns"}),
    ("state:unconn", {"dns", "mdns"}),
    ("state:connected", {"client", "mapped", "old", "quic"}),
    ("state:all", SOCKETS),
    ("state:all -state:time_wait", SOCKETS.keys() - {"old"}),
    ("-state:listening", {"client", "mapped", "old", "quic"}),
    ("state:bound,time_wait", {"held", "old"}),
    ("address:10.1.2.3", {"client", "mapped", "old", "quic"}),
    ("address:10.0.0.0/8", {"client", "mapped", "old", "quic"}),
    ("address:0.0.0.0/0", {"web", "db", "client", "mapped", "old", "dns", "quic"}),
    ("address:::/0", {"web6", "held", "mdns"}),
    ("address:0.0.0.0", {"web"}),
    ("address:::", {"web6"}),
    ("address:*", {"web", "web6"}),
    ("-address:*", SOCKETS.keys() - {"web", "web6"}),
    ("address:127.0.0.0/8,::1", {"db", "held", "dns"}),
    ("address:fe80::/10", {"mdns"}),
    ("address:fe80::1%eth0", {"mdns"}),
    ("remote-address:10.9.9.9", {"mapped", "old"}),
    ("-remote-address:0.0.0.0/0", SOCKETS.keys() - {"client", "mapped", "old", "quic"}),
    ("reach:any", {"web", "web6"}),
    ("-reach:loopback", SOCKETS.keys() - {"db", "held", "dns"}),
    ("inode:11-13,0", {"web", "web6", "db", "old"}),
    ("pid:7", {"web", "web6", "client", "quic"}),
    ("pid:8", {"web6", "held"}),
    ("pid:1-7", {"web", "web6", "client", "quic"}),
    ("-pid:7", SOCKETS.keys() - {"web", "web6", "client", "quic"}),
    ("node", {"web", "web6", "client", "quic"}),
    ("NODE", {"web", "web6", "client", "quic"}),
    ("process:od", {"web", "web6", "client", "quic"}),
    ("process:node-18", {"web", "web6", "client", "quic"}),
    ("process:node-1?", {"web", "web6", "client", "quic"}),
    ("process:no*", {"web", "web6", "client", "quic"}),
    ("process:o*", set()),
    ("process:usr", set()),
    ("process:system32", set()),
    ("process:svchost", {"web6", "held"}),
    ("process:[ns]*", {"web", "web6", "held", "client", "quic"}),
    ("-process:node", SOCKETS.keys() - {"web", "web6", "client", "quic"}),
    ("process:nothing", set()),
    ("command:server.js", {"web", "web6", "client", "quic"}),
    ("cmd:*8080", {"web", "web6", "client", "quic"}),
    ("user:web", {"web", "web6", "client", "quic"}),
    ("user:we", set()),
    ("user:1000", {"web", "web6", "client", "quic"}),
    ("user:system", {"web6", "held"}),
    (r'user:"NT AUTHORITY\\SYSTEM"', {"web6", "held"}),
    ("user:0", {"held"}),
    ("user:70,web", {"db", "web", "web6", "client", "quic"}),
    ("-user:web,0", {"db", "mapped", "old", "dns", "mdns"}),
    ("service:shop", {"web", "web6", "client", "quic"}),
    ("service:*.service", {"web", "web6", "client", "quic", "dns"}),
    ("container:docker", {"web", "web6", "client", "quic"}),
    ("container:podman:x", {"mdns"}),
    ("netns:all", SOCKETS),
    ("netns:4026532000", {"held"}),
    ("netns:4026532000,web", {"held", "dns"}),
    ("netns:podman:*", {"dns"}),
    ("netns:4026", set()),
    ("-netns:web", SOCKETS.keys() - {"dns"}),
    ("state:listen 8000-8100 -reach:loopback node", {"web", "web6"}),
    ("protocol:tcp family:ipv4 -state:listen user:web", {"client"}),
]


def matching(query, sockets=SOCKETS):
    tests = [test for test in (query.socket_test(), query.owner_test()) if test]
    return {name for name, s in sockets.items() if all(test(s) for test in tests)}


@pytest.mark.parametrize(("text", "names"), MEANING)
def test_meaning(text, names):
    assert matching(parse(text)) == set(names)


@pytest.mark.parametrize("text", [text for text, _ in MEANING if " " not in text and text and text[0] != "-"])
def test_a_negated_term_selects_exactly_the_others(text):
    assert matching(parse("-" + text)) == SOCKETS.keys() - matching(parse(text))


@given(terms(), terms())
def test_a_conjunction_selects_no_more_than_a_negated_or_new_field_adds(one, other):
    """Terms of different fields narrow each other."""
    fields = {t.field for t in one}
    rest = [t for t in other if t.field not in fields]
    assert matching(joined([*one, *rest])) == matching(joined(one)) & matching(joined(rest))


@given(terms())
def test_the_part_pushed_into_the_source_keeps_all_that_matches(several):
    query = joined(several)
    wanted = push_down(query)
    for name in matching(query):
        s = SOCKETS[name]
        assert s.protocol in wanted.protocols
        assert s.family in wanted.families
        assert s.state in wanted.states
        assert wanted.ports is None or any(low <= s.local_port <= high for low, high in wanted.ports)


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("", {"LISTEN", "BOUND", None}),
        ("port:80", {"LISTEN", "BOUND", None}),
        ("-state:bound", {"LISTEN", None}),
        ("state:established", {"ESTABLISHED"}),
        ("remote-port:443", {*STATES, None}),
        ("remote-address:1.1.1.1", {*STATES, None}),
        ("-remote-port:443", {"LISTEN", "BOUND", None}),
        ("state:all", {*STATES, None}),
    ],
)
def test_the_default_is_what_waits_unless_a_state_or_a_peer_is_named(text, states):
    assert parse(text).with_default_state().states() == states


def test_the_user_of_this_process_is_selected_by_name_and_by_number():
    pwd = pytest.importorskip("pwd", reason="Windows has no numbered users")
    name = pwd.getpwuid(os.getuid()).pw_name
    mine = {"mine": Socket("tcp", "ipv4", "127.0.0.1", 1, uid=os.getuid(), owners=(Owner(1, user=name),))}
    assert matching(parse(f"user:{os.getuid()}"), mine) == matching(parse(f"user:{name}"), mine) == {"mine"}


def test_a_user_is_found_by_name_also_where_no_owner_is_visible():
    """The kernel gives the uid of every socket; whose it is was asked of the system."""
    roots = {"root's": Socket("tcp", "ipv4", "127.0.0.1", 1, uid=0, user="root", inode=5)}
    assert matching(parse("user:root"), roots) == matching(parse("user:ROOT,nobody"), roots) == {"root's"}
    assert matching(parse("-user:root"), roots) == matching(parse("user:roo"), roots) == set()
