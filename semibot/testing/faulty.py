"""Streams that break at the operation that a sweep chooses, and ports that give them out.

Outside of :func:`semibot.testing.fail_everywhere` they pass everything on.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar, final

import attrs
import trio

from semibot.ports import (
    ByteReceiver,
    ByteSender,
    ByteStream,
    Dial,
    Listen,
    Listener,
    Ports,
    Process,
    Spawn,
)

T = TypeVar("T")


@final
@attrs.define(eq=False)
class FaultPlan:
    """Which operation fails. A sweep makes one for each run.

    Args:
        target: The operation that fails, counted from 1.
        is_late: Whether it fails after it has been done, so that the other side has seen it.
    """

    target: int
    is_late: bool
    count: int = attrs.field(default=0, init=False)
    """Operations that have begun."""
    failed_at: float | None = attrs.field(default=None, init=False)
    """When the error was raised, on Trio's clock; None if it has not been."""
    where: str = attrs.field(default="", init=False)
    """What failed."""

    def take(self, what: str) -> bool:
        """Count an operation, and return whether it is the one that fails."""
        self.count += 1
        if self.count == self.target:
            self.where = what
        return self.count == self.target


_plan: contextvars.ContextVar[FaultPlan] = contextvars.ContextVar("semibot_fault_plan")


def follow(plan: FaultPlan) -> None:
    """Let *plan* decide for this task and for the tasks that it will start."""
    _plan.set(plan)


async def _attempt(
    what: str,
    fail: Callable[[], Exception],
    operation: Callable[[], Awaitable[T]],
    *,
    makes: bool = False,
) -> T:
    """Do an operation; if it is the chosen one, raise what *fail* returns before or after it.

    One that makes something fails before: nobody would get, or close, what it has made.
    """
    plan = _plan.get(None)
    if plan is None or not plan.take(what):
        return await operation()
    if plan.is_late and not makes:
        await operation()
    else:
        await trio.lowlevel.checkpoint()
    plan.failed_at = trio.current_time()
    raise fail()


def _broken() -> Exception:
    return trio.BrokenResourceError("broken by a sweep")


def _refused() -> Exception:
    return OSError("refused by a sweep")


@final
@attrs.define(eq=False)
class _Fuse:
    """Breaks one stream, once and for good."""

    name: str
    close: Callable[[], Awaitable[object]]
    """Lets the other side see it."""
    _is_blown: bool = attrs.field(default=False, init=False)

    def is_blown(self) -> bool:
        return self._is_blown

    async def guard(self, verb: str, operation: Callable[[], Awaitable[T]]) -> T:
        if self.is_blown():
            await trio.lowlevel.checkpoint()
            raise _broken()
        try:
            return await _attempt(f"{self.name}.{verb}", self._blow, operation)
        except trio.ClosedResourceError:
            if self.is_blown():  # by another task, while this one waited
                raise _broken() from None
            raise
        except trio.BrokenResourceError:
            if self.is_blown():
                await self._close_now()
            raise

    def _blow(self) -> Exception:
        self._is_blown = True
        return _broken()

    async def _close_now(self) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await self.close()


@final
class FaultyStream:
    """A stream that breaks for good, for both sides, at the operation that a sweep chooses.

    Args:
        stream: The real one.
        name: What to call it in findings.
    """

    def __init__(self, stream: ByteStream, name: str = "stream") -> None:
        self._stream = stream
        self._fuse = _Fuse(name, stream.aclose)

    async def send_all(self, data: bytes) -> None:
        """Write all of *data*."""
        await self._fuse.guard("send_all", lambda: self._stream.send_all(data))

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return the next bytes."""
        return await self._fuse.guard("receive_some", lambda: self._stream.receive_some(max_bytes))

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the other side takes bytes again."""
        await self._fuse.guard("wait", self._stream.wait_send_all_might_not_block)

    async def aclose(self) -> None:
        """Close; that never fails."""
        await self._stream.aclose()


@final
class _FaultySender:
    def __init__(self, stream: ByteSender, name: str) -> None:
        self._stream = stream
        self._fuse = _Fuse(name, stream.aclose)

    async def send_all(self, data: bytes) -> None:
        await self._fuse.guard("send_all", lambda: self._stream.send_all(data))

    async def aclose(self) -> None:
        await self._stream.aclose()


@final
class _FaultyReceiver:
    def __init__(self, stream: ByteReceiver, name: str) -> None:
        self._stream = stream
        self._fuse = _Fuse(name, stream.aclose)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._fuse.guard("receive_some", lambda: self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


@final
class _FaultyListener:
    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    @property
    def port(self) -> int:
        return self._listener.port

    async def accept(self) -> ByteStream:
        stream = await _attempt("accept", _refused, self._listener.accept, makes=True)
        return FaultyStream(stream, "accepted")

    async def aclose(self) -> None:
        await self._listener.aclose()


@final
class _FaultyProcess:
    def __init__(self, process: Process) -> None:
        self._process = process
        self.stdin: ByteSender = _FaultySender(process.stdin, "stdin")
        self.stdout: ByteReceiver = _FaultyReceiver(process.stdout, "stdout")
        self.stderr: ByteReceiver = _FaultyReceiver(process.stderr, "stderr")

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    def signal_group(self, signum: int) -> None:
        self._process.signal_group(signum)


def faulty_ports(ports: Ports) -> Ports:
    """Return *ports* whose connections, listeners and children's pipes may break.

    Args:
        ports: What really connects, listens and starts children.
    """
    return attrs.evolve(
        ports,
        dial=_FaultyDial(ports.dial),
        listen=_FaultyListen(ports.listen),
        spawn=_FaultySpawn(ports.spawn),
    )


@final
@attrs.frozen
class _FaultyDial:
    _dial: Dial

    async def __call__(self, host: str, port: int, *, use_tls: bool) -> ByteStream:
        stream = await _attempt(
            "dial", _refused, lambda: self._dial(host, port, use_tls=use_tls), makes=True
        )
        return FaultyStream(stream, "dialled")


@final
@attrs.frozen
class _FaultyListen:
    _listen: Listen

    async def __call__(self, host: str, port: int) -> Listener:
        listener = await _attempt("listen", _refused, lambda: self._listen(host, port), makes=True)
        return _FaultyListener(listener)


@final
@attrs.frozen
class _FaultySpawn:
    _spawn: Spawn

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> Process:
        def spawn() -> Awaitable[Process]:
            return self._spawn(argv, cwd=cwd, environment=environment, pass_fds=pass_fds)

        return _FaultyProcess(await _attempt("spawn", _refused, spawn, makes=True))
