"""What an open session is made of, for those who drive one: a block, or a host's commands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import LocalProtocolError, UsageError
from semibot.observe.watchdog import Watchdog
from semibot.ports import Ports
from semibot.wire.chat import Message
from semibot.wire.codec import MAX_DEPTH, JsonObject, check_json, unstructure
from semibot.workspace.state import SessionState

from .conductor import Conductor
from .conversation import Conversation
from .execution import Execution
from .hosting import AdapterHost
from .journal import Journal


@final
@attrs.frozen(kw_only=True)
class SessionCore:
    """The parts of an open session. Made by :func:`~semibot.session.opening.open_core`."""

    workspace: Path
    """The directory that the agent works in; absolute."""
    state: SessionState
    """The session's directory."""
    journal: Journal
    """Where events go."""
    conversation: Conversation
    """What it remembers."""
    conductor: Conductor
    """Who takes its runs in order."""
    host: AdapterHost
    """Who holds its adapter."""
    ports: Ports
    """The seams."""
    deadlines: Deadlines
    """The bounds."""
    watchdog: Watchdog
    """Who watches the event loop."""

    def make_run(
        self,
        message: str,
        *,
        metadata: JsonObject | None,
        history: tuple[Message, ...] | None,
        budget: float,
    ) -> Execution:
        """Return a run for *message*, not yet admitted.

        Args:
            message: What to ask; not blank.
            metadata: Goes to the adapter as it is.
            history: The conversation so far as the caller knows it, or None.
            budget: What is left of somebody else's deadline, in seconds.

        Raises:
            UsageError: If the message is blank, or something is no JSON data.
        """
        if not message.strip():
            raise UsageError("the message is blank")
        if math.isnan(budget):
            raise UsageError("the budget is not a number of seconds")
        try:
            check_json([message, metadata or {}, unstructure(history or ())], MAX_DEPTH)
        except LocalProtocolError as exc:
            raise UsageError(f"the message cannot be kept: {exc}") from None
        return Execution(
            id=self.ports.ids.new_id(),
            message=message,
            message_id=self.ports.ids.new_id(),
            metadata=metadata or {},
            given_history=history,
            expires_at=trio.current_time() + budget,
            journal=self.journal,
        )
