"""Invariants of the links between VMs and host."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, ClassVar, Final, final

import trio

from semibot.wire.frames import ErrorFrame

from .happenings import Answered, Asked, Dialled, Happening, Said, Tick
from .lives import Life
from .pipes import End

if TYPE_CHECKING:
    from .links import Link
    from .world import World

BEAT_WITHIN: Final = 11.0
"""Longest time between two heartbeats of a VM, in seconds: 10, and one that the words before it
may take on a slow network."""

NOTICED_WITHIN: Final = 31.0
"""Longest silence until an end gives a link up, in seconds."""

CLOSED_WITHIN: Final = 10.0
"""What saying goodbye may take where nothing goes out any more, in seconds: a VM's end waits for
``channel.close`` (5 s), and the host's server for ``http.stall_timeout`` (10 s)."""

REPLACED_WITHIN: Final = 8.0
"""Longest that a host keeps a link after it let in the VM's next one, in seconds."""

ANSWERED_WITHIN: Final = 61.0
"""Longest that a request takes, in seconds: ``channel.request`` is 60."""

MOST_DIALS: Final = 12
"""Most dials of one VM in :data:`DIALS_WITHIN`."""

DIALS_WITHIN: Final = 5.0
"""See :data:`MOST_DIALS`; in seconds. Full jitter makes more of them a miracle."""

SAME_PAUSES: Final = 5
"""So many pauses in a row that are as good as the same are no jitter."""


@final
class HeartbeatsGoOn:
    """A VM says a heartbeat every 10 s while its link is up."""

    name: ClassVar[str] = "heartbeats_go_on"
    wants: ClassVar[tuple[type, ...]] = (Tick,)

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: set[int] = set()

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        now = trio.current_time()
        for link in self._world.links:
            end = link.connection.client
            life = self._world.life_of(end.machine)
            if link.live_at is None or end.is_closed or link.vm_closed_at is not None:
                continue
            if life is None or not life.is_alive or life.is_frozen or not life.is_link_up():
                continue
            if end.out.room <= 0:
                continue
            # A frozen VM says nothing; neither does one whose words the network does not take.
            since = max(link.live_at, link.beat_at or 0.0, life.thawed_at, end.out.full_at)
            if now - since > BEAT_WITHIN and link.connection.number not in self._told:
                self._told.add(link.connection.number)
                self._world.violate(
                    self.name, f"{life.name} says no heartbeat for {now - since:.1f} s"
                )


@final
class HalfOpenNoticed:
    """Either end gives up a link that is silent for 31 s."""

    name: ClassVar[str] = "half_open_noticed"
    wants: ClassVar[tuple[type, ...]] = (Tick,)

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: set[End] = set()

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        now = trio.current_time()
        for link in self._world.links:
            for end, goodbye in (
                (link.connection.client, link.vm_closed_at),
                (link.connection.server, link.host_closed_at),
            ):
                # Before that the time for `auth` and `resume` bounds it.
                silence = now - max(self._heard_at(end), link.live_at or 0.0)
                says_goodbye = end.out.room > 0 and not end.out.is_refused
                limit = NOTICED_WITHIN + (0.0 if says_goodbye else CLOSED_WITHIN)
                if goodbye is None and silence > limit and end not in self._told:
                    self._told.add(end)
                    self._world.violate(
                        self.name,
                        f"{end.machine.name} hears nothing on {end.into.name}"
                        f" for {silence:.1f} s and does not mind",
                    )

    def _heard_at(self, end: End) -> float:
        """Return when an end last heard something, or had an excuse not to."""
        life = self._world.life_of(end.machine)
        if end.is_closed or life is None or not life.is_alive or life.is_frozen:
            return math.inf
        if end.listening_since is None or end.into.has_arrived:
            return math.inf  # it does not listen now: it has too much to do
        return max(end.opened_at, end.into.received_at, end.listening_since, life.thawed_at)


