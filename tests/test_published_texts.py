"""What people published of their Windows and macOS, each sample with what it must give."""

from __future__ import annotations

from pathlib import Path

import pytest

from portbook.netconfig.facts import HttpQueue
from portbook.netconfig.windows import httpsys, netsh, portproxy
from portbook.netconfig.windows.netsh import NetshOutput
from portbook.sources import lsof, netstat
from portbook.sources.lsof import LsofOutput
from portbook.sources.netstat import NetstatOutput

DATA = Path(__file__).parent / "data" / "published"
CODECS = {"utf8-in-cp850": "cp850", "utf-8": "cp866"}  # where the system's OEM code page is not that of the sample
ANY4, ANY6, LOCAL4, LOCAL6 = "0.0.0.0", "::", "127.0.0.1", "::1"


def sample(name: str) -> tuple[bytes, str]:
    (path,) = [path for path in DATA.iterdir() if path.name.startswith(f"{name}.")]
    codec = path.name.split(".")[-2]
    return path.read_bytes(), CODECS.get(codec, codec)


def row(s):
    """protocol, local end, remote end, state, zone, pid."""
    pids = [owner.pid for owner in s.owners]
    remote = None if s.remote_port is None else (s.remote_address, s.remote_port)
    return (s.protocol, s.local_address, s.local_port, remote, s.state, s.zone, pids[0] if pids else None)


def tcp(address, port, state, pid, remote=None, zone=None):
    return ("tcp", address, port, remote, state, zone, pid)


def udp(address, port, pid, zone=None):
    return ("udp", address, port, None, None, zone, pid)


NETSTAT = {
    "netstat-ano.chinese-traditional": [
        tcp(ANY4, 5173, "LISTEN", 4321),
        tcp("192.0.2.9", 51000, "ESTABLISHED", 777, ("198.51.100.1", 443)),
        tcp(LOCAL6, 3000, "LISTEN", 999),
    ],
    "netstat-ano.french.win10": [
        tcp(ANY4, 80, "LISTEN", 4),
        tcp(ANY4, 135, "LISTEN", 1112),
        tcp(LOCAL4, 51114, "TIME_WAIT", None, (LOCAL4, 49350)),
        tcp("192.0.2.31", 139, "LISTEN", 4),
        tcp("192.0.2.31", 49698, "ESTABLISHED", 4684, ("198.51.100.36", 443)),
        tcp("192.0.2.31", 50731, "CLOSE_WAIT", 10948, ("198.51.100.1", 443)),
        tcp(ANY6, 80, "LISTEN", 4),
        tcp(LOCAL6, 49670, "LISTEN", 5100),
        udp(ANY4, 5353, 13372),
        udp(ANY4, 5353, 13372),
        udp(ANY6, 5353, 2780),
        udp("fe80::1:2:3:4", 1900, 8708, "11"),
        udp("fe80::64db:e0f4:68ef:802e", 56065, 8708, "12"),
    ],
    "netstat-ano.german": [
        tcp(ANY4, 135, "LISTEN", 1128),
        tcp("192.0.2.10", 50124, "CLOSE_WAIT", 7788, ("198.51.100.7", 443)),
    ],
    "netstat-ano.italian.win11": [
        tcp(ANY4, 135, "LISTEN", 1452),
        tcp(LOCAL4, 52301, "ESTABLISHED", 22468, (LOCAL4, 3030)),
        tcp(LOCAL6, 9010, "LISTEN", 9012),
    ],
    "netstat-ano.offload-column": [
        tcp(ANY4, 135, "LISTEN", 812),
        tcp("192.0.2.10", 50124, "ESTABLISHED", 7788, ("198.51.100.7", 443)),
    ],
    "netstat-ano.portuguese.localised-states": [
        tcp(LOCAL4, 52011, "ESTABLISHED", 9001, (LOCAL4, 8765)),
        tcp(LOCAL4, 8765, "LISTEN", 4420),
        tcp(ANY6, 8766, "LISTEN", 5150),
    ],
    "netstat-ano.portuguese.win": [
        tcp("192.0.2.80", 57270, "ESTABLISHED", 3320, ("198.51.100.115", 443)),
        tcp("192.0.2.80", 57276, "CLOSE_WAIT", 3320, ("198.51.100.222", 443)),
    ],
    "netstat-ano.russian.localised-states": [
        tcp(LOCAL4, 8000, "LISTEN", 32344),
        tcp(LOCAL4, 8000, "TIME_WAIT", None, (LOCAL4, 51148)),
    ],
    "netstat-ano.russian.win10": [
        tcp(ANY4, 135, "LISTEN", 1084),
        tcp("192.0.2.15", 54628, "ESTABLISHED", 6789, ("198.51.100.113", 443)),
        udp(ANY4, 123, 4004),
    ],
    "netstat-ano.spanish.localised-states": [
        tcp(ANY4, 3389, "LISTEN", 1288),
        tcp("192.0.2.12", 3389, "ESTABLISHED", 1288, ("192.0.2.50", 51544)),
        tcp(ANY6, 445, "LISTEN", 4),
        udp(ANY4, 3389, 1288),
    ],
    "netstat-ano.spanish.win": [
        tcp(ANY4, 135, "LISTEN", 916),
        tcp("192.0.2.15", 139, "LISTEN", 4),
        tcp("192.0.2.15", 49800, "SYN_SENT", 2211, ("198.51.100.9", 443)),
        udp(ANY4, 123, 4484),
    ],
    "netstat-ano.xp": [
        tcp(ANY4, 135, "LISTEN", 944),
        tcp("192.0.2.10", 1025, "LISTEN", 4),
        udp(ANY4, 445, 4),
        udp(LOCAL4, 123, 1044),
    ],
}
TASKLIST = {
    "tasklist.chinese-no-match": {},
    "tasklist.french": {0: "System Idle Process", 4: "System", 9012: "Général, éditeur.exe"},
    "tasklist.italian.win11": {
        0: "System Idle Process", 4: "System", 236: "Secure System", 9012: "Elgato Audio Driver.exe",
    },
}  # fmt: skip
EXCLUDED = {  # first port, last port, whether an administrator reserved it
    "excluded.chinese-traditional": [(1073, 1172, False), (1196, 1295, False), (50000, 50059, True)],
    "excluded.french": [(80, 80, False), (7452, 7551, False), (50000, 50059, True)],
    "excluded.german-empty": [],
    "excluded.italian": [(5357, 5357, False), (60616, 60715, False)],
    "excluded.portuguese": [
        (5357, 5357, False), (8883, 8883, False), (47277, 47376, False), (50000, 50059, True), (55245, 55344, False),
    ],
    "excluded.russian-empty": [],
    "excluded.russian": [(1234, 1333, False), (50000, 50059, True)],
}  # fmt: skip
PORTPROXY = {
    "portproxy.chinese": [("*", 10081, "198.51.100.232", 10081)],
    "portproxy.english-v4tov6": [("192.0.2.1", 9090, LOCAL6, 9090)],
    "portproxy.hostname": [(ANY4, 80, "some-rather-long-host.example.org", 8080), ("localhost", 3000, "web", 3000)],
}
QUEUES = {
    "queues.english.requestq": [HttpQueue(None, ("HTTP://LOCALHOST:8082/",), (2312,))],
    "queues.english.win11-not-elevated": [
        HttpQueue(None, ("HTTP://+:5985/WSMAN/", "HTTP://+:47001/WSMAN/"), (1412,)),
        HttpQueue(None, ("HTTP://+:8000/MONITORSERVICE/",), (4796,)),
    ],
}
LSOF = [
    tcp(ANY4, 49152, "LISTEN", 415),
    tcp(ANY6, 49152, "LISTEN", 415),
    tcp(ANY4, 7000, "LISTEN", 512),
    tcp("192.0.2.5", 53123, "ESTABLISHED", 700, ("198.51.100.8", 443)),
    tcp("2001:db8::5", 53124, "ESTABLISHED", 700, ("2001:db8:1::8", 443)),
    tcp("fe80::aede:48ff:fe00:1122", 1024, "ESTABLISHED", 400, ("fe80::aede:48ff:fe33:4455", 1024), "15"),
    udp(ANY4, 5353, 200),
    tcp("192.0.2.5", 57621, "CLOSE_WAIT", 900, ("198.51.100.9", 4070)),
    tcp("::ffff:127.0.0.1", 3000, "ESTABLISHED", 901, ("::ffff:127.0.0.1", 50011)),
    tcp(LOCAL6, 3000, "LISTEN", 901),
    tcp("192.0.2.5", 50012, "CLOSE", 902, ("198.51.100.9", 443)),
    ("udp", "192.0.2.5", 60111, ("198.51.100.77", 8801), "ESTABLISHED", None, 904),
    tcp("192.0.2.5", 60112, "FIN_WAIT2", 905, ("198.51.100.77", 443)),
    tcp("192.0.2.5", 60113, "SYN_SENT", 906, ("198.51.100.77", 443)),
    tcp("fe80::1", 631, "LISTEN", 907, zone="1"),
]


