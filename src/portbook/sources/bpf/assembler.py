"""A small assembler for BPF, the instructions of the virtual machine inside Linux. Pure.

A program is a list of instructions. Each has a text that explains it, jumps name a label, and ``assemble`` makes the
bytes:

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

from msgspec import Struct


class RegisterNumber(int):
    """R0 has results; R1 to R5 are arguments, lost in a call; R6 to R9 are preserved; the stack is below R10."""

    def __str__(self) -> str:
        return f"r{int(self)}"


REGISTERS = R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = tuple(RegisterNumber(number) for number in range(11))

# An instruction: code, the two registers in one byte, offset, immediate value. The destination is in the lower half of
# the byte on little-endian machines, in the upper on others.
INSTRUCTION = struct.Struct("=BBhi")
WIDTHS = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}  # bytes to the size bits of loads and stores
LOAD, STORE_VALUE, STORE = 0x61, 0x62, 0x63  # LDX, ST, STX, in mode MEM
LOAD_WIDE = 0x18  # LD, 64 bits in mode IMM: two instructions, the second of which has the upper half of the value
ATOMIC = 0xDB  # STX, 64 bits in mode ATOMIC; the immediate value names the operation, 0 is an addition
TO_NETWORK = 0xDC  # ALU, END with TO_BE: as many bits as the immediate value says, the others are cleared
ARITHMETIC, JUMP = 0x07, 0x05  # 64 bits
FROM_REGISTER = 0x08  # the second operand is a register
MOVE, CALL, EXIT, ALWAYS = 0xB0, 0x80, 0x90, 0x00
KERNEL_FUNCTION = R2  # in a call, instead of a source: BPF_PSEUDO_KFUNC_CALL in include/uapi/linux/bpf.h
# In a wide load, instead of a source: BPF_PSEUDO_MAP_FD and BPF_PSEUDO_MAP_VALUE. The value is a descriptor of a map.
MAP, MAP_VALUE = R1, R2
OPERATIONS = {"+": 0x00, "-": 0x10, "*": 0x20, "|": 0x40, "&": 0x50, "<<": 0x60, ">>": 0x70}
COMPARISONS = {
    "==": 0x10,
    ">": 0x20,
    ">=": 0x30,
    "&": 0x40,
    "!=": 0x50,
    "signed >": 0x60,
    "signed >=": 0x70,
    "<": 0xA0,
    "<=": 0xB0,
    "signed <": 0xC0,
    "signed <=": 0xD0,
}

CLASS, WIDTH, OPERATION = 0x07, 0x18, 0xF0  # the bits of the code
WIDTH_BYTES = {bits: width for width, bits in WIDTHS.items()}
OPERATION_NAMES = {MOVE: "", **{bits: name for name, bits in OPERATIONS.items()}}
COMPARISON_NAMES = {bits: name for name, bits in COMPARISONS.items()}

# How the instructions that are shown in a way of their own are shown, by code. 0 is the second half of a wide load.
UNUSUAL = {
    ATOMIC: "atomic u64 [{0.to} + {0.offset}] += {0.source}",
    LOAD_WIDE: "{0.to} = map {0.value}",
    0: "at {0.value}",
    TO_NETWORK: "{0.to} = network order of {0.value} bits",
}

Operand = RegisterNumber | int


class Instruction(Struct, frozen=True):
    """One instruction, before the distance to its label is known."""

    code: int
    to: RegisterNumber = R0
    source: RegisterNumber = R0
    offset: int = 0
    value: int = 0
    label: str | None = None  # where it jumps
    why: str = ""

    def __str__(self) -> str:
        kind, operation = self.code & CLASS, self.code & OPERATION
        operand = self.source if self.code & FROM_REGISTER else self.value
        if self.code in UNUSUAL:
            return UNUSUAL[self.code].format(self)
        if kind in (LOAD & CLASS, STORE & CLASS, STORE_VALUE & CLASS):
            return self._transfer(kind)
        if kind == ARITHMETIC:
            return f"{self.to} {OPERATION_NAMES[operation]}= {operand}"
        if operation == CALL:
            kind_of_function = "kernel " if self.source == KERNEL_FUNCTION else ""
            return f"call {kind_of_function}{self.value}"
        if operation == EXIT:
            return "exit"
        if operation == ALWAYS:
            return f"goto {self.label}"
        return f"if {self.to} {COMPARISON_NAMES[operation]} {operand} goto {self.label}"

    def _transfer(self, kind: int) -> str:
        """A load or a store."""
        base = self.source if kind == LOAD & CLASS else self.to
        sign = "-" if self.offset < 0 else "+"
        memory = f"u{8 * WIDTH_BYTES[self.code & WIDTH]} [{base} {sign} {abs(self.offset)}]"
        if kind == LOAD & CLASS:
            return f"{self.to} = {memory}"
        if kind == STORE & CLASS:
            return f"{memory} = {self.source}"
        return f"{memory} = {self.value}"


class Code:
    """A program that is being written."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}  # name: number of the instruction that follows

    def label(self, name: str) -> None:
        """Name the place of the next instruction; raise ValueError if the name is used already."""
        if name in self.labels:
            raise ValueError(f"label {name!r} is used already")
        self.labels[name] = len(self.instructions)

    def load(self, to: RegisterNumber, base: RegisterNumber, offset: int, width: int, why: str) -> None:
        """Read 1, 2, 4 or 8 bytes at ``base + offset``."""
        self.instructions.append(Instruction(LOAD | WIDTHS[width], to, base, offset, why=why))

    def store(self, base: RegisterNumber, offset: int, width: int, what: Operand, why: str) -> None:
        """Write 1, 2, 4 or 8 bytes at ``base + offset``."""
        if isinstance(what, RegisterNumber):
            self.instructions.append(Instruction(STORE | WIDTHS[width], base, what, offset, why=why))
        else:
            self.instructions.append(Instruction(STORE_VALUE | WIDTHS[width], base, R0, offset, what, why=why))

    def move(self, to: RegisterNumber, what: Operand, why: str) -> None:
        """Put a register's or an immediate value (32 bits, sign extended) into a register."""
        self._operate(ARITHMETIC | MOVE, to, what, why)

    def change(self, to: RegisterNumber, operation: str, what: Operand, why: str) -> None:
        """Add, shift and so on, in 64 bits; ``operation`` is one of OPERATIONS."""
        self._operate(ARITHMETIC | OPERATIONS[operation], to, what, why)

    def jump_if(self, one: RegisterNumber, comparison: str, other: Operand, label: str, why: str) -> None:
        """Continue at ``label`` if the comparison holds; "&" holds if both share a bit. 64 bits, unsigned."""
        self._operate(JUMP | COMPARISONS[comparison], one, other, why, label)

    def jump(self, label: str, why: str) -> None:
        """Continue at ``label``."""
        self.instructions.append(Instruction(JUMP | ALWAYS, label=label, why=why))

    def call(self, function: int, why: str) -> None:
        """Call one of the kernel's helpers: arguments in R1 to R5, the result in R0."""
        self.instructions.append(Instruction(JUMP | CALL, value=function, why=why))

    def call_kernel(self, function: int, why: str) -> None:
        """Call a function of the kernel that is no helper, by its type number (kfunc; RFC 9669 section 4.3.1)."""
        self.instructions.append(Instruction(JUMP | CALL, source=KERNEL_FUNCTION, value=function, why=why))

    def load_map(self, to: RegisterNumber, map_descriptor: int, why: str) -> None:
        """Put a map into a register, as an argument of a call."""
        self.instructions.append(Instruction(LOAD_WIDE, to, MAP, value=map_descriptor, why=why))
        self.instructions.append(Instruction(0))

    def load_place(self, to: RegisterNumber, map_descriptor: int, offset: int, why: str) -> None:
        """Put the address of a byte of a map's first value into a register; the map is an array (Linux 5.2)."""
        self.instructions.append(Instruction(LOAD_WIDE, to, MAP_VALUE, value=map_descriptor, why=why))
        self.instructions.append(Instruction(0, value=offset))

    def add_atomically(self, base: RegisterNumber, offset: int, what: RegisterNumber, why: str) -> None:
        """Add to 8 bytes at ``base + offset`` that others change at the same time."""
        self.instructions.append(Instruction(ATOMIC, base, what, offset, why=why))

    def to_network_order(self, register: RegisterNumber, bits: int, why: str) -> None:
        """Swap the bytes of a number of 16, 32 or 64 bits where this machine's order is another; clear the rest."""
        self.instructions.append(Instruction(TO_NETWORK, register, value=bits, why=why))

    def leave(self) -> None:
        """End the program; R0 is its answer."""
        self.instructions.append(Instruction(JUMP | EXIT))

    def _operate(self, code: int, to: RegisterNumber, what: Operand, why: str, label: str | None = None) -> None:
        if isinstance(what, RegisterNumber):
            self.instructions.append(Instruction(code | FROM_REGISTER, to, what, 0, 0, label, why))
        else:
            self.instructions.append(Instruction(code, to, R0, 0, what, label, why))

    def assemble(self) -> bytes:
        """The program as bytes for the kernel; raise ValueError for an unknown label or a number that does not fit."""
        try:
            return b"".join(self._encode(number, instruction) for number, instruction in enumerate(self.instructions))
        except struct.error as error:
            raise ValueError(f"a number does not fit: {error}") from error

    def _encode(self, number: int, instruction: Instruction) -> bytes:
        low, high = instruction.to, instruction.source
        if sys.byteorder == "big":
            low, high = high, low
        offset = instruction.offset
        if instruction.label is not None:
            offset = self._distance(number, instruction.label)
        return INSTRUCTION.pack(instruction.code, low | high << 4, offset, instruction.value)

    def _distance(self, number: int, label: str) -> int:
        """Number of instructions to the label, from the one that follows the jump."""
        if label not in self.labels:
            raise ValueError(f"no label {label!r}")
        return self.labels[label] - number - 1

    def listing(self) -> str:
        """The program for people: number of the instruction, what it does, why."""
        names: dict[int, list[str]] = {}
        for name, number in self.labels.items():
            names.setdefault(number, []).append(name)
        lines: list[str] = []
        for number, instruction in enumerate(self.instructions):
            lines += [f"{name}:" for name in names.get(number, [])]
            line = f"{number:4}  {instruction!s:<48}"
            if instruction.why:
                line += f"; {instruction.why}"
            lines.append(line.rstrip())
        return "\n".join(lines) + "\n"
