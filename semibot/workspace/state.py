"""A session's directory: who holds it, what it remembers, what a reopening continues from.

Layout below the workspace, one directory per session id::

    .semibot/sessions/<session_id>/
        lock           held while the session is open; contains the holder's pid
        term           the fencing counter of the newest opening
        checkpoints/   the newest ten, one atomic file each
        memory.md      the short-term memory
        results/       the newest tool results that were too large for an event
        audit.jsonl    what the gate decided; audit.1.jsonl is what came before

A VM keeps its sessions in its own state directory instead. Only ``results/`` is still where
it was, because tools read from there.

Everything here is blocking and runs in worker threads. A session saves one thing at a
time; a save that hangs on the disk is abandoned, and then must change nothing any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

import attrs

from semibot.errors import SessionInUse, StoreError, UsageError, WorkspaceUnusable
from semibot.wire.chat import Message

from .checkpoints import Checkpoint, CheckpointDirectory, checkpoint_id
from .files import (
    Sync,
    append_text,
    make_directory,
    open_regular,
    read_regular,
    write_atomically,
)
from .memory import ShortTermMemory

STATE_DIRECTORY: Final = ".semibot"
"""Name of the directory inside a workspace that tools may not touch."""

MAX_AUDIT_BYTES: Final = 16 * 1024 * 1024
"""When the record of decisions is begun anew; the one before it is kept, older ones not."""

MAX_RESULTS: Final = 50
"""How many large tool results are kept; the oldest go first."""

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@attrs.frozen(kw_only=True)
class StateOrigin:
    """What a session of a host begins with; it replaces what is on disk."""

    term: int
    """Fencing counter that the host has given to this opening."""
    covers_seq: int
    """Number of the last event before it; 0 if there was none."""
    checkpoint: Checkpoint | None = None
    """What it continues from; None begins anew."""
    memory: str = attrs.field(default="", repr=False)
    """The short-term memory that belongs to it."""
    keeps_local: bool = False
    """Whether the disk is newer after all, because this process wrote it under this term."""


def session_directory(workspace: Path, session_id: str, *, state_dir: Path | None = None) -> Path:
    """Return where a session keeps its state.

    Args:
        workspace: The workspace.
        session_id: 1 to 128 letters, digits, ``.``, ``_`` or ``-``, the first of which
            is a letter or digit; it becomes a directory name.
        state_dir: Where sessions are kept; None means the ``.semibot`` of *workspace*.

    Raises:
        UsageError: If the id is not of that form.
    """
    if not _SESSION_ID.fullmatch(session_id):
        raise UsageError(
            "a session id is 1 to 128 letters, digits, '.', '_' or '-' "
            "and starts with a letter or digit"
        )
    return (state_dir or workspace / STATE_DIRECTORY) / "sessions" / session_id


@final
@attrs.define(eq=False)
class SessionState:
    """The open directory of one session. Made by :func:`open_state`; blocking."""

    directory: Path
    """The session's directory."""
    results: Path
    """Where large tool results go; inside the workspace."""
    session_id: str
    """The session."""
    term: int
    """Fencing counter of this opening, from 1."""
    memory: ShortTermMemory
    """The short-term memory."""
    newest: Checkpoint | None
    """What this opening continues from."""
    _checkpoints: CheckpointDirectory = attrs.field(repr=False)
    _sync: Sync = attrs.field(repr=False)
    _saving: threading.Lock = attrs.field(factory=threading.Lock, init=False, repr=False)

    @property
    def next_seq(self) -> int:
        """Number of this opening's first event."""
        return 1 if self.newest is None else self.newest.covers_seq + 1

    def save(
        self,
        checkpoint: Checkpoint,
        added: tuple[Message, ...],
        replaces: Checkpoint | None,
        is_abandoned: threading.Event,
    ) -> Checkpoint:
        """Keep *checkpoint* durably, and what people said in the short-term memory.

        Args:
            checkpoint: What to keep; its ``memory_bytes`` is how long the memory was.
            added: New messages, for the memory.
            replaces: An earlier checkpoint of the same run, no longer needed.
            is_abandoned: Set when nobody waits for this any more, because the disk took
                too long: whatever is not done by then must not happen afterwards.

        Returns:
            The checkpoint as it was kept, with the memory's new length.

        Raises:
            StoreError: If the disk refuses; the earlier state is untouched.
        """
        with self._saving:  # one that was abandoned may still be at it
            try:
                length = self.memory.append(added, checkpoint.updated_at, checkpoint.memory_bytes)
                kept = attrs.evolve(checkpoint, memory_bytes=length)
                if not self._checkpoints.save(kept, unless=is_abandoned.is_set):
                    raise StoreError("given up: the disk took too long")
                if replaces is not None:
                    self._checkpoints.remove(replaces)
                self._checkpoints.prune()
            except OSError as exc:
                raise StoreError(f"cannot save the conversation: {exc.strerror}") from exc
        return kept

    def keep_result(self, call_id: str, text: str) -> Path:
        """Store a large tool result and return its file.

        Args:
            call_id: The call; only its safe characters become part of the name.
            text: The result.

        Raises:
            StoreError: If the disk refuses.
        """
        name = re.sub(r"[^A-Za-z0-9_-]", "_", call_id)[:100] or "result"
        path = self.results / f"{name}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _keep_out_of_repositories(self.results.parents[2])
            write_atomically(path, text.encode(), sync=self._sync)
            by_age = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)
            for oldest in by_age[:-MAX_RESULTS]:
                oldest.unlink(missing_ok=True)
        except OSError as exc:
            raise StoreError(f"cannot keep a tool result: {exc.strerror}") from exc
        return path

    def audit(self, line: str) -> None:
        """Append one line to the record of the gate's decisions.

        Raises:
            StoreError: If the disk refuses.
        """
        path = self.directory / "audit.jsonl"
        try:
            if path.exists() and path.stat().st_size > MAX_AUDIT_BYTES:
                path.replace(self.directory / "audit.1.jsonl")
            append_text(path, line + "\n", sync=self._sync)
        except OSError as exc:
            raise StoreError(f"cannot record a decision: {exc.strerror}") from exc


