"""One bridge child, from its start to its end: lines out, lines in, one turn at a time.

Theory of operation. :meth:`BridgeChild.serve` owns the process; the adapter's supervisor
runs it, and it returns when the process is gone. Inside it one task writes, one reads,
one waits for the exit and one for readiness. Whichever finds a fault calls ``_give_up``,
which keeps the first fault as :attr:`BridgeChild.failure` and ends them all. Lines to the
child go through a bounded queue, so that cancelling a caller never leaves half a line in
the pipe. While a run is active there is a :class:`Turn`; what the child says of the run
waits there, and whatever else it says about runs is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, final

import trio

from semibot.errors import (
    AdapterError,
    ChildError,
    ChildStartFailed,
    DeadlineExceeded,
    LocalProtocolError,
    RemoteProtocolError,
)
from semibot.lifetimes import deadline, grace
from semibot.logs import get_logger
from semibot.session import AdapterContext
from semibot.tools.processes import Child, open_child
from semibot.wire.bridge import (
    PROTOCOL_ERROR,
    BridgeComplete,
    BridgeDecoder,
    BridgeError,
    BridgeEvent,
    CpFireAndForget,
    CpRequest,
    FromBridge,
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
from .bridge_turn import BridgeCounts, RunFrame, Turn

log: Final = get_logger(__name__)

ALIVE_IS_READY: Final = 1.0
"""Seconds after which a silent child that still runs counts as ready (level 1)."""

MAX_QUEUED_LINES: Final = 64
"""Most lines that wait to be written."""

MAX_LOGGED_STDERR: Final = 2000
"""Most bytes of a dead child's complaints that are logged."""


