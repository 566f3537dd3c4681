"""What is known of the life of every VM that had a link here, in one of five words.

``alive``
    The link is up, something was heard within one and a half heartbeats, and the last
    heartbeat had nothing to complain of.
``busy``
    As ``alive``, but the last heartbeat told of a loop that was late by :data:`BUSY_LAG` or
    more.
``blocked``
    As ``alive``, but the last heartbeat told of a block: a time of a second or more during
    which the VM's loop stood still. It comes with the length, the function and the stack.
``silent``
    Nothing was heard for more than one and a half heartbeats, or the link is down; but
    something was heard within ``link.dead_after``.
``dead``
    Nothing was heard for ``link.dead_after``, or the VM is known to have ended.

Heard is any byte. Time in which this host did not run, or did not read that link, does not
count, and a host that starts counts anew. A VM whose loop is blocked cannot say so: it is
``silent``, perhaps ``dead``, and ``blocked`` once the loop runs again. What the last block was
stays known until the VM's process is another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, final, get_args

import attrs
import trio

from semibot.config import Deadlines
from semibot.observe.standstill import Standstill
from semibot.wire.codec import JsonObject
from semibot.wire.frames import BlockReport, VmHeartbeat

from .metrics import Metrics
from .vm_link import VmLink

BUSY_LAG: Final = 0.25
"""Lag of a VM's loop from which on it is busy, in seconds."""

BEATS: Final = 1.5
"""After how many heartbeats without a byte a VM is silent."""

MAX_TEXT: Final = 200
"""Characters of each function's name that are kept."""

Liveness: TypeAlias = Literal["alive", "busy", "blocked", "silent", "dead"]
"""How a VM does; see the module."""

STATES: Final[tuple[Liveness, ...]] = get_args(Liveness)
"""All of them, the best first."""


@attrs.define(eq=False, kw_only=True)
class Pulse:
    """What one user's VM has let this host know."""

    vm_id: str
    """Its row."""
    boot: str
    """Its process."""
    heard_at: float
    """When it was heard last, while no link is up."""
    link: VmLink | None = None
    """Its link, if one is up."""
    has_ended: bool = False
    """Whether it is known to have ended."""
    lag: float | None = None
    """How late its loop was before the last heartbeat, in seconds."""
    is_blocked: bool = False
    """Whether the last heartbeat told of a block."""
    block: BlockReport | None = None
    """The last block that it told of, fit to be shown."""
    block_at: float = 0.0
    """When it did."""


@final
class Pulses:
    """The pulses of all VMs that had a link here, one for each user.

    Args:
        standstill: When this host stood still.
        deadlines: ``link.heartbeat`` and ``link.dead_after``.
        metrics: Counts blocks, and shows lags.
    """

    def __init__(self, standstill: Standstill, deadlines: Deadlines, metrics: Metrics) -> None:
        self._standstill = standstill
        self._deadlines = deadlines
        self._metrics = metrics
        self._pulses: dict[str, Pulse] = {}

    # --- what happens -----------------------------------------------------------------

    def expect(self, user_id: str, vm_id: str) -> None:
        """Begin to wait for a VM that had a link to an earlier host."""
        now = trio.current_time()
        self._pulses.setdefault(user_id, Pulse(vm_id=vm_id, boot="", heard_at=now))

    def link_up(self, link: VmLink) -> None:
        """Note a link that was accepted; it takes the place of an older one."""
        known = self._pulses.get(link.user_id)
        pulse = Pulse(vm_id=link.vm.id, boot=link.boot, heard_at=trio.current_time(), link=link)
        if known is not None and (known.vm_id, known.boot) == (pulse.vm_id, pulse.boot):
            pulse.block, pulse.block_at = known.block, known.block_at
        self._pulses[link.user_id] = pulse

    def link_down(self, link: VmLink) -> None:
        """Note that a link has ended; an older one than the user's present changes nothing."""
        pulse = self._pulses.get(link.user_id)
        if pulse is None or pulse.link is not link:
            return
        pulse.heard_at, pulse.link = link.heard(trio.current_time()), None
        pulse.lag = None
        self._metrics.vm_loop_lag_seconds.remove(user_id=link.user_id)

    def lost(self, vm_id: str, user_id: str) -> None:
        """Note that a VM was given up."""
        pulse = self._pulses.get(user_id)
        if pulse is not None and pulse.vm_id == vm_id:
            pulse.has_ended = True

    def beat(self, link: VmLink, frame: VmHeartbeat) -> None:
        """Note what a heartbeat says."""
        pulse = self._pulses.get(link.user_id)
        if pulse is None or pulse.link is not link:
            return
        pulse.is_blocked = frame.blocked is not None
        if frame.lag_ms is not None:
            pulse.lag = max(0.0, frame.lag_ms / 1000)
            self._metrics.vm_loop_lag_seconds.set(pulse.lag, user_id=link.user_id)
        if frame.blocked is not None:
            pulse.block, pulse.block_at = _cleaned(frame.blocked), trio.current_time()
            self._metrics.vm_blocks_total.inc()
            self._metrics.vm_blocked_seconds_total.inc(pulse.block.seconds)

    # --- what is known ----------------------------------------------------------------

    def state(self, user_id: str) -> Liveness | None:
        """Return how a user's VM does; None if none had a link here."""
        pulse = self._pulses.get(user_id)
        return None if pulse is None else self._judge(pulse, trio.current_time())

    def describe(self, user_id: str, vm_id: str) -> JsonObject | None:
        """Return ``liveness`` of ``GET /api/v1/vm/status``; None if that VM had no link here."""
        pulse = self._pulses.get(user_id)
        if pulse is None or pulse.vm_id != vm_id:
            return None
        now = trio.current_time()
        block: JsonObject | None = None
        if pulse.block is not None:
            block = {
                "seconds": pulse.block.seconds,
                "where": pulse.block.where,
                "stack": list(pulse.block.stack),
                "toldMsAgo": _ms(now - pulse.block_at),
            }
        return {
            "state": self._judge(pulse, now),
            "heardMsAgo": _ms(self._quiet_for(pulse, now)),
            "lagMs": None if pulse.lag is None else _ms(pulse.lag),
            "block": block,
        }

    def counts(self) -> Mapping[str, int]:
        """Return how many VMs are in each state."""
        now = trio.current_time()
        found = Counter(self._judge(pulse, now) for pulse in self._pulses.values())
        return {state: found[state] for state in STATES}

    def _quiet_for(self, pulse: Pulse, now: float) -> float:
        self._standstill.look(now)
        heard_at = pulse.heard_at if pulse.link is None else pulse.link.heard(now)
        return max(0.0, now - heard_at - self._standstill.missed(heard_at))

    def _judge(self, pulse: Pulse, now: float) -> Liveness:
        quiet_for = self._quiet_for(pulse, now)
        if pulse.has_ended or quiet_for >= self._deadlines.link_dead_after:
            return "dead"
        if pulse.link is None or quiet_for > BEATS * self._deadlines.link_heartbeat:
            return "silent"
        if pulse.is_blocked:
            return "blocked"
        return "busy" if pulse.lag is not None and pulse.lag >= BUSY_LAG else "alive"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _cleaned(block: BlockReport) -> BlockReport:
    """Return what a VM says of a block, fit to be shown in a terminal."""
    return BlockReport(
        seconds=round(max(0.0, block.seconds), 3),
        where=_printable(block.where),
        stack=tuple(_printable(line) for line in block.stack),
    )


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:MAX_TEXT])
