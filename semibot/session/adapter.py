"""What drives runs: the interface between a session and an adapter.

An adapter is a scope. The session enters it when it opens and leaves it when it closes;
in between it calls :meth:`Adapter.handle` once per run, one at a time. Cancelling is not
a method: it is the cancellation of the scope that ``handle`` runs in.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeAlias

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import UsageError
from semibot.ports import Ports
from semibot.tools.calls import Recorder
from semibot.tools.paths import ConfinedDirectory
from semibot.wire.codec import JsonObject, JsonValue
from semibot.workspace.skills import Skill

from .run import ActiveRun


class ControlPlane(Protocol):
    """Who answers requests that an adapter passes on (protocol section 4, "Requests")."""

    async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
        """Answer one request.

        Raises:
            RequestFailed: If it cannot be answered; its code goes to the asker.
        """
        ...

    async def fire_and_forget(self, session_id: str, method: str, params: JsonObject) -> None:
        """Take one report.

        Raises:
            RequestFailed: If it is refused.
        """
        ...


@attrs.frozen(kw_only=True)
class AdapterContext:
    """What a session gives its adapter."""

    session_id: str
    """The session."""
    workspace: Path
    """The directory that the agent works in; absolute."""
    files: ConfinedDirectory
    """The same directory for tools, without a way out."""
    nursery: trio.Nursery
    """For the adapter's background tasks; it ends before the session's own."""
    ports: Ports
    """The seams."""
    deadlines: Deadlines
    """The bounds."""
    payload: JsonObject
    """What started the session: ``agent_config``, ``skill_index`` and the like; may be empty."""
    snapshot: JsonObject | None
    """What :meth:`Adapter.get_snapshot` returned for the newest checkpoint, or None."""
    skills: tuple[Skill, ...]
    """Skills on offer; those whose requirements are not met are not among them."""
    control_plane: ControlPlane
    """Who answers requests."""
    record: Recorder
    """Where the gate's decisions are recorded."""
    keep_result: Callable[[str, str], Awaitable[str]]
    """Stores a result that is too large for an event; returns its path for tools."""


class Adapter(abc.ABC):
    """Base class of adapters."""

    @abc.abstractmethod
    async def handle(self, run: ActiveRun) -> None:
        """Drive *run* to its end: emit events, then call ``run.complete`` or ``run.fail``.

        It runs inside the run's cancel scope, with the run's deadline, for one run at a
        time; only one that did not stop in ``run.cancel_grace`` is left behind while the
        next begins. An exception fails the run with ``ADAPTER_ERROR`` (or the
        code of a :exc:`~semibot.errors.SemibotError`); returning without an end fails
        it with ``ADAPTER_NO_OUTCOME``. The session lives on in both cases.

        Args:
            run: The run.
        """

    async def update_config(self, patch: JsonObject) -> None:
        """Take a change of configuration; called between runs only.

        Args:
            patch: The fields that change.

        Raises:
            UsageError: If the adapter has nothing to configure, as by default.
        """
        raise UsageError(f"{type(self).__name__} has no configuration that can change")

    async def get_snapshot(self) -> JsonObject | None:
        """Return what the next opening of this session needs, or None.

        Called after each run, under the deadline ``session.save``.
        """
        return None


AdapterFactory: TypeAlias = Callable[[AdapterContext], AbstractAsyncContextManager[Adapter]]
"""Makes the scope that a session enters."""
