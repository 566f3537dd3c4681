"""Open a session: its workspace, its directory, its services, in that order."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar, TypeVarTuple, cast, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import WorkspaceUnusable
from semibot.lifetimes import deadline, grace, open_services
from semibot.live import live_ports
from semibot.observe.watchdog import open_watchdog
from semibot.ports import Ports
from semibot.tools.calls import CallEnded, Decision, Recorder
from semibot.tools.paths import ConfinedDirectory
from semibot.wire.codec import JsonObject, dump_json, unstructure
from semibot.workspace.local_plane import LocalControlPlane
from semibot.workspace.skills import Skill, read_skills, usable_skills
from semibot.workspace.state import STATE_DIRECTORY, SessionState, StateOrigin, open_state

from .adapter import AdapterContext, AdapterFactory, ControlPlane
from .conductor import Conductor
from .conversation import Conversation
from .core import SessionCore
from .hosting import AdapterHost
from .journal import Journal
from .session import Session

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@asynccontextmanager
async def open_session(
    adapter: AdapterFactory,
    *,
    workspace: str | Path | None = None,
    session_id: str | None = None,
    payload: JsonObject | None = None,
    control_plane: ControlPlane | None = None,
    record: Recorder | None = None,
    deadlines: Deadlines | None = None,
    ports: Ports | None = None,
) -> AsyncGenerator[Session]:
    """Open a session, and close it with everything that it started.

    On exit the run under way is interrupted, the adapter's scope is left, and the
    directory is released. Exit waits for that, at most
    :attr:`Deadlines.stop_bound <semibot.Deadlines.stop_bound>`; only code that shields
    itself from cancellation can make it longer.

    Args:
        adapter: Makes the adapter's scope, such as a ``GraphAgent``.
        workspace: The directory that the agent works in, and in whose ``.semibot`` the
            session is kept. None means a temporary one that goes with the session.
        session_id: Reopens the session of that id in *workspace*, or makes it; see
            :func:`~semibot.workspace.state.session_directory`. None makes a new id.
        payload: What started the session, for the adapter.
        control_plane: Who answers the adapter's requests; by default the session's own
            memory and skills.
        record: Where the gate's decisions go; by default ``audit.jsonl`` in the
            session's directory.
        deadlines: The bounds.
        ports: The seams; real ones by default.

    Yields:
        The session.

    Raises:
        WorkspaceUnusable: If the workspace is missing or cannot be written.
        SessionInUse: If another process has the session open.
        UsageError: If *session_id* is malformed.
        AdapterError: If the adapter failed outside a run; the body is then cancelled.
        DeadlineExceeded: ``session.adapter_start``; ``session.save`` if the disk hangs.
    """
    place = SessionPlace(workspace=None if workspace is None else Path(workspace))
    async with open_core(
        adapter,
        place,
        session_id=session_id,
        payload=payload,
        control_plane=control_plane,
        record=record,
        deadlines=deadlines or Deadlines(),
        ports=ports or live_ports(),
    ) as core:
        yield Session(core)


@attrs.frozen(kw_only=True)
class SessionPlace:
    """Where a session is kept, and what it begins with."""

    workspace: Path | None
    """The directory that the agent works in; None means a temporary one."""
    state_dir: Path | None = None
    """Where its own directory is kept; None means the workspace."""
    origin: StateOrigin | None = None
    """What a host says that it begins with; None continues from what is on disk."""
    journal: Journal | None = None
    """Where its events go; None makes a journal that continues the numbers on disk."""
    report: Callable[[Decision | CallEnded], None] | None = None
    """Told of what is in ``audit.jsonl``; never waits."""


@asynccontextmanager
async def open_core(
    adapter: AdapterFactory,
    place: SessionPlace,
    *,
    session_id: str | None,
    payload: JsonObject | None,
    control_plane: ControlPlane | None,
    record: Recorder | None,
    deadlines: Deadlines,
    ports: Ports,
) -> AsyncGenerator[SessionCore]:
    """Open the parts of a session; see :func:`open_session`.

    Args:
        adapter: Makes the adapter's scope.
        place: Where it is kept.
        session_id: The session; None makes a new id.
        payload: What started the session.
        control_plane: Who answers the adapter's requests; None means the session itself.
        record: Where the gate's decisions go; None means ``audit.jsonl``.
        deadlines: The bounds.
        ports: The seams.

    Yields:
        The parts. On exit they are closed within ``stop_bound``; a journal that was
        given stays open.
    """
    async with AsyncExitStack() as stack:
        root = await stack.enter_async_context(_open_workspace(place.workspace, ports, deadlines))
        state = await stack.enter_async_context(
            _open_directory(root, session_id or ports.ids.new_id(), place, ports, deadlines)
        )
        watchdog = await stack.enter_async_context(open_watchdog(ports))
        services = await stack.enter_async_context(open_services())
        skills = await _find_skills(root, ports, deadlines)
        keeper = _Keeper(state, root, ports, deadlines, place.report)
        journal = place.journal or Journal(term=state.term, next_seq=state.next_seq)
        conversation = Conversation(state, ports, deadlines, adapter_kind=_kind_of(adapter))
        host = AdapterHost(deadlines)
        conductor = Conductor(
            session_id=state.session_id,
            journal=journal,
            conversation=conversation,
            host=host,
            deadlines=deadlines,
        )

        def make_context(nursery: trio.Nursery) -> AdapterContext:
            return AdapterContext(
                session_id=state.session_id,
                workspace=root,
                files=ConfinedDirectory(
                    root, reserved=_reserved(root, place.state_dir), readable=(keeper.readable,)
                ),
                nursery=nursery,
                ports=ports,
                deadlines=deadlines,
                payload=payload or {},
                snapshot=conversation.snapshot,
                skills=skills,
                control_plane=control_plane
                or LocalControlPlane(state.memory, skills, ports.threads),
                record=record or keeper.record,
                keep_result=keeper.keep_result,
            )

        services.start_soon(conductor.serve, name="session runs")
        services.start_soon(
            host.serve, adapter, make_context, conductor.fail_all, name="session adapter"
        )
        await host.wait_entered()
        try:
            yield SessionCore(
                workspace=root,
                state=state,
                journal=journal,
                conversation=conversation,
                conductor=conductor,
                host=host,
                ports=ports,
                deadlines=deadlines,
                watchdog=watchdog,
            )
        finally:
            with grace("stop_bound", deadlines.stop_bound):
                await conductor.drain("the session was closed")
                await host.leave()
            if place.journal is None:
                journal.close()


def _reserved(root: Path, state_dir: Path | None) -> tuple[str, ...]:
    """Return the names at the top of the workspace that tools may not touch."""
    if state_dir is None or not state_dir.is_relative_to(root):
        return (STATE_DIRECTORY,)
    return (STATE_DIRECTORY, *state_dir.relative_to(root).parts[:1])


def _kind_of(adapter: AdapterFactory) -> str:
    """Name what made a snapshot, so that no other adapter gets it."""
    return getattr(adapter, "__qualname__", type(adapter).__qualname__)


@asynccontextmanager
async def _open_workspace(
    workspace: Path | None, ports: Ports, bounds: Deadlines
) -> AsyncGenerator[Path]:
    if workspace is not None:
        yield await on_disk(ports, bounds, existing_directory, workspace)
        return
    directory = await on_disk(ports, bounds, _temporary_directory)
    try:
        yield Path(directory.name)
    finally:
        with grace("session.save", bounds.session_save):
            await on_disk(ports, bounds, directory.cleanup)


def existing_directory(path: Path) -> Path:
    """Return where a directory really is.

    Raises:
        WorkspaceUnusable: If there is none.
    """
    try:
        root = path.resolve(strict=True)
    except OSError as exc:
        raise WorkspaceUnusable(str(path), exc.strerror or type(exc).__name__) from exc
    if not root.is_dir():
        raise WorkspaceUnusable(str(path), "not a directory")
    return root


def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    base = Path(tempfile.gettempdir()).resolve()  # where it is a link, as on macOS
    return tempfile.TemporaryDirectory(prefix="semibot-", dir=base, ignore_cleanup_errors=True)


@asynccontextmanager
async def _open_directory(
    root: Path, session_id: str, place: SessionPlace, ports: Ports, bounds: Deadlines
) -> AsyncGenerator[SessionState]:
    manager = open_state(
        root,
        session_id,
        state_dir=place.state_dir,
        origin=place.origin,
        sync=ports.disk.sync,
    )
    state = await on_disk(ports, bounds, manager.__enter__)
    try:
        yield state
    finally:
        with grace("session.save", bounds.session_save):
            await on_disk(ports, bounds, manager.__exit__, None, None, None)


async def on_disk(ports: Ports, bounds: Deadlines, fn: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run a blocking function; a disk that hangs holds nobody up for longer than a save.

    Raises:
        DeadlineExceeded: ``session.save``.
    """
    with deadline("session.save", bounds.session_save):
        return await ports.threads.run_sync(fn, *args, limiter="files", abandon_on_cancel=True)


