"""One bridge child, from its start to its end: lines in, lines out, one turn at a time.

Theory of operation. :meth:`BridgeChild.serve` owns the process; it is run by the
adapter's supervisor and returns when the process is gone. Inside it one task writes, one
reads, one waits for the exit and one for readiness; whichever finds a fault calls
``_give_up``, which keeps the first fault as :attr:`BridgeChild.failure` and ends them all.
Lines to the child go through a bounded queue, so that cancelling a caller never leaves
half a line in the pipe. While a run is active there is a :class:`Turn`; what the child says
of it waits there, in order, and whatever else it says about runs is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TypeAlias, final

import attrs
import structlog
import trio

from semibot.errors import (
    AdapterError,
    ChildStartFailed,
    DeadlineExceeded,
    LocalProtocolError,
    RemoteProtocolError,
)
from semibot.lifetimes import deadline, grace
from semibot.session import AdapterContext
from semibot.tools.processes import Child, open_child
from semibot.wire.bridge import (
    PROTOCOL_ERROR,
    BridgeComplete,
    BridgeDecoder,
    BridgeError,
    BridgeEvent,
    BridgeTerminal,
    CpFireAndForget,
    CpRequest,
    Ready,
    Snapshot,
    SnapshotResponse,
    Start,
    Stop,
    ToBridge,
    encode_frame,
)
from semibot.wire.codec import JsonObject
from semibot.wire.jsonl import MAX_LINE_BYTES

from .bridge_requests import BridgeRequests

log = structlog.get_logger(__name__)

ALIVE_IS_READY: Final = 1.0
"""Seconds after which a silent child that still runs counts as ready (level 1)."""

MAX_QUEUED_LINES: Final = 64
"""Most lines that wait to be written."""

MAX_QUEUED_EVENTS: Final = 256
"""Most events of a turn that wait for the run; reading the child waits for the others."""

MAX_LOGGED_STDERR: Final = 2000
"""Most bytes of a dead child's complaints that are logged."""

RunFrame: TypeAlias = BridgeEvent | BridgeTerminal | CpFireAndForget
"""What a bridge says about a run."""


@attrs.define
class BridgeCounts:
    """What the children of one adapter did, added up."""

    starts: int = 0
    """Children that were started."""
    dropped_frames: int = 0
    """Events that belonged to no active run."""
    skipped_lines: int = 0
    """Lines that said nothing a bridge may say."""


@final
class Turn:
    """What a child says about one run.

    Args:
        run_id: The run, if the child was told it, else None.
    """

    def __init__(self, run_id: str | None) -> None:
        self._run_id = run_id
        self._put, self.frames = trio.open_memory_channel[RunFrame](MAX_QUEUED_EVENTS)
        self.over = trio.Event()
        """Set when the child has ended the run, or is gone."""

    def accepts(self, frame: RunFrame) -> bool:
        """Return whether *frame* belongs to this turn.

        A child that knows run ids must name the run: what it does not name may be left
        over from an earlier one.
        """
        return not self.over.is_set() and frame.run_id == self._run_id

    async def put(self, frame: RunFrame) -> bool:
        """Hand *frame* to the run; return whether somebody still wants it."""
        if isinstance(frame, BridgeComplete | BridgeError):
            self.over.set()
        try:
            await self._put.send(frame)
        except trio.BrokenResourceError:
            return False
        return True

    def close(self) -> None:
        """Say that nothing follows."""
        self.over.set()
        self._put.close()

    def abandon(self) -> None:
        """Say that nobody listens any more."""
        self.frames.close()


