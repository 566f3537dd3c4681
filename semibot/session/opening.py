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
from semibot.workspace.state import STATE_DIRECTORY, SessionState, open_state

from .adapter import AdapterContext, AdapterFactory, ControlPlane
from .conductor import Conductor
from .conversation import Conversation
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
    ports = ports or live_ports()
    bounds = deadlines or Deadlines()
    async with AsyncExitStack() as stack:
        root = await stack.enter_async_context(_open_workspace(workspace, ports, bounds))
        state = await stack.enter_async_context(
            _open_directory(root, session_id or ports.ids.new_id(), ports, bounds)
        )
        watchdog = await stack.enter_async_context(open_watchdog(ports))
        services = await stack.enter_async_context(open_services())
        skills = await _find_skills(root, ports, bounds)
        keeper = _Keeper(state, root, ports, bounds)
        kind = _kind_of(adapter)
        journal = Journal(term=state.term, next_seq=state.next_seq)
        conversation = Conversation(state, ports, bounds, adapter_kind=kind)
        host = AdapterHost(bounds)
        conductor = Conductor(
            session_id=state.session_id,
            journal=journal,
            conversation=conversation,
            host=host,
            deadlines=bounds,
        )

        def make_context(nursery: trio.Nursery) -> AdapterContext:
            return AdapterContext(
                session_id=state.session_id,
                workspace=root,
                files=ConfinedDirectory(
                    root, reserved=(STATE_DIRECTORY,), readable=(keeper.readable,)
                ),
                nursery=nursery,
                ports=ports,
                deadlines=bounds,
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
            yield Session(
                session_id=state.session_id,
                workspace=root,
                journal=journal,
                conversation=conversation,
                conductor=conductor,
                host=host,
                ports=ports,
                deadlines=bounds,
                watchdog=watchdog,
            )
        finally:
            with grace("stop_bound", bounds.stop_bound):
                await conductor.drain("the session was closed")
                await host.leave()
                journal.close()


def _kind_of(adapter: AdapterFactory) -> str:
    """Name what made a snapshot, so that no other adapter gets it."""
    return getattr(adapter, "__qualname__", type(adapter).__qualname__)


@asynccontextmanager
async def _open_workspace(
    workspace: str | Path | None, ports: Ports, bounds: Deadlines
) -> AsyncGenerator[Path]:
    if workspace is not None:
        yield await _on_disk(ports, bounds, _existing_directory, Path(workspace))
        return
    directory = await _on_disk(ports, bounds, _temporary_directory)
    try:
        yield Path(directory.name)
    finally:
        with grace("session.save", bounds.session_save):
            await _on_disk(ports, bounds, directory.cleanup)


def _existing_directory(path: Path) -> Path:
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
    root: Path, session_id: str, ports: Ports, bounds: Deadlines
) -> AsyncGenerator[SessionState]:
    manager = open_state(root, session_id)
    state = await _on_disk(ports, bounds, manager.__enter__)
    try:
        yield state
    finally:
        with grace("session.save", bounds.session_save):
            await _on_disk(ports, bounds, manager.__exit__, None, None, None)


async def _on_disk(ports: Ports, bounds: Deadlines, fn: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run a blocking function; a disk that hangs holds nobody up for longer than a save."""
    with deadline("session.save", bounds.session_save):
        return await ports.threads.run_sync(fn, *args, limiter="files", abandon_on_cancel=True)


async def _find_skills(root: Path, ports: Ports, bounds: Deadlines) -> tuple[Skill, ...]:
    found = await _on_disk(ports, bounds, read_skills, root / STATE_DIRECTORY / "skills")
    return usable_skills(found, environment=ports.environment)


@final
@attrs.frozen
class _Keeper:
    """Writes what gate and tools leave behind, off the loop."""

    state: SessionState
    root: Path
    ports: Ports
    bounds: Deadlines

    @property
    def readable(self) -> str:
        """The one part of the session's directory that tools may read."""
        return str((self.state.directory / "results").relative_to(self.root))

    async def record(self, entry: Decision | CallEnded) -> None:
        """Append a decision, or the end of a call, to the audit file."""
        kind = "decision" if isinstance(entry, Decision) else "call_ended"
        fields = cast("JsonObject", unstructure(entry))
        now = self.ports.wall_clock.now().isoformat(timespec="milliseconds")
        line = dump_json({"time": now, "kind": kind, **fields})
        await _on_disk(self.ports, self.bounds, self.state.audit, line)

    async def keep_result(self, call_id: str, text: str) -> str:
        """Store a large result and return its path below the workspace."""
        path = await _on_disk(self.ports, self.bounds, self.state.keep_result, call_id, text)
        return str(path.relative_to(self.root))
