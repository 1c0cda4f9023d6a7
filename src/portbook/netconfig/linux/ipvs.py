"""Linux: the virtual services of IPVS, the kernel's load balancer, in this network namespace. Two halves: read, parse.

Packets to a virtual service are forwarded to its servers, whatever socket has the port. Kubernetes uses it where
kube-proxy runs in the mode ipvs.

Sources: ip_vs_info_seq_show() in net/netfilter/ipvs/ip_vs_ctl.c; ipvsadm(8).
"""

from __future__ import annotations

from portbook.addresses import address_text
from portbook.netconfig.facts import IpvsService
from portbook.numerals import UINT16, parse_hex
from portbook.records import Protocol

PATH = "/proc/thread-self/net/ip_vs"
MOST_BYTES = 16 << 20
PROTOCOLS: dict[bytes, Protocol] = {b"TCP": "tcp", b"UDP": "udp"}


def read() -> bytes:
    """The table; empty where the kernel has no IPVS. Raises OSError if it cannot be read."""
    try:
        with open(PATH, "rb") as file:
            return file.read(MOST_BYTES)
    except FileNotFoundError:
        return b""


def parse(text: bytes) -> list[IpvsService]:
    """Parse the services: ``TCP  0A600001:01BB rr``, ``UDP  [fd00:...:0001]:0035 wrr``. Other lines are skipped:
    servers, and services by firewall mark (FWM), whose packets are not known by their port.
    """
    services: list[IpvsService] = []
    for line in text.split(b"\n"):
        words = line.split()
        if len(words) < 2 or words[0] not in PROTOCOLS:
            continue
        address, _, port = words[1].rpartition(b":")
        try:
            number = int.from_bytes(_hex(port), "big")
            where = _address(address)
        except ValueError:
            continue
        if 0 < number <= UINT16:
            scheduler = words[2].decode("ascii", "replace") if len(words) > 2 else ""
            services.append(IpvsService(PROTOCOLS[words[0]], where, number, scheduler))
    return services


def _hex(text: bytes) -> bytes:
    parse_hex(text)
    return bytes.fromhex(text.decode("ascii"))


def _address(text: bytes) -> str:
    if text.startswith(b"["):
        return address_text(b"".join(_hex(group) for group in text[1:-1].split(b":")))
    return address_text(_hex(text))
