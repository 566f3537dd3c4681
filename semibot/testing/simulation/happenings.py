"""What the parts of a simulation tell its invariants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import attrs

from semibot.wire.sse import EventId

from .frames import Frame

if TYPE_CHECKING:
    from .links import Link
    from .lives import Life
    from .readers import Reader


@attrs.frozen(kw_only=True)
class Read:
    """Somebody was shown an event."""

    who: str
    """Who it was."""
    session_id: str
    """Whose event it is."""
    id: EventId
    """Its id."""
    name: str
    """Its name in the event stream."""
    event: Mapping[str, object]
    """What it says."""
    reader: Reader | None = None
    """The reader who follows the session; None if it was the answer to a POST."""


@attrs.frozen(kw_only=True)
class RunRead:
    """The answer to a POST showed an event of its run."""

    run_id: str
    """The run."""
    before: EventId | None
    """The event it showed before; None if this is the first, or follows a ``resync``."""
    has_ended: bool
    """Whether it had shown the run's end before."""
    id: EventId
    """The event's id."""
    event: Mapping[str, object]
    """What it says."""


@attrs.frozen(kw_only=True)
class Said:
    """A peer put frames on a link."""

    link: Link
    """The link."""
    is_from_host: bool
    """Who said it."""
    frames: Sequence[Frame]
    """What it said."""


@attrs.frozen(kw_only=True)
class Dialled:
    """A VM began to dial."""

    machine: str
    """Which life of which VM."""


@attrs.frozen(kw_only=True)
class RunBegins:
    """An adapter was given a run."""

    run_id: str
    """The run."""
    life: Life
    """The VM."""


@attrs.frozen(kw_only=True)
class RunWorks:
    """Something is done for a run, by its adapter or by a program that this has started."""

    run_id: str
    """The run."""
    life: Life
    """The VM."""


@attrs.frozen(kw_only=True)
class RunRests:
    """An adapter has left a run."""

    run_id: str
    """The run."""
    life: Life
    """The VM."""


@attrs.frozen(kw_only=True)
class CancelAnswered:
    """A receipt came."""

    session_id: str
    """The session."""
    asked: str | None
    """The run that was to be cancelled; None means the one under way."""
    receipt: Mapping[str, object]
    """What it says."""


@attrs.frozen(kw_only=True)
class CancelPending:
    """A cancel was answered without a receipt: the run had not stopped in time."""

    run_id: str
    """The run."""
    since: float
    """When the cancel was asked for, on Trio's clock."""


@attrs.frozen(kw_only=True)
class Posted:
    """A POST was answered with a run."""

    session_id: str
    """The session."""
    run_id: str
    """The run."""
    key: str
    """Its idempotency key."""


@attrs.frozen(kw_only=True)
class Asked:
    """An adapter asks its host something."""

    number: int
    """Counts what is asked."""
    life: Life
    """The VM."""


@attrs.frozen(kw_only=True)
class Answered:
    """Somebody who asked knows the outcome, or does not wait any more."""

    number: int
    """What was asked."""


@attrs.frozen(kw_only=True)
class Stopping:
    """A process is asked to stop."""

    life: Life
    """The process."""


@attrs.frozen(kw_only=True)
class Killed:
    """A process was killed."""

    life: Life
    """The process."""


@attrs.frozen(kw_only=True)
class Ended:
    """Nothing of a process is left: all its tasks should be gone."""

    life: Life
    """The process."""


@attrs.frozen(kw_only=True)
class Tick:
    """A second has passed."""


@attrs.frozen(kw_only=True)
class Finished:
    """Everything has been said, read and stopped."""


Happening: TypeAlias = (
    Read
    | RunRead
    | Said
    | Dialled
    | RunBegins
    | RunWorks
    | RunRests
    | CancelAnswered
    | CancelPending
    | Posted
    | Asked
    | Answered
    | Stopping
    | Killed
    | Ended
    | Tick
    | Finished
)
"""All of them."""
