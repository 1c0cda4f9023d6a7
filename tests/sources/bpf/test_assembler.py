"""The assembler: against a decoder written from RFC 9669, and against the kernel, which runs what it made."""

from __future__ import annotations

import ctypes
import os
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.sources.bpf import assembler
from portbook.sources.bpf.assembler import R0, R1, R2, R3, R10, REGISTERS, Code, RegisterNumber
from tests.components import need
from tests.conftest import ROOT

# --- a decoder: RFC 9669, sections 3.1, 4 and 5 --------------------------------------------------------------------

CLASSES = {0: "LD", 1: "LDX", 2: "ST", 3: "STX", 4: "ALU", 5: "JMP", 6: "JMP32", 7: "ALU64"}
ALU = {0: "+", 1: "-", 2: "*", 4: "|", 5: "&", 6: "<<", 7: ">>", 11: "="}
JMP = {0: "ja", 1: "==", 2: ">", 3: ">=", 4: "&", 5: "!=", 6: "signed >", 7: "signed >=", 8: "call", 9: "exit",
       10: "<", 11: "<=", 12: "signed <", 13: "signed <="}  # fmt: skip
SIZES = {0: 4, 1: 2, 2: 1, 3: 8}
MEM = 3


def decode(data):
    """Each instruction as a tuple of words and numbers."""
    for at in range(0, len(data), 8):
        opcode, registers = data[at], data[at + 1]
        low, high = registers & 15, registers >> 4
        to, source = (low, high) if sys.byteorder == "little" else (high, low)
        offset, value = struct.unpack_from("=hi", data, at + 2)
        kind = CLASSES[opcode & 7]
        if kind in ("LDX", "ST", "STX"):
            assert opcode >> 5 == MEM
            yield kind, SIZES[opcode >> 3 & 3], to, source, offset, value
        else:
            table = ALU if kind.startswith("ALU") else JMP
            operand = ("register", source) if opcode & 8 else ("value", value)
            yield kind, table[opcode >> 4], to, operand, offset, source


registers = st.sampled_from(list(REGISTERS)[:10])
values = st.integers(-(2**31), 2**31 - 1)
operands = registers | values
widths = st.sampled_from([1, 2, 4, 8])
offsets = st.integers(-(2**15), 2**15 - 1)


def said(operand):
    return ("register", int(operand)) if isinstance(operand, RegisterNumber) else ("value", operand)


def source_of(operand):
    return int(operand) if isinstance(operand, RegisterNumber) else 0


def one(*steps):
    code = Code()
    for method, *arguments in steps:
        getattr(code, method)(*arguments)
    return list(decode(code.assemble()))


@given(registers, registers, offsets, widths)
def test_loads(to, base, offset, width):
    assert one(("load", to, base, offset, width, "")) == [("LDX", width, to, base, offset, 0)]


@given(registers, st.integers(0, 1023), st.integers(0, 4096))
def test_wide_loads(to, descriptor, offset):
    """Section 5.4: the source says that the value is a map, or a place in one; the second half has the offset."""
    assert wide("load_map", to, descriptor) == [(0x18, to, 1, 0, descriptor), (0, 0, 0, 0, 0)]
    assert wide("load_place", to, descriptor, offset) == [(0x18, to, 2, 0, descriptor), (0, 0, 0, 0, offset)]


@given(registers, registers, offsets)
def test_atomic_additions(base, what, offset):
    """Section 5.3: STX, 64 bits, mode ATOMIC (6), the operation ADD is 0."""
    assert wide("add_atomically", base, offset, what) == [(3 | 3 << 3 | 6 << 5, base, what, offset, 0)]


@given(registers, st.sampled_from([16, 32, 64]))
def test_network_order(register, bits):
    """Section 4.2: ALU, END (13), to big-endian."""
    assert wide("to_network_order", register, bits) == [(4 | 1 << 3 | 13 << 4, register, 0, 0, bits)]


def wide(method, *arguments):
    """Code, destination, source, offset and value of each half."""
    code = Code()
    getattr(code, method)(*arguments, "")
    assert len(code.listing().splitlines()) == len(code.instructions)
    halves = []
    for opcode, low_high, offset, value in struct.iter_unpack("=BBhi", code.assemble()):
        low, high = low_high & 15, low_high >> 4
        to, source = (low, high) if sys.byteorder == "little" else (high, low)
        halves.append((opcode, to, source, offset, value))
    return halves


@given(registers, offsets, widths, operands)
def test_stores(base, offset, width, what):
    expected = ("STX", width, base, what, offset, 0)
    if not isinstance(what, RegisterNumber):
        expected = ("ST", width, base, 0, offset, what)
    assert one(("store", base, offset, width, what, "")) == [expected]


@given(registers, st.sampled_from(list(assembler.OPERATIONS)), operands)
def test_arithmetic(to, operation, what):
    assert one(("change", to, operation, what, "")) == [("ALU64", operation, to, said(what), 0, source_of(what))]
    assert one(("move", to, what, "")) == [("ALU64", "=", to, said(what), 0, source_of(what))]


@given(values)
def test_calls_and_the_end(number):
    assert one(("call", number, ""), ("leave",)) == [
        ("JMP", "call", 0, ("value", number), 0, 0),
        ("JMP", "exit", 0, ("value", 0), 0, 0),
    ]


