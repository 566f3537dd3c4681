"""What a session remembers between runs, and when it is saved.

A checkpoint is written twice per run: before ``run_started`` is said, so that a question
that anyone saw is never lost, and before the terminal event is said, so that an answer
that anyone saw is never lost either. The second replaces the first.
"""

from __future__ import annotations

import threading
from typing import Final, final

from semibot.config import Deadlines
from semibot.errors import DeadlineExceeded, StoreError
from semibot.lifetimes import deadline
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject
from semibot.workspace.checkpoints import Checkpoint, CheckpointStatus, checkpoint_id
from semibot.workspace.state import SessionState

from .execution import Execution
from .run import ActiveRun

log: Final = get_logger(__name__)


@final
class Conversation:
    """The history of one session, in memory and on disk.

    Args:
        state: The session's open directory.
        ports: The seams.
        deadlines: The bounds.
        adapter_kind: What the adapter is made by; only its own state is given back.
    """

    def __init__(
        self, state: SessionState, ports: Ports, deadlines: Deadlines, *, adapter_kind: str
    ) -> None:
        self._state = state
        self._ports = ports
        self._deadlines = deadlines
        newest = state.newest
        self._history: tuple[Message, ...] = () if newest is None else newest.history
        self._memory_bytes = 0 if newest is None else newest.memory_bytes
        self._adapter_kind = adapter_kind
        self._snapshot: JsonObject | None = None
        if newest is not None and newest.adapter is not None:
            if newest.adapter_kind == adapter_kind:
                self._snapshot = newest.adapter
            else:
                log.warning("another adapter's state is left out", kind=newest.adapter_kind)
        self._newest = newest
        self._running: Checkpoint | None = None

    @property
    def newest(self) -> Checkpoint | None:
        """What is on disk, or None if nothing is yet."""
        return self._newest

    @property
    def history(self) -> tuple[Message, ...]:
        """Every message so far, oldest first."""
        return self._history

    @property
    def snapshot(self) -> JsonObject | None:
        """What the adapter wants back when the session is opened again."""
        return self._snapshot

    async def begin(self, run: Execution, covers_seq: int) -> tuple[Message, ...]:
        """Add the question, durably, and return the history before it.

        Args:
            run: The run that begins.
            covers_seq: Number that its ``run_started`` will have.

        Raises:
            StoreError: If it could not be saved; the conversation is unchanged.
        """
        question = Message(role="user", content=run.message)
        before = run.given_history or self._history
        if run.given_history and before[-1] == question:
            before = before[:-1]
        self._running = await self._save(
            run, "running", covers_seq, (*before, question), (question,)
        )
        return before

    async def finish(
        self, run: Execution, active: ActiveRun, snapshot: JsonObject | None, covers_seq: int
    ) -> None:
        """Add what the run leaves behind, durably.

        Args:
            run: The run, which has settled.
            active: Its adapter's side, with what is to be remembered.
            snapshot: The adapter's state; None keeps the earlier one.
            covers_seq: Number that the terminal event will have.

        Raises:
            StoreError: If it could not be saved; memory keeps what disk has.
        """
        added = active.remembered
        if not added and run.text:
            added = (Message(role="assistant", content=run.text),)
        if snapshot is not None:
            self._snapshot = snapshot
        replaces, self._running = self._running, None
        await self._save(
            run, run.expected_outcome, covers_seq, (*self._history, *added), added, replaces
        )

    async def _save(
        self,
        run: Execution,
        status: CheckpointStatus,
        covers_seq: int,
        history: tuple[Message, ...],
        added: tuple[Message, ...],
        replaces: Checkpoint | None = None,
    ) -> Checkpoint:
        checkpoint = Checkpoint(
            id=checkpoint_id(self._state.term, covers_seq),
            session_id=self._state.session_id,
            term=self._state.term,
            covers_seq=covers_seq,
            run_id=run.id,
            status=status,
            history=history,
            last_user_message=run.message,
            memory_bytes=self._memory_bytes,
            updated_at=self._ports.wall_clock.now().isoformat(timespec="milliseconds"),
            adapter_kind=self._adapter_kind,
            adapter=self._snapshot,
        )
        is_abandoned = threading.Event()
        try:
            with deadline("session.save", self._deadlines.session_save):
                kept = await self._ports.threads.run_sync(
                    self._state.save,
                    checkpoint,
                    added,
                    replaces,
                    is_abandoned,
                    limiter="files",
                    abandon_on_cancel=True,
                )
        except DeadlineExceeded as exc:
            raise StoreError(f"the disk did not answer: {exc}") from exc
        except StoreError:
            raise
        except Exception as exc:  # no thread to be had, a value that cannot be written
            raise StoreError(f"cannot save the conversation: {type(exc).__name__}") from exc
        finally:
            is_abandoned.set()
        self._history = history
        self._memory_bytes = kept.memory_bytes
        self._newest = kept
        return kept
