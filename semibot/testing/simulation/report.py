"""How a simulation went."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class Violation:
    """Something that must never be, and was."""

    seed: int
    """Of the simulation."""
    invariant: str
    """What is violated; see :data:`~semibot.testing.simulation.PROMISES`."""
    at: float
    """When, in simulated seconds."""
    text: str
    """What was found."""
    command: str
    """Shows it again."""


@attrs.frozen(kw_only=True)
class SimulationReport:
    """How one seed went."""

    seed: int
    """Decided everything."""
    violations: tuple[Violation, ...]
    """What must never be, and was; empty if all is well."""
    trace: str
    """Hash of all that happened; the same seed gives the same one."""
    happenings: int
    """How many things happened."""
    faults: Mapping[str, int]
    """How often each kind of fault hit."""
    sessions: int
    """Conversations that there were."""
    runs: int
    """Runs that there were."""
    events: int
    """Events that somebody was shown, each counted once."""
    readers: int
    """Readers who came and went."""
    simulated_seconds: float
    """How long it took on the clock of the simulation, in seconds."""
    seconds: float
    """How long it really took, in seconds."""
