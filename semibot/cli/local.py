"""Chat with an agent in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import final

import attrs

from semibot.errors import CursorExpired
from semibot.ports import Ports
from semibot.session import Cursor, JournalEntry, Run, Session, open_session
from semibot.wire.receipts import Receipt

from .runtimes import RUNTIMES, Runtime
from .talk import ChatOptions


@asynccontextmanager
async def open_local_partner(options: ChatOptions, ports: Ports) -> AsyncGenerator[LocalPartner]:
    """Open a session for the length of the block.

    Args:
        options: What the user asked for.
        ports: The seams.

    Raises:
        SemibotError: If there can be no session, or it broke.
    """
    runtime = await RUNTIMES[options.runtime](ports, options.model, options.grants)
    async with open_session(
        runtime.adapter,
        workspace=options.workspace,
        session_id=options.session_id,
        payload=runtime.payload,
        ports=ports,
    ) as session:
        yield LocalPartner(options, runtime, session)


@final
@attrs.frozen
class LocalPartner:
    """An open session that answers."""

    _options: ChatOptions
    _runtime: Runtime
    _session: Session

    def introduction(self) -> str:
        """Return who it is, where it works and what it may do."""
        grants = ", ".join(self._options.grants) or "none"
        return (
            f"{self._options.runtime} with {self._runtime.model} in {self._session.workspace}, "
            f"session {self._session.id}, grants: {grants}"
        )

    @asynccontextmanager
    async def ask(self, message: str) -> AsyncGenerator[LocalAnswer]:
        """Run the agent once."""
        after = self._session.statistics().next_seq - 1
        async with self._session.run(message) as run:
            yield LocalAnswer(self._session, run, self._session.cursor(after=after))


@final
@attrs.define(eq=False)
class LocalAnswer:
    """A run of the session, as it goes on."""

    _session: Session
    _run: Run
    _cursor: Cursor

    @property
    def receipt(self) -> Receipt | None:
        """What was stopped, if the run was, and has ended."""
        return self._run.receipt

    async def next_entry(self) -> JournalEntry:
        """Return the next event; see :class:`~semibot.cli.talk.Answer`."""
        try:
            return await self._cursor.__anext__()
        except CursorExpired as exc:
            self._cursor = self._session.cursor(after=exc.oldest - 1)
            raise
        except StopAsyncIteration:
            raise AssertionError("the session closed while its block was open") from None

    async def cancel(self, reason: str = "user_cancelled") -> object:
        """Stop the run, and wait until it has ended."""
        return await self._run.cancel(reason)

    def interrupt(self, reason: str) -> None:
        """Ask the run to stop because this program ends."""
        self._run.interrupt(reason)
