"""Linux: give up capabilities that a long-running process does not need any more.

What was given up does not come back, neither in this process nor in a program that it starts: an error in what runs
from then on is an error with fewer rights. The kernel keeps capabilities for each thread, so this is for a process that
has one thread; threads that are started later have what it kept.

Facts: capabilities(7), capget(2), prctl(2): PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_SET_NO_NEW_PRIVS;
include/uapi/linux/capability.h, prctl.h, securebits.h.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection

NUMBERS = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 bits for each set
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 23, 24, 28
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
# Root that starts a program gives it no capability (NOROOT), nor does a change of the user id (NO_SETUID_FIXUP); the
# odd bits lock both, and the ambient set (bits 6 and 7) stays empty.
SECUREBITS = 0b11001111
MOST = 64


def keep(names: Collection[str]) -> tuple[str, ...]:
    """Give up every capability but these, now and in programs that are started; return those that were kept.

    One that this process does not have is not gained. Programs that it starts have none at all, and none of their own
    from files or set-user-ID bits. Without a kernel that has this, and on other systems, nothing happens.

    :param names: keys of NUMBERS
    :raises OSError: the system refused
    """
    if sys.platform != "linux":
        return ()
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def control(option: int, *arguments: int) -> int:
        answer: int = libc.prctl(option, *(ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]))
        if answer < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return answer

    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _call(libc.capget(header, data))
    permitted = data[1] | data[4] << 32
    wanted = sum(1 << NUMBERS[name] for name in names) & permitted
    control(PR_SET_NO_NEW_PRIVS, 1)
    control(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    if permitted >> NUMBERS["CAP_SETPCAP"] & 1:
        control(PR_SET_SECUREBITS, SECUREBITS)
        for number in range(MOST):
            try:
                present = control(PR_CAPBSET_READ, number)
            except OSError:
                break  # EINVAL: the kernel has no more
            if present and not wanted >> number & 1:
                control(PR_CAPBSET_DROP, number)
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    _call(libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)))
    return tuple(name for name, number in NUMBERS.items() if wanted >> number & 1)


def _call(answer: int) -> None:
    import ctypes

    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
