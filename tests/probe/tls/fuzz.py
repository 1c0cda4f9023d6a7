"""Certificates that are damaged or made to cost time, given to the reader: none may fail or take long.

    python -m tests.probe.tls.fuzz 100000 7

prints how many there were, and the CPU time of the slowest.
"""

from __future__ import annotations

import random
import ssl
import sys
import tempfile
import time
from pathlib import Path

from portbook.probe.tls.certificate import parse
from tests.probe.tls.pki import AUTHORITY, LEAF, Pki

MOST_OCTETS = 100_000  # a chain is no longer: SSL_CTX_set_max_cert_list(3)


def tlv(tag: int, content: bytes) -> bytes:
    return bytes([tag, 0x83]) + len(content).to_bytes(3, "big") + content


def costly() -> list[bytes]:
    """As many small values as fit, in every place that is read; and values inside one another."""
    made = []
    for oid in ("55 1d 11", "55 1d 1e", "55 1d 25", "55 1d 13"):
        for unit in (b"\x82\x00", b"\x06\x01\x2a", b"\xa4\x02\x30\x00", b"\x87\x00", b"\x30\x02\x82\x00"):
            names = tlv(0x30, unit * (MOST_OCTETS // len(unit)))
            extension = tlv(0x30, tlv(0x06, bytes.fromhex(oid)) + tlv(0x04, names))
            made.append(certificate(tlv(0x30, b""), tlv(0xA3, tlv(0x30, extension))))
    for unit in (b"\x31\x00", tlv(0x31, tlv(0x30, b"\x06\x03\x55\x04\x03\x0c\x01\x00"))):
        made.append(certificate(tlv(0x30, unit * (MOST_OCTETS // len(unit))), b""))
    nested = b""
    while len(nested) < MOST_OCTETS:
        nested = tlv(0x30, nested)
    made.append(nested)
    made.append(certificate(tlv(0x30, tlv(0x31, tlv(0x30, tlv(0x06, b"\xff" * 126 + b"\x01") + b"\x0c\x00"))), b""))
    return made


def certificate(name: bytes, rest: bytes) -> bytes:
    nothing = tlv(0x30, b"")
    body = b"\xa0\x03\x02\x01\x02\x02\x01\x01" + nothing + name + nothing + name + nothing + rest
    return tlv(0x30, tlv(0x30, body))


def damaged(samples: list[bytes], chance: random.Random) -> bytes:
    octets = bytearray(chance.choice(samples))
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(octets))
        kind = chance.randrange(3)
        if kind == 0:
            octets[place] = chance.randrange(256)
        elif kind == 1:
            del octets[place : place + chance.randint(1, 9)]
        else:
            octets[place:place] = chance.choice(samples)[:: chance.randint(1, 5)][: chance.randint(1, 99)]
        if not octets:
            return b""
    return bytes(octets)


def main(count: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        pki = Pki(Path(place))
        pki.make("a", AUTHORITY + "nameConstraints=permitted;DNS:a.test,excluded;IP:192.0.2.0/255.255.255.0\n")
        pki.make(
            "b", LEAF.format(names="DNS:a,IP:::1,email:a@b.c,URI:x:y,RID:1.2.3,otherName:1.2.3;UTF8:x"), key="1024"
        )
        samples = [ssl.PEM_cert_to_DER_cert(pki.path(name).read_text()) for name in "ab"]
    chance = random.Random(seed)
    slowest_s, number = 0.0, 0
    for octets in (*costly(), *(damaged(samples, chance) for _ in range(count))):
        began = time.process_time()
        parse(octets)
        slowest_s = max(slowest_s, time.process_time() - began)
        number += 1
    print(f"{number:,} certificates, the slowest took {slowest_s * 1000:.0f} ms of CPU")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