@final
class BridgeChild:
    """A bridge process and what is known of it.

    Args:
        command: Program and arguments.
        environment: All the variables that it gets.
        context: The session's context.
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
        self._to_write, self._written = trio.open_memory_channel[bytes](MAX_QUEUED_LINES)
        self._requests = BridgeRequests(context, self._queue)
        self._decoder = BridgeDecoder()
        self._life = trio.CancelScope()
        self._talk = trio.CancelScope()
        self._started = trio.Event()
        self._ready = trio.Event()
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
        """Process id, or None while there is no process."""
        return self._pid

    @property
    def knows_runs(self) -> bool:
        """Whether the bridge names the run in what it says."""
        return "run_id" in self._features

    @property
    def is_usable(self) -> bool:
        """Whether it may take a message: it is alive, or will be started."""
        return not (self.has_ended or self._life.cancel_called or self._talk.cancel_called)

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone, or could not be started."""
        return self._ended.is_set()

    @property
    def failure(self) -> AdapterError:
        """Why it ended, as a run is told."""
        return self._failure or AdapterError(
            "the bridge was stopped", code="OPENCLAW_BRIDGE_EXITED", is_retryable=True
        )

    async def wait_ready(self) -> None:
        """Wait until the child can take a message.

        Bounded by ``child.start`` and ``bridge.ready``, both counted from the moment when
        the child is started, and by what an earlier child takes to stop.

        Raises:
            AdapterError: If it could not be started, ended, or did not become ready.
        """
        await self._ready.wait()
        if not self.is_usable:
            await self._ended.wait()  # how it ended is known only then
            raise self.failure

    async def say(self, frame: ToBridge) -> None:
        """Queue a line for the child; waits only while :data:`MAX_QUEUED_LINES` are queued.

        A child that has ended hears nothing, and this raises nothing: whoever waits for
        what the child says is told that it ended.

        Raises:
            LocalProtocolError: If the line would be too long.
        """
        await self._queue(encode_frame(frame))

    async def _queue(self, line: bytes) -> None:
        with suppress(trio.BrokenResourceError):
            await self._to_write.send(line)

    @contextmanager
    def turn(self, run_id: str) -> Generator[Turn]:
        """Listen to what the child says about a run, for the length of a block.

        Args:
            run_id: The run.
        """
        self._turn = turn = Turn(run_id, knows_runs=self.knows_runs)
        try:
            yield turn
        finally:
            self._turn = None
            turn.abandon()

    async def ask_snapshot(self) -> None:
        """Ask for the child's state and wait for it, at most ``bridge.snapshot``.

        Does nothing while an earlier question is unanswered: a bridge that has no
        snapshots must not slow every run down.
        """
        if self._asked is not None or not (self.is_usable and self._ready.is_set()):
            return
        self._asked = self._context.ports.ids.new_id()
        self._answered = trio.Event()
        with trio.move_on_after(self._context.deadlines.bridge_snapshot):
            await self.say(Snapshot(id=self._asked, session_id=self._context.session_id))
            await self._answered.wait()

    def request_stop(self) -> None:
        """Have the process ended, without waiting for it; no message reaches it any more."""
        self._life.cancel("the bridge is no longer wanted")

    async def wait_ended(self) -> None:
        """Wait until the process is gone; after :meth:`request_stop` that is bounded."""
        await self._ended.wait()

    # --- for the supervisor -----------------------------------------------------------

    async def serve(self, payload: JsonObject, configured_by: str) -> None:
        """Start the process, talk to it and stop it; return when it is gone.

        Args:
            payload: What the ``start`` line says.
            configured_by: What the operator has to look at if it cannot be started.
        """
        deadlines = self._context.deadlines
        ready_by = trio.current_time() + deadlines.bridge_ready
        self._counts.starts += 1
        try:
            start = encode_frame(Start(session_id=self._context.session_id, payload=payload))
            with self._life:
                async with open_child(
                    self._command,
                    ports=self._context.ports,
                    deadlines=deadlines,
                    environment=self._environment,
                    cwd=self._context.workspace,
                    name="bridge",
                ) as child:
                    self._pid = child.pid
                    await self._live(child, start, ready_by)
        except (ChildStartFailed, DeadlineExceeded, LocalProtocolError) as exc:
            self._failure = AdapterError(
                f"the bridge could not be started: {exc}; check {configured_by}",
                code="OPENCLAW_BRIDGE_START_FAILED",
                is_retryable=isinstance(exc, DeadlineExceeded),  # the others stay as they are
            )
            log.warning("bridge not started", error=str(exc))
        finally:
            self._end()

    def _end(self) -> None:
        self._pid = None
        self._ended.set()
        self._ready.set()
        self._answered.set()
        self._written.close()
        if self._turn is not None:
            self._turn.close()

    async def _live(self, child: Child, start: bytes, ready_by: float) -> None:
        deadlines = self._context.deadlines
        was_stopped = True
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
                self._requests.end_reports()  # those that it made before still count
                reports.cancel_scope.deadline = trio.current_time() + deadlines.child_eof_grace
            was_stopped = False
        finally:
            with grace("session.adapter_stop", deadlines.session_adapter_stop):
                if not was_stopped and self._failure is None:
                    with trio.move_on_after(deadlines.child_eof_grace):
                        await child.wait()
                status = child.exit_status
                await child.stop(encode_frame(Stop(session_id=self._context.session_id)))
            if not was_stopped:
                self._explain(child, "closed its output" if status is None else f"ended: {status}")

    def _explain(self, child: Child, how: str) -> None:
        """Say why a child is gone that nobody had stopped."""
        if self._failure is None:
            self._failure = AdapterError(
                f"the bridge {how}; the next message starts it again",
                code="OPENCLAW_BRIDGE_EXITED",
                is_retryable=True,
            )
        tail = child.stderr_tail[-MAX_LOGGED_STDERR:].decode("utf-8", "replace")
        log.warning("bridge ended", pid=child.pid, error=str(self._failure), stderr=tail)

    def _give_up(self, code: str, message: str) -> None:
        if self._failure is None:
            self._failure = AdapterError(message, code=code, is_retryable=True)
        self._talk.cancel(code)

    # --- tasks of one child -----------------------------------------------------------

    async def _write(self, child: Child, start: bytes) -> None:
        try:
            await child.send(start)  # bounded by bridge.ready
            self._started.set()
            # Unbounded on purpose: the next thing that somebody has to tell the child.
            async for line in self._written:
                with deadline("bridge.request", self._context.deadlines.bridge_request):
                    await child.send(line)
        except DeadlineExceeded as exc:
            self._give_up(PROTOCOL_ERROR, f"the bridge does not read its input: {exc}")
        except ChildError:
            # Most likely it is ending, and how it ends says more than this does.
            await trio.sleep(self._context.deadlines.child_eof_grace)
            self._give_up(PROTOCOL_ERROR, "the bridge has closed its input")

    async def _watch_ready(self, ready_by: float) -> None:
        with trio.move_on_at(ready_by) as scope:
            await self._started.wait()
            with trio.move_on_after(ALIVE_IS_READY):
                await self._ready.wait()
            self._ready.set()
        if scope.cancelled_caught:
            error = DeadlineExceeded("bridge.ready", self._context.deadlines.bridge_ready)
            self._give_up("SESSION_START_TIMEOUT", f"the bridge is not ready: {error}")

    async def _watch_exit(self, child: Child) -> None:
        await child.wait()  # unbounded on purpose: a child lives as long as its session
        # Another process may hold the pipe open; what this one said is read soon.
        with trio.move_on_after(self._context.deadlines.child_eof_grace):
            await self._output_ended.wait()
        self._talk.cancel("the bridge has ended")

    async def _read(self, child: Child, nursery: trio.Nursery) -> None:
        try:
            # Unbounded on purpose: whatever the child says next.
            async for line in child.lines(MAX_LINE_BYTES):
                await self._take(self._decode(line), nursery)
        except RemoteProtocolError as exc:
            child.kill()
            self._give_up(PROTOCOL_ERROR, f"the bridge was killed: {exc.reason}")
        finally:
            self._output_ended.set()

    def _decode(self, line: bytes) -> FromBridge | None:
        try:
            return self._decoder.decode(line, trio.current_time())
        except RemoteProtocolError as exc:
            self._counts.skipped_lines += 1
            if not self._has_skipped:
                self._has_skipped = True
                log.warning("line of a bridge skipped", pid=self._pid, error=str(exc))
            return None

    async def _take(self, frame: FromBridge | None, nursery: trio.Nursery) -> None:
        if isinstance(frame, Ready):
            self._features = frozenset(frame.features)
        self._ready.set()  # any line counts (level 1)
        match frame:
            case CpRequest():
                await self._requests.take_request(frame, nursery)
            case CpFireAndForget():
                await self._requests.take_report(frame)
                if frame.method == "usage_report":
                    await self._pass_on(frame)
            case SnapshotResponse():
                self._take_snapshot(frame)
            case BridgeEvent() | BridgeComplete() | BridgeError():
                if not await self._pass_on(frame):
                    self._counts.dropped_events += 1
            case Ready() | None:
                pass

    async def _pass_on(self, frame: RunFrame) -> bool:
        return self._turn is not None and await self._turn.put(frame)

    def _take_snapshot(self, response: SnapshotResponse) -> None:
        if response.id != self._asked:
            self._counts.skipped_lines += 1
            return
        self._asked = None
        if response.snapshot is not None:
            self._keep_snapshot(response.snapshot)
        self._answered.set()
