"""Linux: the number of every network namespace of the machine, from the kernel's own list.

A namespace may have neither a process nor a name: a bind mount, a descriptor or a socket of a process elsewhere keeps
it (namespaces(7)). No file lists them all, so a small BPF program follows ``net_namespace_list``, which links every
``struct net`` (include/net/net_namespace.h). It starts at the reader's own namespace and runs once, at the first file
that the iterator visits. The list's head is no namespace: what stands there does not have the operations of one.

The loop is an open-coded iterator, ``bpf_iter_num_new()`` and so on (kernel/bpf/bpf_iter.c, Linux 6.4).
"""

from __future__ import annotations

import os
import struct

from portbook.errors import SourceError
from portbook.sources.bpf import calls
from portbook.sources.bpf.assembler import R0, R1, R2, R3, R6, R7, R8, R10, Code
from portbook.sources.bpf.btf import Layout
from portbook.sources.bpf.program import (
    COUNTERS,
    COUNTING,
    FUNCTION,
    GET_CURRENT_TASK_BTF,
    NAMESPACES,
    PROBE_READ_KERNEL,
    SEQ_WRITE,
)

RECORD = struct.Struct("=II")  # number, references
MOST = 4000  # as many records fit into what one call of the program may write: PAGE_SIZE << 3 in kernel/bpf/bpf_iter.c
POINTER = 8
# On the stack, by the distance to its end.
OPERATIONS, FIRST, PLACE, OTHER, ITERATOR, WRITTEN = -8, -16, -24, -32, -40, -48


def read(layout: Layout) -> frozenset[int] | None:
    """The numbers of all network namespaces that are in use; None where this kernel cannot list them.

    :param layout: of the running kernel
    """
    code = build(layout)
    function = layout.functions.get(FUNCTION)
    if code is None or function is None:
        return None
    try:
        return parse(calls.read_files(code.assemble(), function, (os.getpid(),)))
    except SourceError:
        return None  # a kernel whose verifier does not take the program: the caller looks at every file instead


def parse(records: bytes) -> frozenset[int] | None:
    """The numbers in the records, without those of namespaces that are being taken down; None if there may be more."""
    rows = list(RECORD.iter_unpack(records[: len(records) // RECORD.size * RECORD.size]))
    if not rows or len(rows) >= MOST:
        return None
    return frozenset(number for number, references in rows if references)


def build(layout: Layout) -> Code | None:
    """The program; None for a kernel without what it needs."""
    places = {path: place.offset for path in NAMESPACES if (place := layout.places.get(path))}
    functions = [layout.functions.get(name) for name in COUNTING]
    if len(places) < len(NAMESPACES) or None in functions:
        return None
    new, following, destroy = (number or 0 for number in functions)
    code = Code()
    _find_first(code, places)
    code.move(R2, 0, "from 0")
    code.move(R3, MOST, "to the limit")
    _call(code, new, "begin to count")
    code.label("loop")
    _call(code, following, "one more")
    code.jump_if(R0, "==", 0, "end", "that is enough")
    _write_record(code, layout, places)
    _read(code, PLACE, POINTER, 0, "the next of the list")
    code.load(R1, R10, PLACE, POINTER, "that")
    code.load(R2, R10, FIRST, POINTER, "where it began")
    code.jump_if(R1, "!=", R2, "loop", "not all the way round yet")
    code.label("end")
    _call(code, destroy, "end counting")
    code.label("out")
    code.move(R0, 0, "go on with the next file")
    code.leave()
    return code


def _find_first(code: Code, places: dict[str, int]) -> None:
    """Store the place of the reader's own namespace in the list, and the operations that mark a network namespace."""
    code.move(R6, R1, "the context stays in r6")
    code.load(R1, R6, places["bpf_iter__task_file.meta"], POINTER, "about the reading")
    code.load(R2, R1, places["bpf_iter_meta.seq_num"], 8, "how many files were visited")
    code.jump_if(R2, "!=", 0, "out", "once is enough")
    code.load(R7, R1, places["bpf_iter_meta.seq"], POINTER, "where records go stays in r7")
    code.call(GET_CURRENT_TASK_BTF, "the reader")
    code.load(R1, R0, places["task_struct.nsproxy"], POINTER, "its namespaces")
    code.jump_if(R1, "==", 0, "out", "it is ending")
    code.load(R1, R1, places["nsproxy.net_ns"], POINTER, "its network namespace")
    code.load(R2, R1, places["net.ns.ops"], POINTER, "what makes it one")
    code.store(R10, OPERATIONS, POINTER, R2, "operations")
    code.change(R1, "+", places["net.list"], "its place in the list")
    code.store(R10, FIRST, POINTER, R1, "where it begins")
    code.store(R10, PLACE, POINTER, R1, "where it is")
    code.store(R10, OTHER, POINTER, 0, "nothing yet")
    code.store(R10, WRITTEN, POINTER, 0, "nothing yet")


def _write_record(code: Code, layout: Layout, places: dict[str, int]) -> None:
    _read(code, OTHER, POINTER, places["net.ns.ops"] - places["net.list"], "what it is")
    _read(code, WRITTEN, 4, places["net.ns.inum"] - places["net.list"], "its number")
    code.store(R10, WRITTEN + 4, 4, 1, "in use, where that is not known")
    for path in COUNTERS:
        if place := layout.places.get(path):
            _read(code, WRITTEN + 4, 4, place.offset - places["net.list"], "how many refer to it")
    code.load(R1, R10, OTHER, POINTER, "what it is")
    code.load(R2, R10, OPERATIONS, POINTER, "what ours is")
    code.jump_if(R1, "!=", R2, "next", "the head of the list")
    code.move(R1, R7, "where records go")
    code.move(R2, R10, "the record")
    code.change(R2, "+", WRITTEN, "from its beginning")
    code.move(R3, RECORD.size, "all of it")
    code.call(SEQ_WRITE, "write")
    code.label("next")


def _read(code: Code, to: int, size: int, distance: int, why: str) -> None:
    """Copy what is ``distance`` bytes behind the current place in the list to the stack."""
    code.load(R8, R10, PLACE, POINTER, "the place in the list")
    code.move(R1, R10, "the stack")
    code.change(R1, "+", to, "at this place")
    code.move(R2, size, f"{size} bytes")
    code.move(R3, R8, "from the list")
    code.change(R3, "+", distance, "at this distance")
    code.call(PROBE_READ_KERNEL, why)


def _call(code: Code, function: int, why: str) -> None:
    """Call one of the iterator's functions: the first argument is the iterator."""
    code.move(R1, R10, "the stack")
    code.change(R1, "+", ITERATOR, "the iterator")
    code.call_kernel(function, why)
