"""What the silence of a UDP port is worth. Pure: times come in as arguments, in seconds.

A closed port is refused with an ICMP message, but hosts limit how many of those they send (RFC 1812 section 4.3.2.8,
RFC 4443 section 2.4 (f)): Linux by default 6 at once and then one a second to each peer over IPv4 (icmp(7),
net.ipv4.icmp_ratelimit). So that a silent port is either silent itself or was refused too late. ``Refusals`` tells the
two apart by a control: when a port that was asked after it, at almost the same moment, was refused, the host could
have refused this one as well, and did not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

# A port is proven silent by a refusal of one asked at most so much later. It has to cover what is sent between two
# controls, and be short against the time in which a limit allows one more refusal: Linux has 1 s for IPv4,
# 0.1 s for IPv6.
VOUCH_S = 0.01
CONTROL_EVERY = 64
LARGEST_GROUP = 1024
SMALLEST_GROUP = 4
FIRST_GROUP = 64
PAUSE_S = 1.0  # between groups, once a limit is met: Linux allows one more refusal by then
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 4.0
MUTE_AFTER = 5  # groups without any refusal, not even of a port known to be closed: the host refuses no more
# It is a limit, not lost or slow packets, when so many ports were silent first and refused later, and in so many
# groups one after the other even the control was silent.
LIMIT_AFTER_LATE, LIMIT_AFTER_STARVED = 3, 2


class Refusals:
    """What is known of the refusals of one host, and how many ports to ask at once therefore."""

    def __init__(self) -> None:
        self.control: tuple[int, str | None] | None = None  # a port that was refused, and who refused it
        self.mute = False  # it did refuse, and does no more
        self.limited = False
        self.group = FIRST_GROUP
        self.pause_s = 0.0
        self.count = 0
        self._late = 0
        self._starved = 0  # groups, in a row
        self._empty_groups = 0  # groups, in a row
        self._sent: deque[float] = deque(maxlen=4096)  # when the refused ports were asked; rising, mostly

    @property
    def are_scarce(self) -> bool:
        """Whether some were missing lately: then a further one may have come back between a port and its proof."""
        return self.limited or self.pause_s > 0

    @property
    def known(self) -> bool:
        """Whether the host refuses ports, so that silence can be compared with something."""
        return self.control is not None and not self.mute

    def heard(self, port: int, sender: str | None, by_target: bool, sent_at: float, was_silent: bool) -> None:
        """A port, asked at ``sent_at``, was refused; ``was_silent``: it had been asked before, in vain."""
        self.count += 1
        self.mute = False
        if by_target or self.control is None:
            # The target's own refusals share one limit; a router's have another, and prove nothing about these.
            if self.control is not None and self.control[1] != sender:
                self._sent.clear()
            self.control = (port, sender)
        if self.control[1] == sender:
            self._remember(sent_at)
        self._late += was_silent
        self._note_limit()

    def prove(self, sent_at: float) -> bool:
        """Whether a port asked at ``sent_at`` would have been refused, if the host wanted to."""
        at = bisect_left(self._sent, sent_at)
        return at < len(self._sent) and self._sent[at] <= sent_at + VOUCH_S

    def group_done(self, size: int, refused: int, reach: int, unproven: int, any_refusal: bool) -> None:
        """Adapt to what became of a group of ``size`` ports and a control.

        ``refused``: how many, the control among them; ``reach``: how many were asked until the last of these;
        ``unproven``: silent ports without a proof; ``any_refusal``: of whatever port since the group was asked.
        """
        self._starved = self._starved + 1 if unproven and reach <= size else 0
        self._note_limit()
        self._empty_groups = 0 if any_refusal else self._empty_groups + 1
        self.mute = self._empty_groups >= MUTE_AFTER
        if not unproven:
            self.group = min(2 * max(size, self.group // 2), LARGEST_GROUP)
        elif refused:
            self.group = max((size + reach) // 2, SMALLEST_GROUP)
        self.pause_s = self._next_pause(refused, unproven)

    def _note_limit(self) -> None:
        if self._late >= LIMIT_AFTER_LATE and self._starved >= LIMIT_AFTER_STARVED:
            self.limited = True

    def _next_pause(self, refused: int, unproven: int) -> float:
        """Neither so short that a group finds no refusal left, nor so long that some are left over."""
        if not self.pause_s:
            return PAUSE_S if unproven else 0.0
        if not refused:
            return min(1.5 * self.pause_s, LONGEST_PAUSE_S)
        return max(0.75 * self.pause_s, SHORTEST_PAUSE_S) if refused > 1 else self.pause_s

    def _remember(self, sent_at: float) -> None:
        """Keep the times in order; refusals may overtake one another."""
        if self._sent and sent_at < self._sent[-1]:
            if len(self._sent) == self._sent.maxlen:
                self._sent.popleft()
            self._sent.insert(bisect_left(self._sent, sent_at), sent_at)
        else:
            self._sent.append(sent_at)