@given(
    st.lists(
        st.tuples(registers, st.sampled_from(list(assembler.COMPARISONS)), operands, st.integers(0, 20)), max_size=20
    )
)
def test_a_jump_lands_behind_its_label(jumps):
    """Forwards and backwards; a distance of 0 is the next instruction."""
    code = Code()
    for i, (register, comparison, what, to) in enumerate(jumps):
        code.label(f"at {i}")
        code.jump_if(register, comparison, what, f"at {to % (len(jumps) + 1)}", "")
    code.label(f"at {len(jumps)}")
    code.leave()
    for i, (instruction, (register, comparison, what, to)) in enumerate(
        zip(decode(code.assemble()), jumps, strict=False)
    ):
        distance = to % (len(jumps) + 1) - i - 1
        assert instruction == ("JMP", comparison, register, said(what), distance, source_of(what))


def test_an_unconditional_jump():
    assert one(("jump", "there", ""), ("move", R0, 1, ""), ("label", "there"), ("leave",))[0] == (
        "JMP", "ja", 0, ("value", 0), 1, 0,
    )  # fmt: skip


def test_what_cannot_be_encoded():
    code = Code()
    code.label("here")
    with pytest.raises(ValueError, match="'here' is used already"):
        code.label("here")
    code.jump("nowhere", "")
    with pytest.raises(ValueError, match="no label 'nowhere'"):
        code.assemble()
    for method, *arguments in [
        ("move", R0, 2**31, ""),
        ("load", R0, R1, 2**15, 4, ""),
        ("store", R10, -40000, 4, R1, ""),
    ]:
        with pytest.raises(ValueError, match="does not fit"):
            one((method, *arguments))
    with pytest.raises(KeyError):
        code.load(R0, R1, 0, 3, "")


def test_a_listing_for_people():
    code = Code()
    code.load(R1, R2, -8, 2, "the port")
    code.jump_if(R1, "<", 80, "out", "below")
    code.label("out")
    code.leave()
    assert code.listing() == (
        "   0  r1 = u16 [r2 - 8]                               ; the port\n"
        "   1  if r1 < 80 goto out                             ; below\n"
        "out:\n"
        "   2  exit\n"
    )


# --- the kernel runs it --------------------------------------------------------------------------------------------

SYS_BPF = {"x86_64": 321, "aarch64": 280}
PROG_LOAD, PROG_TEST_RUN, SOCKET_FILTER = 5, 10, 1
MASK = 2**64 - 1


def run_in_kernel(program):
    """What R0 holds at the end, 32 bits: BPF_PROG_TEST_RUN, include/uapi/linux/bpf.h."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    licence = b"GPL\0"
    steps, text = (ctypes.cast(ctypes.c_char_p(b), ctypes.c_void_p).value for b in (program, licence))
    attributes = struct.pack("=IIQQ24x", SOCKET_FILTER, len(program) // 8, steps, text)
    file = syscall(SYS_BPF[os.uname().machine], PROG_LOAD, attributes, len(attributes))
    if file < 0:
        raise OSError(ctypes.get_errno(), "BPF_PROG_LOAD")
    try:
        packet = b"x" * 64
        data = ctypes.cast(ctypes.c_char_p(packet), ctypes.c_void_p).value
        run = ctypes.create_string_buffer(struct.pack("=IIIIQQII", file, 0, len(packet), 0, data, 0, 1, 0) + b"\0" * 32)
        if syscall(SYS_BPF[os.uname().machine], PROG_TEST_RUN, run, 40) < 0:
            raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
        return struct.unpack_from("=I", run, 4)[0]
    finally:
        os.close(file)


def compute(operation, a, b):
    return {
        "+": a + b, "-": a - b, "*": a * b, "|": a | b, "&": a & b, "<<": a << (b & 63), ">>": a >> (b & 63),
    }[operation] & MASK  # fmt: skip


def holds(comparison, a, b):
    signed = [n - 2**64 if n >> 63 else n for n in (a, b)]
    return {
        "==": a == b, "!=": a != b, ">": a > b, ">=": a >= b, "<": a < b, "<=": a <= b, "&": bool(a & b),
        "signed >": signed[0] > signed[1], "signed >=": signed[0] >= signed[1], "signed <": signed[0] < signed[1],
        "signed <=": signed[0] <= signed[1],
    }[comparison]  # fmt: skip


NUMBERS = (0, 1, -1, 2, 63, 1000, 2**31 - 1, -(2**31))


@pytest.mark.root
def test_the_kernel_computes_what_is_meant():
    """Every operation, comparison and width, on the numbers at which they differ."""
    need(ROOT and sys.platform == "linux" and os.uname().machine in SYS_BPF, "root on Linux, to load a program")
    for operation in assembler.OPERATIONS:
        for first in NUMBERS:
            second = 7 if operation in ("<<", ">>") else -3
            code = Code()
            code.move(R0, first, "")
            code.change(R0, operation, second, "")
            code.leave()
            assert run_in_kernel(code.assemble()) == compute(operation, first & MASK, second & MASK) & 0xFFFFFFFF
    for comparison in assembler.COMPARISONS:
        for first in NUMBERS:
            for second in (0, -1, 1000):
                code = Code()
                code.move(R1, first, "")
                code.move(R2, second, "")
                code.move(R0, 1, "")
                code.jump_if(R1, comparison, R2, "out", "")
                code.move(R0, 0, "")
                code.label("out")
                code.leave()
                assert run_in_kernel(code.assemble()) == holds(comparison, first & MASK, second & MASK)


@pytest.mark.root
@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_kernel_stores_and_loads_the_given_width(width):
    need(ROOT and sys.platform == "linux" and os.uname().machine in SYS_BPF, "root on Linux, to load a program")
    code = Code()
    code.store(R10, -8, 8, 0, "")
    code.move(R3, 0x12345678, "")
    code.store(R10, -8, width, R3, "")
    code.load(R0, R10, -8, width, "")
    code.leave()
    assert run_in_kernel(code.assemble()) == 0x12345678 & (1 << 8 * width) - 1