async def _find_skills(root: Path, ports: Ports, bounds: Deadlines) -> tuple[Skill, ...]:
    found = await on_disk(ports, bounds, read_skills, root / STATE_DIRECTORY / "skills")
    return usable_skills(found, environment=ports.environment)


@final
@attrs.frozen
class _Keeper:
    """Writes what gate and tools leave behind, off the loop."""

    state: SessionState
    root: Path
    ports: Ports
    bounds: Deadlines
    report: Callable[[Decision | CallEnded], None] | None

    @property
    def readable(self) -> str:
        """The one part of the session's directory that tools may read."""
        return str(self.state.results.relative_to(self.root))

    async def record(self, entry: Decision | CallEnded) -> None:
        """Append a decision, or the end of a call, to the audit file."""
        kind = "decision" if isinstance(entry, Decision) else "call_ended"
        fields = cast("JsonObject", unstructure(entry))
        now = self.ports.wall_clock.now().isoformat(timespec="milliseconds")
        line = dump_json({"time": now, "kind": kind, **fields})
        await on_disk(self.ports, self.bounds, self.state.audit, line)
        if self.report is not None:
            self.report(entry)

    async def keep_result(self, call_id: str, text: str) -> str:
        """Store a large result and return its path below the workspace."""
        path = await on_disk(self.ports, self.bounds, self.state.keep_result, call_id, text)
        return str(path.relative_to(self.root))
