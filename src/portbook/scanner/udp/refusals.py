"""What a refusal means for a UDP port, and what silence is worth beside it. Pure: the caller gives all times.

A closed port is refused with an ICMP message, but hosts limit how many of those they send (RFC 1812 section 4.3.2.8,
RFC 4443 section 2.4 (f)): Linux by default 6 at once and then one a second to each peer over IPv4 (icmp(7),
net.ipv4.icmp_ratelimit). A silent port is therefore either silent itself, or its refusal fell victim to the limit.
``Refusals`` distinguishes the two by a control: when a port that was probed later, at almost the same moment, was
refused, the host could have refused this one as well, and did not.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left
from collections import deque

from portbook.probe.error_queue import QueuedError
from portbook.probe.outcome import Evidence, Outcome
from portbook.resilience import WINDOWS, classify

# --- what a refusal means ------------------------------------------------------------------------------------------

# (version of IP, type, code) of ICMP: RFC 792, RFC 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1; RFC 4443 section 3.
PORT_UNREACHABLE = {(4, 3, 3), (6, 1, 4)}
PROHIBITED = {
    (4, 3, 9),  # network administratively prohibited
    (4, 3, 10),  # host administratively prohibited
    (4, 3, 13),  # communication administratively prohibited
    (4, 3, 14),  # host precedence violation: a rule of a router, too
    (4, 3, 15),  # precedence cutoff in effect
    (6, 1, 1),  # communication administratively prohibited
    (6, 1, 5),  # source address failed ingress or egress policy
    (6, 1, 6),  # reject route
}
# The packet was too big or came too fast: it is repeated, smaller (the kernel sees to that) or later.
NO_ANSWER = {(4, 3, 4), (4, 4, 0), (6, 2, 0)}

# The same as error numbers, without a sender: POSIX names, and the Windows names with the same meaning. Overlapped
# receives fail with 1225 and 1234, blocking ones with 10054. EMSGSIZE: a datagram was too big, which says nothing
# about the port.
OUTCOMES: dict[str, Outcome | None] = {
    "ECONNREFUSED": "closed",
    "ECONNRESET": "closed",
    "ENETUNREACH": "unreachable",
    "EHOSTUNREACH": "unreachable",
    "ENETDOWN": "unreachable",
    "EHOSTDOWN": "unreachable",
    "ENOPROTOOPT": "unreachable",  # ICMP 3/2: the target does not know UDP
    "EMSGSIZE": None,
}
OUTCOMES |= {name: OUTCOMES[posix] for name, posix in WINDOWS.values() if posix in OUTCOMES}


def refusal_outcome(evidence: Evidence, address: str) -> Outcome | None:
    """Return what a refusal means for a port of ``address``; None if it means nothing."""
    if evidence.kind != "icmp":
        return OUTCOMES.get(evidence.error or "", "error")
    version = 6 if ":" in address else 4
    message = (version, evidence.icmp_type or 0, evidence.icmp_code or 0)
    if message in NO_ANSWER:
        return None
    if message in PORT_UNREACHABLE:
        # Another host cannot know which ports the target has: it reports a rule of its own.
        return "closed" if evidence.sender == address else "filtered"
    return "filtered" if message in PROHIBITED else "unreachable"


def of_error(error: OSError) -> Evidence:
    """Return an error of the system as evidence: on Windows with the Windows error number."""
    number = getattr(error, "winerror", None) or error.errno
    return Evidence("errno", errno=number, error=classify(error).name, text=error.strerror or str(error))


def of_queued(queued: QueuedError) -> Evidence:
    """Return an entry of the error queue of a Linux socket as evidence."""
    name = errno.errorcode.get(queued.errno)
    if queued.version is None:
        return Evidence("errno", errno=queued.errno, error=name, text=os.strerror(queued.errno) if name else None)
    return Evidence("icmp", queued.errno, name, queued.type, queued.code, queued.sender)


# --- what silence is worth -----------------------------------------------------------------------------------------

# A refusal proves the silence of ports that were probed at most so long before the refused one. This has to cover
# what is sent between two controls, and be short against the time after which a limit allows one more refusal: on
# Linux 1 s for IPv4, 0.1 s for IPv6.
PROOF_S = 0.01
CONTROL_EVERY = 64
LARGEST_GROUP = 1024
SMALLEST_GROUP = 4
FIRST_GROUP = 64
PAUSE_S = 1.0  # between groups, once a limit shows: Linux allows one more refusal by then
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 4.0
STOPPED_AFTER = 5  # groups in a row without any refusal, not even of a port that is known to be closed
# It is a rate limit, not packet loss or delay, when so many ports were silent first and refused later, and in so many
# groups in a row even the control was silent.
LIMIT_AFTER_LATE, LIMIT_AFTER_SILENT_CONTROLS = 3, 2


class Refusals:
    """The refusals of one host, and how many of its silent ports to probe together."""

    def __init__(self) -> None:
        self.control: tuple[int, str | None] | None = None  # a refused port, and the sender of the refusal
        self.have_stopped = False  # the host refused ports, and no longer does
        self.are_limited = False
        self.group_size = FIRST_GROUP
        self.pause_s = 0.0
        self.count = 0
        self._late = 0
        self._silent_controls = 0  # groups in a row
        self._without_refusal = 0  # groups in a row
        self._refused_at: deque[float] = deque(maxlen=4096)  # when the refused ports were probed; sorted

    @property
    def are_scarce(self) -> bool:
        """Whether some were missing lately: then one may have been allowed between a port and its proof."""
        return self.are_limited or self.pause_s > 0

    @property
    def are_expected(self) -> bool:
        """Whether the host refuses closed ports, so that silence can be compared with refusals."""
        return self.control is not None and not self.have_stopped

    def record(self, port: int, sender: str | None, by_target: bool, sent_at: float, was_silent: bool) -> None:
        """Record the refusal of a port that was probed at ``sent_at``.

        ``was_silent``: an earlier attempt was silent, without proof that the host could have refused it.
        """
        self.count += 1
        self.have_stopped = False
        if by_target or self.control is None:
            # The target's own refusals share one limit; those of a router have another, and prove nothing about these.
            if self.control is not None and self.control[1] != sender:
                self._refused_at.clear()
            self.control = (port, sender)
        if self.control[1] == sender:
            self._remember(sent_at)
        self._late += was_silent
        self._detect_limit()

    def prove(self, sent_at: float) -> bool:
        """Return whether the host could have refused a port that was probed at ``sent_at``."""
        index = bisect_left(self._refused_at, sent_at)
        return index < len(self._refused_at) and self._refused_at[index] <= sent_at + PROOF_S

    def adapt(self, size: int, refused: int, last_refused: int, unproven: int, any_refusal: bool) -> None:
        """Adapt the next group to the result of one.

        :param size: ports in the group, without controls
        :param refused: how many of the group were refused, controls included
        :param last_refused: position of the last refused one; controls that end the group have ``size`` + 1
        :param unproven: silent ports without proof
        :param any_refusal: whether any port of the host was refused since the group was sent
        """
        control_was_silent = unproven and last_refused <= size
        if control_was_silent:
            self._silent_controls += 1
        else:
            self._silent_controls = 0
        self._detect_limit()
        if any_refusal:
            self._without_refusal = 0
        else:
            self._without_refusal += 1
        self.have_stopped = self._without_refusal >= STOPPED_AFTER
        if not unproven:
            self.group_size = min(2 * max(size, self.group_size // 2), LARGEST_GROUP)
        elif refused:
            self.group_size = max((size + last_refused) // 2, SMALLEST_GROUP)
        self.pause_s = self._next_pause_s(refused, unproven)

    def _detect_limit(self) -> None:
        if self._late >= LIMIT_AFTER_LATE and self._silent_controls >= LIMIT_AFTER_SILENT_CONTROLS:
            self.are_limited = True

    def _next_pause_s(self, refused: int, unproven: int) -> float:
        """Return a pause that lets the host refuse one or two of the next group."""
        if not self.pause_s:
            return PAUSE_S if unproven else 0.0
        if not refused:
            return min(1.5 * self.pause_s, LONGEST_PAUSE_S)
        if refused == 1:
            return self.pause_s
        return max(0.75 * self.pause_s, SHORTEST_PAUSE_S)

    def _remember(self, sent_at: float) -> None:
        """Keep the times sorted; refusals may overtake one another."""
        if not self._refused_at or sent_at >= self._refused_at[-1]:
            self._refused_at.append(sent_at)
            return
        if len(self._refused_at) == self._refused_at.maxlen:
            self._refused_at.popleft()
        self._refused_at.insert(bisect_left(self._refused_at, sent_at), sent_at)