@pytest.mark.parametrize("name", NETSTAT)
def test_netstat(name):
    data, codec = sample(name)
    reading = netstat.parse(NetstatOutput(data, b"", codec))
    assert [row(s) for s in reading.sockets] == NETSTAT[name]
    assert {s.state_text for s in reading.sockets} == {None}


@pytest.mark.parametrize("name", TASKLIST)
def test_tasklist(name):
    tasks, codec = sample(name)
    lines = "\r\n".join(f"  UDP    0.0.0.0:{pid + 1}   *:*   {pid}" for pid in (*TASKLIST[name], 77))
    sockets = netstat.parse(NetstatOutput(lines.encode(), tasks, codec)).sockets
    names = {owner.pid: owner.name for s in sockets for owner in s.owners}
    assert names == {**{pid: text for pid, text in TASKLIST[name].items() if pid}, 77: None}


@pytest.mark.parametrize("name", EXCLUDED)
def test_excluded_ranges(name):
    ranges = netsh.parse_excluded(NetshOutput(*sample(name)), "ipv4", "tcp")
    assert [(r.start, r.end, r.administered) for r in ranges] == EXCLUDED[name]


@pytest.mark.parametrize("name", PORTPROXY)
def test_port_proxies(name):
    proxies = portproxy.parse_text(NetshOutput(*sample(name)), "v4tov4")
    assert [(p.listen_address, p.listen_port, p.connect_address, p.connect_port) for p in proxies] == PORTPROXY[name]


@pytest.mark.parametrize("name", QUEUES)
def test_request_queues(name):
    assert list(httpsys.parse(NetshOutput(*sample(name)))) == QUEUES[name]


def test_lsof_of_macos():
    reading = lsof.parse(LsofOutput(sample("lsof-F0.macos")[0]))
    assert [row(s) for s in reading.sockets] == LSOF
    assert reading.gaps == []
    assert {o.pid: (o.name, o.user) for s in reading.sockets for o in s.owners}[700] == ("Google Chrome Helper", "ann")


def test_every_sample_has_its_result():
    names = {*NETSTAT, *TASKLIST, *EXCLUDED, *PORTPROXY, *QUEUES, "lsof-F0.macos", "README"}
    files = {path.name for path in DATA.iterdir()}
    assert {sum(file.startswith(f"{name}.") for name in names) for file in files} == {1}
    assert len(files) == len(names)