@final
class BridgeChild:
    """A bridge process and what is known of it.

    Args:
        command: Program and arguments.
        environment: All the variables that it gets.
        context: The session's context.
        payload: What the ``start`` line says.
        counts: Where to count.
        keep_snapshot: Called with every snapshot that the child sends.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        context: AdapterContext,
        counts: BridgeCounts,
        keep_snapshot: Callable[[JsonObject], None],
    ) -> None:
        self._command = command
        self._environment = environment
        self._context = context
        self._counts = counts
        self._keep_snapshot = keep_snapshot
        self._lines_in, self._lines_out = trio.open_memory_channel[bytes](MAX_QUEUED_LINES)
        self._requests = BridgeRequests(context, self._queue)
        self._decoder = BridgeDecoder()
        self._life = trio.CancelScope()
        self._talk = trio.CancelScope()
        self._ready = trio.Event()
        self._started = trio.Event()
        self._output_ended = trio.Event()
        self._ended = trio.Event()
        self._features: frozenset[str] = frozenset()
        self._failure: AdapterError | None = None
        self._pid: int | None = None
        self._turn: Turn | None = None
        self._asked: str | None = None
        self._answered = trio.Event()
        self._has_skipped = False

    # --- for the adapter --------------------------------------------------------------

    @property
    def program(self) -> str:
        """The program's name."""
        return self._command[0]

    @property
    def pid(self) -> int | None:
        """Process id, or None if there is no process."""
        return self._pid

    @property
    def knows_runs(self) -> bool:
        """Whether the bridge names the run in what it says."""
        return "run_id" in self._features

    @property
    def is_usable(self) -> bool:
        """Whether it may still take a message: it is alive, or about to be started."""
        return not (
            self._ended.is_set() or self._life.cancel_called or self._talk.cancel_called
        )

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone, or there never was one."""
        return self._ended.is_set()

    @property
    def failure(self) -> AdapterError:
        """Why it ended, as a run is told."""
        return self._failure or AdapterError(
            "the bridge was stopped", code="OPENCLAW_BRIDGE_EXITED", is_retryable=True
        )

    async def wait_ready(self) -> None:
        """Wait until the child can take a message.

        Bounded by ``bridge.ready``, from the moment when the child is started.

        Raises:
            AdapterError: If it could not be started, ended, or did not become ready.
        """
        await self._ready.wait()
        if not self.is_usable:
            # Its process may take a moment to go; the reason is known only then.
            await self._ended.wait()
            raise self.failure

    async def say(self, frame: ToBridge) -> None:
        """Queue a line for the child; waits only while :data:`MAX_QUEUED_LINES` are queued.

        A child that has ended hears nothing, and nobody is told: whoever waits for what
        the child does is told that it ended.

        Raises:
            LocalProtocolError: If the line would be too long.
        """
        await self._queue(encode_frame(frame))

    async def _queue(self, line: bytes) -> None:
        with suppress(trio.BrokenResourceError):
            await self._lines_in.send(line)

    @contextmanager
    def turn(self, run_id: str) -> Iterator[Turn]:
        """Listen to what the child says about a run, for the length of a block.

        Args:
            run_id: The run; it is told to children that know runs only.
        """
        turn = Turn(run_id if self.knows_runs else None)
        if self._ended.is_set():
            turn.close()
        self._turn = turn
        try:
            yield turn
        finally:
            turn.abandon()
            self._turn = None

    async def ask_snapshot(self) -> None:
        """Ask for the child's state and wait for it, at most ``bridge.snapshot``.

        Does nothing while an earlier question is unanswered: bridges without snapshots
        must not slow every run down.
        """
        if self._asked is not None or not (self.is_usable and self._ready.is_set()):
            return
        self._asked = self._context.ports.ids.new_id()
        self._answered = trio.Event()
        with trio.move_on_after(self._context.deadlines.bridge_snapshot):
            await self.say(Snapshot(id=self._asked, session_id=self._context.session_id))
            await self._answered.wait()

    async def stop(self) -> None:
        """End the process and wait until it is gone; bound it with a grace."""
        self._life.cancel("the bridge is no longer wanted")
        await self._ended.wait()

    # --- for the supervisor -----------------------------------------------------------

    async def serve(self, payload: JsonObject) -> None:
        """Start the process, talk to it and stop it; return when it is gone.

        Args:
            payload: What the ``start`` line says.
        """
        deadlines = self._context.deadlines
        ready_by = trio.current_time() + deadlines.bridge_ready
        try:
            with self._life:
                start = encode_frame(Start(session_id=self._context.session_id, payload=payload))
                self._counts.starts += 1
                async with open_child(
                    self._command,
                    ports=self._context.ports,
                    deadlines=deadlines,
                    environment=self._environment,
                    cwd=self._context.workspace,
                    name="bridge",
                ) as child:
                    await self._live(child, start, ready_by)
        except (ChildStartFailed, DeadlineExceeded) as exc:
            self._failure = AdapterError(
                f"{exc}; check the bridge's command (OPENCLAW_BRIDGE_CMD)",
                code="OPENCLAW_BRIDGE_START_FAILED",
                is_retryable=True,
            )
        except LocalProtocolError as exc:
            self._failure = AdapterError(str(exc), code="OPENCLAW_BRIDGE_START_FAILED")
        finally:
            self._end()

    def _end(self) -> None:
        self._ended.set()
        self._ready.set()
        self._answered.set()
        self._lines_out.close()
        self._pid = None
        if self._turn is not None:
            self._turn.close()

    def _give_up(self, failure: AdapterError) -> None:
        if self._failure is None:
            self._failure = failure
        self._talk.cancel(failure.code)

    async def _live(self, child: Child, start: bytes, ready_by: float) -> None:
        deadlines = self._context.deadlines
        self._pid = child.pid
        is_left = True
        try:
            async with trio.open_nursery() as reports:
                reports.start_soon(self._requests.serve_reports)
                with self._talk:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._write, child, start)
                        nursery.start_soon(self._watch_ready, ready_by)
                        nursery.start_soon(self._watch_exit, child)
                        await self._read(child, nursery)
                        self._talk.cancel("the bridge's output ended")
                self._requests.end_reports()
                # What it reported before it ended still counts.
                reports.cancel_scope.deadline = trio.current_time() + deadlines.child_eof_grace
            is_left = False
        finally:
            farewell = encode_frame(Stop(session_id=self._context.session_id))
            with grace("session.adapter_stop", deadlines.session_adapter_stop):
                if not is_left:
                    with trio.move_on_after(deadlines.child_eof_grace):
                        await child.wait()
                status = child.exit_status
                await child.stop(farewell)
            if not is_left:
                self._explain(child, "closed its output" if status is None else f"ended: {status}")

    def _explain(self, child: Child, how: str) -> None:
        """Say why a child that nobody had stopped is gone."""
        if self._failure is None:
            self._failure = AdapterError(
                f"the bridge {self.program} {how}; the next message starts it again",
                code="OPENCLAW_BRIDGE_EXITED",
                is_retryable=True,
            )
        tail = child.stderr_tail[-MAX_LOGGED_STDERR:].decode("utf-8", "replace")
        log.warning("bridge ended", pid=child.pid, error=str(self._failure), stderr=tail)

    # --- tasks of one child -----------------------------------------------------------

    async def _write(self, child: Child, start: bytes) -> None:
        bound = self._context.deadlines.bridge_request
        try:
            await child.send(start)  # bounded by bridge.ready
            self._started.set()
            # Unbounded on purpose: the next thing that somebody has to tell the child.
            async for line in self._lines_out:
                with deadline("bridge.request", bound):
                    await child.send(line)
        except DeadlineExceeded as exc:
            self._give_up(_broken(f"the bridge does not read its input: {exc}"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # It is ending, most likely, and how it ends says more than this does.
            await trio.sleep(self._context.deadlines.child_eof_grace)
            self._give_up(_broken("the bridge has closed its input"))

    async def _watch_ready(self, ready_by: float) -> None:
        with trio.move_on_at(ready_by) as scope:
            await self._started.wait()
            with trio.move_on_after(ALIVE_IS_READY):
                await self._ready.wait()
            self._ready.set()
        if scope.cancelled_caught:
            error = DeadlineExceeded("bridge.ready", self._context.deadlines.bridge_ready)
            self._give_up(
                AdapterError(
                    f"the bridge did not become ready: {error}",
                    code="SESSION_START_TIMEOUT",
                    is_retryable=True,
                )
            )

    async def _watch_exit(self, child: Child) -> None:
        await child.wait()  # unbounded on purpose: a child lives as long as its session
        # Some other process may hold the pipe open; what the child itself said is read soon.
        with trio.move_on_after(self._context.deadlines.child_eof_grace):
            await self._output_ended.wait()
        self._talk.cancel("the bridge has ended")

    async def _read(self, child: Child, nursery: trio.Nursery) -> None:
        try:
            # Unbounded on purpose: whatever the child says next.
            async for line in child.lines(MAX_LINE_BYTES):
                await self._take(line, nursery)
        except RemoteProtocolError as exc:
            child.kill()
            self._give_up(_broken(f"the bridge was killed: {exc.reason}"))
        finally:
            self._output_ended.set()

    async def _take(self, line: bytes, nursery: trio.Nursery) -> None:
        try:
            frame = self._decoder.decode(line, trio.current_time())
        except RemoteProtocolError as exc:
            self._skip(line, exc)
            return
        finally:
            if not isinstance(self._peek_features(line), frozenset):
                self._ready.set()
        match frame:
            case Ready(features=features):
                self._features = frozenset(features)
                self._ready.set()
            case CpRequest():
                await self._requests.take_request(frame, nursery)
            case SnapshotResponse():
                self._take_snapshot(frame)
            case CpFireAndForget():
                await self._requests.take_report(frame)
                if frame.method == "usage_report":
                    await self._pass_to_turn(frame)
            case BridgeEvent() | BridgeComplete() | BridgeError():
                if not await self._pass_to_turn(frame):
                    self._counts.dropped_frames += 1
