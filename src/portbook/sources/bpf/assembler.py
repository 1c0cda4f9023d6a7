"""A small assembler for BPF, the instructions that Linux takes for its in-kernel machine. Pure.

A program is a list of steps. Each says what it does and why, jumps name a label, and ``assemble`` gives bytes:

    code = Code()
    code.load(R1, R6, 16, 2, "the port")
    code.jump_if(R1, "!=", 80, "out", "not the one")
    ...
    code.label("out")
    code.move(R0, 0, "go on with the next")
    code.leave()

Facts: RFC 9669 (BPF Instruction Set Architecture), sections 3 to 5.
"""

from __future__ import annotations

import struct
import sys
from enum import IntEnum
from typing import NamedTuple


class Register(IntEnum):
    """R0 takes results; R1 to R5 are arguments, lost in a call; R6 to R9 stay; below R10 lies the stack."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Register

# An instruction: code, the two registers in one byte, offset, immediate value. The destination is in the lower half of
# the byte on little-endian machines, in the upper on others.
INSTRUCTION = struct.Struct("=BBhi")
WIDTHS = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}  # bytes to the size bits of loads and stores
LOAD, STORE_VALUE, STORE = 0x61, 0x62, 0x63  # LDX, ST, STX, in mode MEM
ARITHMETIC, JUMP = 0x07, 0x05  # 64 bits
FROM_REGISTER = 0x08  # the second operand is a register
MOVE, CALL, EXIT, ALWAYS = 0xB0, 0x80, 0x90, 0x00
OPERATIONS = {"+": 0x00, "-": 0x10, "*": 0x20, "|": 0x40, "&": 0x50, "<<": 0x60, ">>": 0x70}
COMPARISONS = {
    "==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "signed >": 0x60, "signed >=": 0x70, "<": 0xA0,
    "<=": 0xB0, "signed <": 0xC0, "signed <=": 0xD0,
}  # fmt: skip

Operand = Register | int


class Step(NamedTuple):
    """One instruction, before it is known how far its label is."""

    code: int
    to: Register = R0
    source: Register = R0
    offset: int = 0
    value: int = 0
    label: str | None = None  # where it jumps
    text: str = ""  # what it does
    why: str = ""


class Code:
    """A program in the making."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.labels: dict[str, int] = {}  # name: number of the step that follows

    def label(self, name: str) -> None:
        """Name the place where the next step stands; raises ValueError for a second place of that name."""
        if name in self.labels:
            raise ValueError(f"label {name!r} is there already")
        self.labels[name] = len(self.steps)

    def load(self, to: Register, base: Register, offset: int, width: int, why: str) -> None:
        """Read 1, 2, 4 or 8 bytes at ``base + offset``."""
        text = f"{_name(to)} = {_memory(base, offset, width)}"
        self.steps.append(Step(LOAD | WIDTHS[width], to, base, offset, text=text, why=why))

    def store(self, base: Register, offset: int, width: int, what: Operand, why: str) -> None:
        """Write 1, 2, 4 or 8 bytes at ``base + offset``."""
        text = f"{_memory(base, offset, width)} = {_name(what)}"
        if isinstance(what, Register):
            self.steps.append(Step(STORE | WIDTHS[width], base, what, offset, text=text, why=why))
        else:
            self.steps.append(Step(STORE_VALUE | WIDTHS[width], base, R0, offset, what, text=text, why=why))

    def move(self, to: Register, what: Operand, why: str) -> None:
        """Put a register's or an immediate value (32 bits, sign extended) into a register."""
        self._operate(ARITHMETIC | MOVE, to, what, f"{_name(to)} = {_name(what)}", why)

    def change(self, to: Register, operation: str, what: Operand, why: str) -> None:
        """Add, shift and so on, in 64 bits; ``operation`` is one of OPERATIONS."""
        text = f"{_name(to)} {operation}= {_name(what)}"
        self._operate(ARITHMETIC | OPERATIONS[operation], to, what, text, why)

    def jump_if(self, one: Register, comparison: str, other: Operand, label: str, why: str) -> None:
        """Go on at ``label`` when it holds, in 64 bits, unsigned unless told; "&": when they share a bit."""
        text = f"if {_name(one)} {comparison} {_name(other)} goto {label}"
        self._operate(JUMP | COMPARISONS[comparison], one, other, text, why, label)

    def jump(self, label: str, why: str) -> None:
        """Go on at ``label``."""
        self.steps.append(Step(JUMP | ALWAYS, label=label, text=f"goto {label}", why=why))

    def call(self, function: int, why: str) -> None:
        """Call one of the kernel's helpers: arguments in R1 to R5, the result in R0."""
        self.steps.append(Step(JUMP | CALL, value=function, text=f"call {function}", why=why))

    def leave(self) -> None:
        """End the program; R0 is its answer."""
        self.steps.append(Step(JUMP | EXIT, text="exit"))

    def _operate(self, code: int, to: Register, what: Operand, text: str, why: str, label: str | None = None) -> None:
        if isinstance(what, Register):
            self.steps.append(Step(code | FROM_REGISTER, to, what, 0, 0, label, text, why))
        else:
            self.steps.append(Step(code, to, R0, 0, what, label, text, why))

    def assemble(self) -> bytes:
        """The program as the kernel takes it; raises ValueError for an unknown label or a number that does not fit."""
        try:
            return b"".join(self._encode(number, step) for number, step in enumerate(self.steps))
        except struct.error as error:
            raise ValueError(f"a number does not fit: {error}") from error

    def _encode(self, number: int, step: Step) -> bytes:
        registers = step.to | step.source << 4 if sys.byteorder == "little" else step.to << 4 | step.source
        offset = step.offset if step.label is None else self._distance(number, step.label)
        return INSTRUCTION.pack(step.code, registers, offset, step.value)

    def _distance(self, number: int, label: str) -> int:
        """In instructions, from the one that follows the jump."""
        if label not in self.labels:
            raise ValueError(f"no label {label!r}")
        return self.labels[label] - number - 1

    def listing(self) -> str:
        """The program for people: number, what it does, why."""
        places: dict[int, list[str]] = {}
        for name, at in self.labels.items():
            places.setdefault(at, []).append(f"{name}:\n")
        lines = [
            "".join(places.get(number, [])) + f"{number:4}  {step.text:<48}" + (f"; {step.why}" if step.why else "")
            for number, step in enumerate(self.steps)
        ]
        return "\n".join(line.rstrip() for line in lines) + "\n"


def _name(what: Operand) -> str:
    return f"r{int(what)}" if isinstance(what, Register) else str(what)


def _memory(base: Register, offset: int, width: int) -> str:
    return f"u{8 * width} [{_name(base)} {'-' if offset < 0 else '+'} {abs(offset)}]"
