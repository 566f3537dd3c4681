"""The answer to a cancel: what was stopped and what was abandoned (protocol section 6)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

from semibot.wire.events import Usage

Outcome: TypeAlias = Literal["completed", "cancelled", "timeout", "failed", "interrupted"]
"""How a run ended (protocol section 5)."""

ActivityKind: TypeAlias = Literal[
    "adapter", "model_call", "tool_call", "thread", "child", "sub_run"
]
"""What kind of thing a run has under way."""


@attrs.frozen(kw_only=True)
class ActivityRecord:
    """One thing that a run had under way."""

    kind: ActivityKind
    """What it is."""
    id: str
    """Identifier within the run."""
    name: str
    """Tool, model or program, for people."""
    effect: str | None = None
    """Last known effect on the world; None if none is known."""
    pid: int | None = None
    """Process id of a child."""
    seconds: float
    """How long it had been under way, in seconds."""


@attrs.frozen(kw_only=True)
class Receipt:
    """What a cancel did. After it nothing of the run appears except what it lists."""

    run_id: str | None
    """The run; None if the session was idle."""
    outcome: Outcome | None = None
    """How the run ended."""
    reason: str | None = None
    """Why it was cancelled."""
    started: bool | None = None
    """False if the run was cancelled before its turn came."""
    already: bool | None = None
    """True if there was nothing to cancel any more."""
    stopped: tuple[ActivityRecord, ...] = ()
    """What was under way and is gone."""
    abandoned: tuple[ActivityRecord, ...] = ()
    """What could not be stopped; its results are discarded."""
    usage: Usage = Usage()
    """Tokens spent by the run."""
    seconds: float = 0.0
    """From the cancel to this receipt, in seconds."""
