"""What must be true of a simulation, at all times: one table of named invariants.

An invariant is told what happens, as far as it wants to know, and calls ``world.violate`` with
its own name. Each can be left out by name, so that a test can see which of them finds a bug.
Names without a class here are checked where they can be seen; :data:`PROMISES` lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from .happenings import Happening
from .judging_links import (
    AnsweredInTime,
    HalfOpenNoticed,
    HeartbeatsGoOn,
    NoHotLoop,
    OneLink,
)
from .judging_readers import Gapless, OneMeaning, OneTerminal, OwnCheck, SameForAll, SameView
from .judging_runs import CancelWorks, EpochsRise, RunsGoOn
from .judging_work import AcknowledgedIsStored, NoStrayTask, Once, SilentAfterReceipt

if TYPE_CHECKING:
    from .world import World


class Invariant(Protocol):
    """One thing that must be true."""

    name: ClassVar[str]
    """What violations are called, and ``--without`` leaves out."""
    wants: ClassVar[tuple[type, ...]]
    """The happenings that it is told."""

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        ...


INVARIANTS: Final[Mapping[str, Callable[[World], Invariant]]] = {
    "gapless": Gapless,
    "one_meaning": OneMeaning,
    "one_terminal": OneTerminal,
    "same_for_all": SameForAll,
    "same_view": SameView,
    "acknowledged_is_stored": AcknowledgedIsStored,
    "silent_after_receipt": SilentAfterReceipt,
    "once": Once,
    "no_stray_task": NoStrayTask,
    "heartbeats_go_on": HeartbeatsGoOn,
    "half_open_noticed": HalfOpenNoticed,
    "one_link": OneLink,
    "answered_in_time": AnsweredInTime,
    "no_hot_loop": NoHotLoop,
    "own_check": OwnCheck,
    "runs_go_on": RunsGoOn,
    "cancel_works": CancelWorks,
    "epochs_rise": EpochsRise,
}
"""What makes each of them."""

PROMISES: Final[Mapping[str, str]] = {
    "gapless": "what a reader is shown has no gap and no duplicate; it may jump by resync only",
    "one_meaning": "no event id means two things, on links, for readers or in the store",
    "one_terminal": "a run has exactly one terminal event, and it is the run's last event",
    "same_for_all": "in the end every reader was shown what is stored",
    "same_view": "what a page shows after resync is the conversation that is stored",
    "acknowledged_is_stored": "what a host acknowledged is stored, then and after every crash",
    "silent_after_receipt": "after a receipt nothing works on the run that it does not list",
    "once": "a message makes one run, a run is begun once, and a report counts once",
    "no_stray_task": "every task of a process is below its outermost one, and ends with it",
    "heartbeats_go_on": "a VM says a heartbeat every 10 s while its link is up",
    "half_open_noticed": "either end gives up a link that is silent for 31 s",
    "one_link": "a VM has one live link; of an older one nothing is heard any more",
    "answered_in_time": "who asks a host gets an outcome within the deadline",
    "no_hot_loop": "a VM that cannot connect waits in between, and never in step",
    "keeps_strangers_out": "what has expired, or another has used up, lets nobody in",
    "runs_go_on": "a run that a VM has begun is interrupted only if the VM is lost or stopped",
    "cancel_works": "a cancel or a deletion ends its run at once, and no other run",
    "epochs_rise": "every link that is let in has a greater epoch than those before it",
    "own_check": "whoever simulates finds nothing wrong with any answer",
    "settles": "5 minutes after the last fault everything is delivered and every run has ended",
    "nothing_left": "a process that ended has closed its connections",
    "no_failure": "no error but those of the faults: no crash, no 5xx, no ERROR in a log",
    "too_small": "there were at least 3 sessions, 5 runs, 200 events and 2 readers",
    "comes_to_an_end": "it ended before its caps on simulated time and on what may happen",
    "within_limits": "it did not keep this machine busy for longer than it may",
}
"""What each of them says."""


def watching(world: World, without: frozenset[str]) -> Mapping[type, list[Invariant]]:
    """Return which invariants want to be told what.

    Args:
        world: What they look at.
        without: Names of those that are left out.
    """
    found: dict[type, list[Invariant]] = {}
    for name, make in INVARIANTS.items():
        if name not in without:
            invariant = make(world)
            for kind in invariant.wants:
                found.setdefault(kind, []).append(invariant)
    return found


def check_names(names: Iterable[str]) -> frozenset[str]:
    """Return the names as a set.

    Raises:
        ValueError: If one is not in :data:`PROMISES`.
    """
    unknown = set(names) - set(PROMISES)
    if unknown:
        raise ValueError(f"no such invariants: {', '.join(sorted(unknown))}")
    return frozenset(names)
