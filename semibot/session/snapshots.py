"""Snapshots: what a host keeps of a session, so that another VM can continue it.

A snapshot is the session's newest checkpoint and the short-term memory that belongs to it
(protocol section 4, ``snapshot_sync``). Making one means to read a file and to write large
JSON, so that is done in a worker thread, beside the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, cast, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import RemoteProtocolError, SemibotError
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject, dump_json, structure, unstructure
from semibot.wire.frames import MAX_FRAME_BYTES, FireAndForget, SessionSnapshot
from semibot.wire.plane import Lane
from semibot.workspace.checkpoints import Checkpoint
from semibot.workspace.memory import ShortTermMemory

from .core import SessionCore
from .opening import on_disk

log: Final = get_logger(__name__)

SNAPSHOT_INTERVAL: Final = 60.0
"""How often the host gets a snapshot while a run is active, in seconds."""

MAX_SNAPSHOT_BYTES: Final = MAX_FRAME_BYTES - 64 * 1024
"""Largest snapshot; the rest of the frame is for its other fields."""

MAX_SHORT_MEMORY: Final = 256 * 1024
"""Most bytes of the short-term memory in a snapshot that was too large."""

MAX_SHORT_HISTORY: Final = 4 * 1024 * 1024
"""Most bytes of the history in a snapshot that is still too large then."""


@final
class SnapshotKeeper:
    """Puts a session's snapshots into its lane.

    Args:
        session_id: The session.
        term: Its term; None on level 1.
        deadlines: The bounds.
        ports: The seams.
    """

    def __init__(
        self, session_id: str, term: int | None, deadlines: Deadlines, ports: Ports
    ) -> None:
        self._session_id = session_id
        self._term = term
        self._deadlines = deadlines
        self._ports = ports
        self._is_due = trio.Event()
        self._last: tuple[str, int] | None = None

    def ask(self) -> None:
        """Ask for a snapshot; never waits."""
        self._is_due.set()

    async def serve(self, core: SessionCore, find_lane: Callable[[], Lane | None]) -> None:
        """Put a snapshot into the lane when asked, and now and then during a run.

        Args:
            core: The open session.
            find_lane: Returns its lane, or None if nothing may be said any more.
        """
        while True:
            with trio.move_on_after(SNAPSHOT_INTERVAL):
                await self._is_due.wait()
            if self._is_due.is_set() or core.conductor.current is not None:
                await self.put(core, find_lane)

    async def put(self, core: SessionCore, find_lane: Callable[[], Lane | None]) -> None:
        """Put a snapshot into the lane if there is anything new; what fails is logged.

        Args:
            core: The session; it may be closed.
            find_lane: See :meth:`serve`.
        """
        self._is_due = trio.Event()
        checkpoint = core.conversation.newest
        if checkpoint is None:
            return
        run = core.conductor.current
        said = ""
        if run is not None and run.id == checkpoint.run_id and run.terminal_seq is None:
            said = run.text
        covers_seq = core.journal.next_seq - 1 if said else checkpoint.covers_seq
        if self._last == (checkpoint.id, covers_seq):
            return
        make = partial(
            make_snapshot,
            checkpoint,
            core.state.memory,
            said=said,
            covers_seq=covers_seq,
            term=self._term,
        )
        try:
            params = await on_disk(self._ports, self._deadlines, make)
        except (OSError, SemibotError) as exc:
            log.warning("no snapshot", session_id=self._session_id, error=repr(exc))
            return
        lane = find_lane()
        if params is not None and lane is not None:
            self._last = (checkpoint.id, covers_seq)
            lane.put_snapshot(
                FireAndForget(
                    session_id=self._session_id,
                    method="snapshot_sync",
                    params=params,
                    id=self._ports.ids.new_id(),
                )
            )


def make_snapshot(
    checkpoint: Checkpoint,
    memory: ShortTermMemory,
    *,
    said: str = "",
    covers_seq: int,
    term: int | None,
) -> JsonObject | None:
    """Return the params of ``snapshot_sync``.

    If they are larger than a frame may be, the oldest of the memory goes first, then the
    oldest of the history, then the adapter's state.

    Args:
        checkpoint: The newest checkpoint.
        memory: The short-term memory.
        said: What the run under way has said since.
        covers_seq: Number of the last event that is covered.
        term: The session's term; None leaves out what level 1 does not know.

    Returns:
        The params, or None if there is no way to make them small enough.

    Raises:
        OSError: If the memory cannot be read.
    """
    if said:
        answer = Message(role="assistant", content=said)
        checkpoint = attrs.evolve(checkpoint, history=(*checkpoint.history, answer))
    content = memory.content(checkpoint.memory_bytes)
    for form, text in _forms(checkpoint, content):
        params: dict[str, object] = {
            "checkpoint": unstructure(attrs.evolve(form, covers_seq=covers_seq)),
            "short_term_memory": {"session_id": form.session_id, "content": text},
            "conversation_state": {},
            "file_manifest": {},
        }
        if term is not None:
            params |= {"term": term, "covers_seq": covers_seq}
        found = cast("JsonObject", params)
        size = len(dump_json(found).encode())
        if size <= MAX_SNAPSHOT_BYTES:
            return found
        log.warning("snapshot is too large", session_id=form.session_id, bytes=size)
    return None


def _forms(checkpoint: Checkpoint, memory: str) -> Iterator[tuple[Checkpoint, str]]:
    """Yield what there is, then less and less of it."""
    yield checkpoint, memory
    memory = _newest_entries(memory)
    yield checkpoint, memory
    checkpoint = attrs.evolve(checkpoint, history=_newest_messages(checkpoint.history))
    yield checkpoint, memory
    yield attrs.evolve(checkpoint, adapter=None, last_user_message=""), memory


def _newest_entries(memory: str) -> str:
    tail = memory.encode()[-MAX_SHORT_MEMORY:].decode(errors="ignore")
    start = tail.find("## [")  # the first entry that is whole
    return tail[start:] if start >= 0 else ""


def _newest_messages(history: tuple[Message, ...]) -> tuple[Message, ...]:
    room = MAX_SHORT_HISTORY
    kept: list[Message] = []
    for message in reversed(history):
        room -= len(dump_json(unstructure(message)).encode())
        if room < 0:
            break
        kept.append(message)
    return tuple(reversed(kept))


def read_snapshot(
    snapshot: SessionSnapshot | None, session_id: str
) -> tuple[Checkpoint | None, str]:
    """Return the checkpoint and the short-term memory that a snapshot holds.

    What another kind of VM has written is left out, and the session begins anew.

    Args:
        snapshot: From ``start_session``.
        session_id: The session that it must be of.
    """
    if snapshot is None or not snapshot.checkpoint:
        return None, ""
    try:
        checkpoint = structure(snapshot.checkpoint, Checkpoint)
    except RemoteProtocolError as exc:
        log.warning("snapshot cannot be read", session_id=session_id, error=str(exc))
        return None, ""
    if checkpoint.session_id != session_id:
        log.warning("snapshot is of another session", session_id=session_id)
        return None, ""
    memory: Mapping[str, object] = snapshot.short_term_memory
    content = memory.get("content")
    return checkpoint, content if isinstance(content, str) else ""
