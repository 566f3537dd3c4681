"""Checkpoints: the conversation as it stood when a run began or ended."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeAlias, final

import attrs

from semibot.errors import RemoteProtocolError
from semibot.logs import get_logger
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject, dump_json, load_json, structure, unstructure

from .files import Sync, make_directory, read_regular, sync_directory, write_atomically

log: Final = get_logger(__name__)

KEPT: Final = 10
"""How many checkpoints are kept."""

CheckpointStatus: TypeAlias = Literal[
    "running", "completed", "cancelled", "timeout", "failed", "interrupted"
]
"""How the run ended, or that it had only begun."""


@attrs.frozen(kw_only=True)
class Checkpoint:
    """What a reopened session continues from."""

    id: str
    """Name of the file, sortable: term and covered number."""
    session_id: str
    """The session."""
    term: int
    """Fencing counter of the opening that wrote it."""
    covers_seq: int
    """Number of the last event that it covers."""
    run_id: str
    """The run that it was written for."""
    status: CheckpointStatus
    """How that run ended."""
    history: tuple[Message, ...]
    """The whole conversation."""
    last_user_message: str
    """The newest question, for people who read the file."""
    memory_bytes: int
    """Length of the short-term memory that belongs to it, in bytes."""
    updated_at: str
    """When it was written, ISO 8601, UTC."""
    adapter_kind: str | None = None
    """What the adapter was made by; no other gets its state."""
    adapter: JsonObject | None = None
    """What the adapter wants back when the session is opened again."""


def checkpoint_id(term: int, covers_seq: int) -> str:
    """Return a name that sorts by term, then by number."""
    return f"{term:09d}-{covers_seq:018d}"


@final
@attrs.define(eq=False)
class CheckpointDirectory:
    """The files of one session's checkpoints; blocking."""

    path: Path
    """The directory; made when it is first needed."""
    sync: Sync = attrs.field(default=os.fsync, kw_only=True, repr=False)
    """What makes files last."""

    def save(self, checkpoint: Checkpoint, *, unless: Callable[[], bool]) -> bool:
        """Write *checkpoint* durably, whole or not at all.

        Args:
            checkpoint: What to write.
            unless: Asked at the last moment; if it says so, nothing is changed.

        Returns:
            Whether it was written.

        Raises:
            OSError: If the disk refuses.
        """
        make_directory(self.path, sync=self.sync)
        data = dump_json(unstructure(checkpoint)).encode()
        path = self.path / f"{checkpoint.id}.json"
        return write_atomically(path, data, sync=self.sync, unless=unless)

    def remove(self, checkpoint: Checkpoint) -> None:
        """Delete *checkpoint* if it is there.

        Raises:
            OSError: If the disk refuses.
        """
        (self.path / f"{checkpoint.id}.json").unlink(missing_ok=True)

    def prune(self) -> None:
        """Delete all but the newest :data:`KEPT`.

        Raises:
            OSError: If the disk refuses.
        """
        for file in self._files()[KEPT:]:
            file.unlink(missing_ok=True)
        sync_directory(self.path, sync=self.sync)

    def clear(self) -> None:
        """Delete all of them.

        Raises:
            OSError: If the disk refuses.
        """
        for file in self._files():
            file.unlink(missing_ok=True)

    def count(self) -> int:
        """Return how many there are, readable or not."""
        return len(self._files())

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that can be read, or None if there is none."""
        for file in self._files():
            try:
                return structure(load_json(read_regular(file)), Checkpoint)
            except (OSError, RemoteProtocolError) as exc:
                log.warning("checkpoint cannot be read", file=file.name, error=str(exc))
        return None

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("*.json"), reverse=True)
