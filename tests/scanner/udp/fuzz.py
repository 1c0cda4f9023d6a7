"""Replies of up to 65,507 bytes that are made to cost time, and what each reader takes for them.

    python -m tests.scanner.udp.fuzz 200000        # a campaign; the figures in docs/verified.md are of one

A reply is a head that a reader understands, from the samples of test_payloads.py or made here, then whatever makes it
repeat something: chains of compression pointers, sequences of empty values, attributes of length zero, separators.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from random import Random
from time import thread_time

from portbook.scanner.udp.payloads import LONGEST_TEXT, PAYLOADS, UNKNOWN, describe_reply, recognise

LONGEST = 65_507  # the data of a UDP datagram over IPv4 (RFC 768, RFC 791)
CPU_LIMIT_S = 0.1  # for one reply and one reader; on an idle machine the slowest takes a few milliseconds
DNS_HEADS = (struct.pack("!6H", 0x7062, 0x8180, 0, 64, 0, 0), struct.pack("!6H", 0, 0x8400, 64, 65535, 0, 0))
REPEATED = (
    *(
        b"\0",
        b"\xff",
        b"\xc0\x0c",
        b"\x01a",
        b"\x3f" + b"a" * 63,
        b"\x02\0",
        b"\x30\0",
        b"\x30\x84\0\0\0\0",
        b"\x80\x22\0\0",
    ),
    *(
        b";",
        b"\r\n",
        b":\r\n",
        b"\r\na:b",
        b" ",
        b"\xe2\x80\xae",
        b"\x1b[31m",
        b"\x3e\x75",
        b"a=b;",
        b"\x04\x82\xff\xff",
    ),
)
WRAPPERS = (b"\x30", b"\x7e\x30", b"\x30\x64", b"\x30\x02\x01\x01\x04\0\xa2", b"\x30\x02\x01\x03\x30")


def pointer_chain(records: int = 63, step: int = 64, size: int = LONGEST - 7) -> bytes:
    """A DNS response whose names are one chain of pointers that each lead backwards, through labels of every length.

    Without limits each name of the record section takes as many steps as the datagram has bytes.
    """
    end = size - 12 * records
    data = bytearray([step - 1]) * size
    data[:12] = struct.pack("!6H", 0x7062, 0x8180, 0, records + 1, 0, 0)
    data[12:23] = b"\0" + struct.pack("!HHIH", 1, 1, 0, end - 23)
    last = end - step - 2
    top = min(0x3FFF, last - step)
    residues = [top % step, *(r for r in range(top % step % 2, step - 1, 2) if r != top % step)]
    starts: list[int] = []
    at = top + 1
    for residue in residues:
        at -= 1 + (at - 1 - residue) % step
        starts.append(at)
    for number, residue in enumerate(residues):
        at = last + (residue - last) % step
        if number + 1 < len(residues):
            data[at : at + 2] = struct.pack("!H", 0xC000 | starts[number + 1])
        else:
            data[at] = 0
    record = struct.pack("!HHHIH", 0xC000 | top, 12, 1, 0, 0)
    return bytes(data[:end]) + record * records


def backward_pointers(records: int = 64) -> bytes:
    """Names that are nothing but pointers, thousands of them, each to the one before it."""
    head = struct.pack("!6H", 0x7062, 0x8180, 0, records + 1, 0, 0)
    chain = b"\0\0" + b"".join(struct.pack("!H", 0xC000 | at) for at in range(23, 0x3FFD, 2))
    first = b"\0" + struct.pack("!HHIH", 1, 1, 0, len(chain)) + chain
    record = struct.pack("!HHHIH", 0xC000 | 0x3FFD, 12, 1, 0, 0)
    return (head + first + record * records)[:LONGEST]


FIXED = (
    pointer_chain(),
    pointer_chain(step=60),
    backward_pointers(),
    *(part * (LONGEST // len(part)) for part in REPEATED),
)


def replies(count: int, heads: tuple[bytes, ...], seed: int = 1) -> Iterator[bytes]:
    """The fixed replies, then ``count`` random ones; the same for the same seed."""
    yield from FIXED
    random = Random(seed)
    for _ in range(count):
        size = random.choice((LONGEST, random.randrange(1, LONGEST), random.randrange(1, 600)))
        yield (_head(random, heads) + _tail(random, size))[:size]


def _head(random: Random, heads: tuple[bytes, ...]) -> bytes:
    head = random.choice((*heads, *DNS_HEADS))
    kind = random.randrange(4)
    if kind == 0:
        return head
    if kind == 1:
        return head[: random.randrange(len(head) + 1)]
    if kind == 2:
        damaged = bytearray(head)
        for _ in range(min(3, len(damaged))):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        return bytes(damaged)
    # Constructed values of ASN.1 whose length is that of the datagram.
    wrapper = random.choice(WRAPPERS)
    return b"".join(bytes([tag]) + b"\x83\0\xff\xd0" for tag in wrapper)


def _tail(random: Random, size: int) -> bytes:
    if random.randrange(3):
        parts = random.sample(REPEATED, random.randrange(1, 4))
        block = b"".join(part * random.choice((1, 7, 300)) for part in parts)
        return block * (size // len(block) + 1)
    return random.randbytes(size)


def check(reply: bytes) -> float:
    """Give a reply to every reader; return the CPU time of the slowest, in seconds."""
    slowest = 0.0
    for payload in (*PAYLOADS, *UNKNOWN):
        began = thread_time()
        recognised = recognise(reply, [payload])
        slowest = max(slowest, thread_time() - began)
        if recognised is not None:
            assert len(recognised.text) <= LONGEST_TEXT
            assert recognised.text.isprintable()
    assert describe_reply(reply).isprintable()
    return slowest


def main() -> None:
    from tests.scanner.udp.test_payloads import REPLIES

    slowest, number = 0.0, 0
    for reply in replies(int(sys.argv[1]), tuple(REPLIES.values()), seed=int(sys.argv[2]) if sys.argv[2:] else 1):
        number += 1
        slowest = max(slowest, check(reply))
    readers = len({payload.read for payload in PAYLOADS})
    print(f"{number:,} replies, {readers} readers, no crash; the slowest reader took {slowest * 1000:.1f} ms for one")


if __name__ == "__main__":
    main()
