"""Linux: the system call bpf(2), for which the C library has no function.

``why`` makes it at every start as root, so this uses the C module below ``ctypes``, which takes a third of its time to
import, and makes the few types that it needs, as ``ctypes`` does.

Sources: bpf(2); union bpf_attr in include/uapi/linux/bpf.h; arch/x86/entry/syscalls/syscall_64.tbl,
include/uapi/asm-generic/unistd.h and others for its number.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "s390x": 351, "ppc64le": 361}


def call(command: int, attributes: bytearray) -> int:
    """Call bpf(2) and return its result; the kernel writes answers into the attributes.

    :raises OSError: with the kernel's errno, ENOSYS where the number of the system call is not known
    """
    import _ctypes

    number = SYS_BPF.get(os.uname().machine)
    if number is None or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "l"

    class Function(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
        _restype_ = Long

    program: Any = None  # the symbols of this process: dlopen(3)
    syscall = Function(_ctypes.dlsym(_ctypes.dlopen(program, 0), "syscall"))
    answer = int(syscall(Long(number), Long(command), Long(address_of(attributes)), Long(len(attributes))))
    if answer < 0:
        code = _ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def address_of(block: bytearray) -> int:
    """Where the bytes are in memory, for attributes that point to them; they must not be resized meanwhile."""
    import _ctypes

    class Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "c"

    class Bytes(_ctypes.Array):  # type: ignore[type-arg]
        _type_ = Byte
        _length_ = len(block)

    return int(_ctypes.addressof(Bytes.from_buffer(block)))