@final
class OneLink:
    """A VM has one live link; of an older one nothing is heard any more."""

    name: ClassVar[str] = "one_link"
    wants: ClassVar[tuple[type, ...]] = (Said, Tick)

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: set[int] = set()

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case Said(is_from_host=True, link=link, frames=frames):
                if all(isinstance(frame, ErrorFrame) for frame in frames):
                    return
                if self._replaced_at(link) < math.inf:
                    self._violate(link, f"the host still says {frames[0].type}")
            case Tick():
                now = trio.current_time()
                for link in self._world.links:
                    late = now - self._replaced_at(link)
                    if late > REPLACED_WITHIN and not link.connection.server.is_closed:
                        self._violate(link, f"the host keeps it open for {late:.1f} s")
            case _:
                pass

    def _violate(self, link: Link, text: str) -> None:
        if link.connection.number not in self._told:
            self._told.add(link.connection.number)
            self._world.violate(
                self.name, f"{link.vm} has a newer link than {link.connection.number}, but {text}"
            )

    def _replaced_at(self, link: Link) -> float:
        """Return when the same host let in a newer link of the VM; never is infinite."""
        life = self._world.life_of(link.connection.client.machine)
        if life is None or link.init_at is None or link.connection.server.machine.is_dead:
            return math.inf
        return min(
            (
                each.init_at
                for each in self._world.links
                if each.init_at is not None
                and each.init_at > link.init_at
                and each.connection.server.machine is link.connection.server.machine
                and self._world.kind_of(each.connection.client.machine) == life.kind
            ),
            default=math.inf,
        )


@final
class AnsweredInTime:
    """Who asks a host gets an outcome within the deadline."""

    name: ClassVar[str] = "answered_in_time"
    wants: ClassVar[tuple[type, ...]] = (Asked, Answered, Tick)

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: dict[int, tuple[float, Life]] = {}

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case Asked(number=number, life=life):
                self._waiting[number] = (trio.current_time(), life)
            case Answered(number=number):
                self._waiting.pop(number, None)
            case Tick():
                now = trio.current_time()
                for number, (since, life) in tuple(self._waiting.items()):
                    if not life.is_alive:
                        del self._waiting[number]
                    # Who stood still gets the outcome at once when it goes on.
                    elif (
                        not life.is_frozen
                        and now - max(life.thawed_at, since) > 1
                        and (now - since > ANSWERED_WITHIN)
                    ):
                        del self._waiting[number]
                        self._world.violate(
                            self.name, f"{life.name} waits for an answer for {now - since:.1f} s"
                        )
            case _:
                pass


@final
class NoHotLoop:
    """A VM that cannot connect waits in between, and never in step."""

    name: ClassVar[str] = "no_hot_loop"
    wants: ClassVar[tuple[type, ...]] = (Dialled, Said)

    def __init__(self, world: World) -> None:
        self._world = world
        self._dials: dict[str, list[float]] = {}

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case Said(is_from_host=True, link=link):
                self._dials.pop(link.vm, None)  # it got through
            case Dialled(machine=machine):
                dials = self._dials.setdefault(machine, [])
                dials.append(trio.current_time())
                self._check(machine, dials)
            case _:
                pass

    def _check(self, machine: str, dials: list[float]) -> None:
        recent = [when for when in dials if when > dials[-1] - DIALS_WITHIN]
        if len(recent) > MOST_DIALS:
            self._world.violate(self.name, f"{machine} dials {len(recent)} times in 5 s")
            dials.clear()
            return
        pauses = [after - before for before, after in itertools.pairwise(dials)]
        last = pauses[-SAME_PAUSES:]
        if len(last) == SAME_PAUSES and all(map(_is_round, last)):
            shown = ", ".join(f"{pause:.2f}" for pause in last)
            self._world.violate(self.name, f"{machine} dials without jitter, after {shown} s")
            dials.clear()


def _is_round(pause: float) -> bool:
    """Return whether a pause, a dial included, is as long as without jitter."""
    whole = min(2.0 ** round(math.log2(max(pause, 0.01))), 30.0)
    return whole - 0.001 <= pause <= whole + 0.05