@contextmanager
def open_state(
    workspace: Path,
    session_id: str,
    *,
    state_dir: Path | None = None,
    origin: StateOrigin | None = None,
    sync: Sync = os.fsync,
) -> Generator[SessionState]:
    """Take a session's directory for this process, and read what is in it.

    Args:
        workspace: An existing directory.
        session_id: See :func:`session_directory`.
        state_dir: See :func:`session_directory`; made if missing.
        origin: What a host says that the session begins with.
        sync: What makes files last; see :class:`semibot.ports.Disk`.

    Yields:
        The state. Without *origin* its term is one more than that of the last opening.

    Raises:
        UsageError: If the id is malformed.
        SessionInUse: If another opening holds the directory.
        WorkspaceUnusable: If the directory cannot be made or written.
    """
    directory = session_directory(workspace, session_id, state_dir=state_dir)
    results = session_directory(workspace, session_id) / "results"
    try:
        make_directory(directory, sync=sync)
        lock = open_regular(directory / "lock", os.O_RDWR | os.O_CREAT)
        _keep_out_of_repositories(state_dir or workspace / STATE_DIRECTORY)
    except OSError as exc:
        raise WorkspaceUnusable(str(directory), exc.strerror or type(exc).__name__) from exc
    with contextlib.closing(os.fdopen(lock, "r+", encoding="ascii", errors="replace")) as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = holder.read(32).strip()
            raise SessionInUse(str(directory), int(text) if text.isdigit() else None) from None
        try:
            holder.truncate(0)
            holder.write(f"{os.getpid()}\n")
            holder.flush()
            state = _read_state(directory, results, session_id, origin, sync)
        except OSError as exc:
            raise WorkspaceUnusable(str(directory), exc.strerror or type(exc).__name__) from exc
        yield state


def _keep_out_of_repositories(state: Path) -> None:
    """Let version control ignore whole conversations, unless the user has said otherwise."""
    with contextlib.suppress(FileExistsError):  # another session may be just as far
        ignore = open_regular(state / ".gitignore", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(ignore, "wb") as file:
            file.write(b"*\n")


def _read_state(
    directory: Path, results: Path, session_id: str, origin: StateOrigin | None, sync: Sync
) -> SessionState:
    checkpoints = CheckpointDirectory(directory / "checkpoints", sync=sync)
    memory = ShortTermMemory(directory / "memory.md", sync=sync)
    if origin is not None and not origin.keeps_local:
        _replace(checkpoints, memory, origin)
    newest = checkpoints.newest()
    if newest is None and (count := checkpoints.count()):
        # Beginning anew would throw a conversation away that somebody may still mend.
        reason = f"none of its {count} checkpoints can be read; move it away to begin anew"
        raise WorkspaceUnusable(str(directory), reason)
    term_file = directory / "term"
    if origin is not None:
        term = origin.term
    else:
        recorded = read_regular(term_file).strip() if term_file.exists() else b""
        last_term = max(
            int(recorded) if recorded.isdigit() else 0, newest.term if newest is not None else 0
        )
        term = last_term + 1
    # On disk before any event carries it: no event id may ever be used twice.
    write_atomically(term_file, f"{term}\n".encode(), sync=sync)
    memory.restore(newest.memory_bytes if newest is not None else 0)
    return SessionState(directory, results, session_id, term, memory, newest, checkpoints, sync)


def _replace(
    checkpoints: CheckpointDirectory, memory: ShortTermMemory, origin: StateOrigin
) -> None:
    """Put what the host knows in the place of what is on disk.

    A crash in between does no harm: the host then says it again.
    """
    checkpoints.clear()
    length = memory.replace(origin.memory)
    if origin.checkpoint is not None:
        restored = attrs.evolve(
            origin.checkpoint,
            id=checkpoint_id(origin.term, origin.covers_seq),
            term=origin.term,
            covers_seq=origin.covers_seq,
            memory_bytes=length,
        )
        checkpoints.save(restored, unless=lambda: False)
