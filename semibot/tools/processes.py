"""Own child processes: the only module through which semibot starts programs.

Theory of operation. :func:`open_child` is a scope: when it is left, the child, everything
that it started, and every pipe to it are gone, whatever happened in between. How the tree
is reached is :mod:`semibot.tools._child_trees`. Three services run around the body:

* one waits for the end of the tree, which makes it known to everybody else;
* one empties stderr all the time, so that complaints never block the child;
* one empties stdout once the child is being stopped. Before that a full pipe is what slows
  a child down to the speed of its reader; after it, it would keep the child from ending.

A child is asked to end in three steps: the end of its stdin, SIGTERM to the tree, SIGKILL to
the tree. Each has a deadline of its own, and the next follows only if the last was not enough.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path, PurePath
from typing import Final, Self, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import ChildError, RemoteProtocolError
from semibot.lifetimes import deadline, grace, open_services
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.tools._child_output import Head, Tail, empty
from semibot.tools._child_trees import ChildTree, Command, start_tree
from semibot.tools._child_trees import ExitStatus as ExitStatus
from semibot.tools._child_trees import Tier as Tier
from semibot.tools.ledger import Activity, Ledger
from semibot.wire.jsonl import MAX_LINE_BYTES, LineFramer

log: Final = get_logger(__name__)

STDERR_TAIL_BYTES: Final = 64 * 1024
"""How much of a child's stderr is kept."""
MAX_OUTPUT_BYTES: Final = 256 * 1024
"""How much of each output stream :func:`run_child` keeps unless it is told otherwise."""


@final
@attrs.define(eq=False)
class Child:
    """A child process. Made by :func:`open_child`."""

    name: str
    """What it is called in logs and receipts."""
    _tree: ChildTree
    _deadlines: Deadlines
    _stderr: Tail = attrs.field(factory=lambda: Tail(STDERR_TAIL_BYTES), init=False)
    _has_ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    _is_stopping: trio.Event = attrs.field(factory=trio.Event, init=False)
    _send_lock: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _is_torn: bool = attrs.field(default=False, init=False)
    _receive_lock: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _receiver: trio.CancelScope | None = attrs.field(default=None, init=False)

    @property
    def pid(self) -> int:
        """Process id of the child itself."""
        return self._tree.pid

    @property
    def stderr_tail(self) -> bytes:
        """The newest of what it wrote to stderr, at most 64 KiB; complete after its end."""
        return self._stderr.content()

    @property
    def exit_status(self) -> ExitStatus | None:
        """How it ended, or None as long as that is not known."""
        return self._tree.status

    async def send(self, data: bytes) -> None:
        """Write to its stdin; returns when the operating system has taken everything.

        Waits as long as the child does not read: bound it with a scope. Several tasks may
        send; the bytes of each call stay together. A cancelled call has written nothing
        if *data* was at most :data:`select.PIPE_BUF` bytes. If it was longer, part of it may be
        on its way, and sending is over.

        Raises:
            ChildError: If the child no longer reads, its input was closed, or an earlier call
                was cancelled half-way.
        """
        async with self._send_lock:
            if self._is_torn:
                raise ChildError(f"{self.name}: an earlier message was cut off half-way")
            # The kernel takes up to PIPE_BUF bytes in one piece or not at all.
            self._is_torn = len(data) > select.PIPE_BUF
            try:
                await self._tree.stdin.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._is_torn = False
                raise ChildError(f"{self.name} no longer reads its input") from exc
            self._is_torn = False

    async def close_input(self) -> None:
        """Close its stdin, so that it sees the end of its input. A send under way fails."""
        await self._tree.stdin.aclose()

    async def receive_some(self) -> bytes:
        """Return the next bytes of its stdout, or nothing at the end of the stream.

        Waits as long as the child is silent. From the moment that it is being stopped, the
        stream counts as ended: what the child still says is read and dropped.

        Raises:
            trio.BusyResourceError: If another task is receiving.
        """
        try:
            self._receive_lock.acquire_nowait()
        except trio.WouldBlock:
            if not self._is_stopping.is_set():
                raise trio.BusyResourceError("another task is receiving from this child") from None
            await trio.lowlevel.checkpoint()
            return b""
        data: bytes | bytearray = b""
        try:
            with trio.CancelScope() as scope:  # noqa: ASYNC912 - receiving is a checkpoint
                self._receiver = scope
                if self._is_stopping.is_set():
                    scope.cancel("the child is being stopped")
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    data = await self._tree.stdout.receive_some()
        finally:
            self._receiver = None
            self._receive_lock.release()
        return bytes(data)

    def lines(self, max_line_bytes: int = MAX_LINE_BYTES) -> LineReader:
        """Return an iterator over the lines of its stdout, without their newlines.

        Args:
            max_line_bytes: Longest line that is accepted, in bytes.
        """
        return LineReader(self, max_line_bytes)

    async def wait(self) -> ExitStatus:
        """Wait for its end; what it started is then gone too, and all of it is reaped.

        Waits as long as the child lives: bound it with a scope.
        """
        await self._has_ended.wait()
        return self._status()

    def kill(self) -> None:
        """Send SIGKILL to the child and everything it started, without waiting."""
        if not self._tree.is_gone:
            self._tree.kill()

    async def stop(self, farewell: bytes | None = None) -> ExitStatus:
        """End the child and everything it started; does nothing if that has happened.

        The end of its input, ``child.eof_grace`` later SIGTERM to the tree, ``child.term_grace``
        later SIGKILL to the tree, and ``child.kill_grace`` for that to take effect. A cancelled
        scope around it changes nothing. May be called by several tasks.

        Args:
            farewell: Last message, sent before the end of its input if the child takes it.

        Returns:
            How the child ended; unknown if even SIGKILL did not end it in time.
        """
        self._begin_stop()
        if not self._has_ended.is_set():
            with grace("child.eof_grace", self._deadlines.child_eof_grace):
                if farewell is not None:
                    with suppress(ChildError):
                        await self.send(farewell)
                await self.close_input()
                await self._has_ended.wait()
        return await self._stop_by_force()

    async def _stop_by_force(self) -> ExitStatus:
        """Stop without the first step, for a child that is not waiting for input."""
        self._begin_stop()
        if self._has_ended.is_set():
            return self._status()
        if not self._tree.is_gone:
            self._tree.terminate()
            with grace("child.term_grace", self._deadlines.child_term_grace):
                await self._has_ended.wait()
        if not self._tree.is_gone:
            self._tree.kill()
            with grace("child.kill_grace", self._deadlines.child_kill_grace):
                await self._has_ended.wait()
        if not self._tree.is_gone:
            log.error("child did not end in time after SIGKILL", child=self.name, pid=self.pid)
        self._has_ended.set()  # nobody waits any longer, for the child or for its last words
        return self._status()

    def _begin_stop(self) -> None:
        self._is_stopping.set()
        if self._receiver is not None:
            self._receiver.cancel("the child is being stopped")

    def _status(self) -> ExitStatus:
        return self._tree.status or ExitStatus()

    # What follows runs as services of _open(), which are cancelled once the child has ended.

    async def _watch(self, activity: Activity | None, stderr_end: trio.Event) -> None:
        await self._tree.wait()
        if activity is not None:
            activity.close()
        # The pipe ends with the tree, so that the tail is complete; only a process that left
        # the group of tier "group" can hold it open.
        with trio.move_on_after(self._deadlines.child_eof_grace):
            await stderr_end.wait()
        self._has_ended.set()
        await trio.sleep_forever()

    async def _empty_stderr(self, sink: Head | None, end: trio.Event) -> None:
        await empty(self._tree.stderr, self._stderr, *(() if sink is None else (sink,)))
        end.set()
        await trio.sleep_forever()

    async def _empty_stdout(self) -> None:
        await self._is_stopping.wait()
        async with self._receive_lock:
            await empty(self._tree.stdout)
        await trio.sleep_forever()

    # And these as services of run_child().

    async def _feed(self, data: bytes) -> None:
        with suppress(ChildError):  # a program need not read its input
            await self.send(data)
        await self.close_input()
        await trio.sleep_forever()

    async def _collect(self, sink: Head, end: trio.Event) -> None:
        await empty(self._tree.stdout, sink)
        end.set()
        await trio.sleep_forever()


@final
class LineReader:
    """The lines of a child's stdout, as bytes without newlines. Made by :meth:`Child.lines`."""

    def __init__(self, child: Child, max_line_bytes: int) -> None:
        self._child = child
        self._framer = LineFramer(max_line_bytes)
        self._lines: deque[bytes] = deque()
        self._has_ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next line; what stands after the last newline is a line as well.

        Raises:
            RemoteProtocolError: If a line is longer than allowed. There are no more lines then.
            trio.BusyResourceError: If another task is receiving.
        """
        if self._lines:
            await trio.lowlevel.checkpoint()  # a flood of lines must not keep others waiting
        while not self._lines:
            if self._has_ended:
                raise StopAsyncIteration
            self._take(await self._child.receive_some())
        return self._lines.popleft()

    def _take(self, data: bytes) -> None:
        if data:
            try:
                self._lines.extend(self._framer.feed(data))
            except RemoteProtocolError:
                self._has_ended = True
                raise
            return
        self._has_ended = True
        rest = self._framer.close()
        if rest is not None and not self._child._is_stopping.is_set():
            self._lines.append(rest)


@asynccontextmanager
async def _open(
    argv: Sequence[str],
    *,
    ports: Ports,
    deadlines: Deadlines,
    environment: Mapping[str, str],
    cwd: Path | None,
    ledger: Ledger | None,
    name: str | None,
    tier: Tier | None = None,
    stderr: Head | None = None,
) -> AsyncGenerator[Child]:
    if isinstance(argv, str):
        raise TypeError("a command is a sequence of words, not a string for a shell")
    command = Command(
        argv=tuple(argv), environment=dict(environment), cwd=None if cwd is None else str(cwd)
    )
    command.check()
    with deadline("child.start", deadlines.child_start):
        tree = await start_tree(command, ports=ports, deadlines=deadlines, tier=tier)
    try:
        child = Child(name or PurePath(command.program).name, tree, deadlines)
        activity: Activity | None = None
        if ledger is not None:
            activity = ledger.begin("child", ports.ids.new_id(), child.name, pid=child.pid)
        log.info("child started", child=child.name, pid=child.pid, tier=tree.tier)
        async with open_services() as services:
            stderr_end = trio.Event()
            services.start_soon(child._watch, activity, stderr_end)
            services.start_soon(child._empty_stderr, stderr, stderr_end)
            services.start_soon(child._empty_stdout)
            try:
                yield child
            finally:
                await child.stop()
    finally:
        with grace("child.kill_grace", deadlines.child_kill_grace):
            await tree.aclose()


@asynccontextmanager
async def open_child(
    argv: Sequence[str],
    *,
    ports: Ports,
    deadlines: Deadlines,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    ledger: Ledger | None = None,
    name: str | None = None,
    tier: Tier | None = None,
) -> AsyncGenerator[Child]:
    """Start a program and own it, and all that it starts, for the length of the block.

    It leads a session of its own, and its only descriptors are three pipes. On exit it is
    ended as :meth:`Child.stop` says, unless it has ended by itself; exit waits at most
    ``child.eof_grace`` + ``child.term_grace`` + ``child.kill_grace``, cancelled or not. What
    even SIGKILL does not end in time is logged, and stays open in the ledger.

    Args:
        argv: Program and arguments, never a shell's line. The program is looked up in the
            ``PATH`` of *environment* unless it has a slash in it.
        ports: Where processes come from.
        deadlines: Bounds of starting and stopping.
        environment: All the variables that the program gets; nothing is inherited.
        cwd: Directory to start in, or None for ours.
        ledger: Where the child is entered until it is reaped.
        name: What to call it; by default the program's file name.
        tier: How to reach its tree, or None for the strongest way that works here.

    Yields:
        The running child.

    Raises:
        ChildStartFailed: If the program cannot be started.
        DeadlineExceeded: If starting it took longer than ``child.start``.
        TypeError: If *argv* is a string.
    """
    async with _open(
        argv,
        ports=ports,
        deadlines=deadlines,
        environment=environment,
        cwd=cwd,
        ledger=ledger,
        name=name,
        tier=tier,
    ) as child:
        yield child


@attrs.frozen(kw_only=True)
class ChildResult:
    """What came of :func:`run_child`."""

    status: ExitStatus
    """How the child ended."""
    stdout: bytes
    """The first of what it wrote to stdout."""
    stderr: bytes
    """The first of what it wrote to stderr."""
    stdout_truncated: bool
    """Whether it wrote more to stdout than is kept."""
    stderr_truncated: bool
    """Whether it wrote more to stderr than is kept."""


async def run_child(
    argv: Sequence[str],
    *,
    ports: Ports,
    deadlines: Deadlines,
    environment: Mapping[str, str],
    cwd: Path | None = None,
    ledger: Ledger | None = None,
    name: str | None = None,
    stdin: bytes = b"",
    max_output_bytes: int = MAX_OUTPUT_BYTES,
    tier: Tier | None = None,
) -> ChildResult:
    """Run a program to its end and collect what it says.

    Waits as long as the program runs: bound it with a scope. When it is cancelled, the
    program and everything it started get SIGTERM, ``child.term_grace`` later SIGKILL, and are
    gone before the cancellation goes on; that takes at most another ``child.kill_grace``.

    Args:
        argv: Program and arguments, never a shell's line.
        ports: Where processes come from.
        deadlines: Bounds of starting and stopping.
        environment: All the variables that the program gets; nothing is inherited.
        cwd: Directory to start in, or None for ours.
        ledger: Where the child is entered until it is reaped.
        name: What to call it; by default the program's file name.
        stdin: Its whole input. It need not read it.
        max_output_bytes: How much of stdout, and of stderr, is kept, in bytes. What comes
            after that is read and dropped.
        tier: How to reach its tree, or None for the strongest way that works here.

    Raises:
        ChildStartFailed: If the program cannot be started.
        DeadlineExceeded: If starting it took longer than ``child.start``.
        TypeError: If *argv* is a string.
    """
    stdout, stderr = Head(max_output_bytes), Head(max_output_bytes)
    async with _open(
        argv,
        ports=ports,
        deadlines=deadlines,
        environment=environment,
        cwd=cwd,
        ledger=ledger,
        name=name,
        tier=tier,
        stderr=stderr,
    ) as child:
        try:
            async with open_services() as services:
                stdout_end = trio.Event()
                services.start_soon(child._feed, stdin)
                services.start_soon(child._collect, stdout, stdout_end)
                status = await child.wait()
                # Bounded for the same reason as the end of stderr is.
                with trio.move_on_after(deadlines.child_eof_grace):
                    await stdout_end.wait()
        except BaseException:
            await child._stop_by_force()  # its graces are inside
            raise
    return ChildResult(
        status=status,
        stdout=stdout.content(),
        stderr=stderr.content(),
        stdout_truncated=stdout.is_truncated,
        stderr_truncated=stderr.is_truncated,
    )
