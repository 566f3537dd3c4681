"""The real implementations of :mod:`semibot.ports`, on Trio and the operating system."""

from __future__ import annotations

import os
import random
import secrets
import ssl
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, TypeVar, TypeVarTuple, final

import attrs
import trio

from semibot.ports import ByteReceiver, ByteSender, ByteStream, Ports

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

THREAD_LIMITS: Final[Mapping[str, int]] = MappingProxyType(
    {"tools": 16, "files": 4, "watchdog": 8, "store": 1, "store.read": 4}
)
"""How many threads each named limiter allows at once."""


@final
class LiveWallClock:
    """The system's clock."""

    def now(self) -> datetime:
        """Return the current time in UTC."""
        return datetime.now(UTC)


@final
class LiveIds:
    """Identifiers from the operating system's entropy."""

    def new_id(self) -> str:
        """Return 32 hexadecimal digits."""
        return secrets.token_hex(16)


@final
@attrs.define(eq=False)
class LiveThreads:
    """Trio's worker threads behind named limiters.

    Args:
        limits: Capacity of each limiter by its name.
    """

    limits: Mapping[str, int] = THREAD_LIMITS
    _limiters: dict[str, trio.CapacityLimiter] = attrs.field(
        factory=dict[str, trio.CapacityLimiter], init=False
    )

    def _limiter(self, name: str) -> trio.CapacityLimiter:
        limiter = self._limiters.get(name)
        if limiter is None:
            limiter = self._limiters[name] = trio.CapacityLimiter(self.limits[name])
        return limiter

    async def run_sync(
        self,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        limiter: str,
        abandon_on_cancel: bool = False,
        on_exit: Callable[[], None] | None = None,
    ) -> T:
        """Run a blocking function; see :class:`semibot.ports.Threads`."""

        def work() -> T:
            try:
                return fn(*args)
            finally:
                if on_exit is not None:
                    on_exit()

        return await trio.to_thread.run_sync(
            work, limiter=self._limiter(limiter), abandon_on_cancel=abandon_on_cancel
        )

    def in_use(self) -> Mapping[str, int]:
        """Return the tokens that are out, by limiter name."""
        return {name: int(limiter.borrowed_tokens) for name, limiter in self._limiters.items()}


@final
@attrs.frozen
class LiveDisk:
    """The operating system's files."""

    sqlite_vfs: str | None = None

    def sync(self, descriptor: int) -> None:
        """Wait until the operating system has everything on the disk."""
        os.fsync(descriptor)


@final
@attrs.define(eq=False)
class LiveProcess:
    """A :class:`trio.Process` with three pipes, as the port wants it."""

    _process: trio.Process
    stdin: ByteSender
    stdout: ByteReceiver
    stderr: ByteReceiver

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the exit and return the status."""
        return await self._process.wait()

    def signal_group(self, signum: int) -> None:
        """Signal the session that the child leads."""
        try:
            os.killpg(self._process.pid, signum)
        except (ProcessLookupError, PermissionError):
            return


async def live_spawn(
    argv: Sequence[str],
    *,
    cwd: str | None,
    environment: Mapping[str, str],
    pass_fds: Sequence[int] = (),
) -> LiveProcess:
    """Start a program; see :class:`semibot.ports.Spawn`."""
    process = await trio.lowlevel.open_process(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=dict(environment),
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:
        message = "a child was started without its pipes"
        raise AssertionError(message)
    return LiveProcess(process, process.stdin, process.stdout, process.stderr)


async def live_dial(host: str, port: int, *, use_tls: bool) -> ByteStream:
    """Open a TCP connection; see :class:`semibot.ports.Dial`."""
    stream = await trio.open_tcp_stream(host, port)
    if not use_tls:
        return stream
    secured = trio.SSLStream(
        stream, ssl.create_default_context(), server_hostname=host, https_compatible=True
    )
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(stream)
        raise ConnectionError(f"TLS with {host} failed: {exc.__cause__ or exc}") from exc
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


@final
@attrs.frozen
class LiveListener:
    """A listening TCP socket, as the port wants it."""

    _listener: trio.SocketListener

    @property
    def port(self) -> int:
        """The port that is listened on."""
        number: int = self._listener.socket.getsockname()[1]
        return number

    async def accept(self) -> ByteStream:
        """Return the next connection."""
        return await self._listener.accept()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._listener.aclose()


async def live_listen(host: str, port: int) -> LiveListener:
    """Listen on TCP; see :class:`semibot.ports.Listen`."""
    listeners = await trio.open_tcp_listeners(port, host=host)
    for surplus in listeners[1:]:  # a name with two addresses, such as localhost
        surplus.socket.close()  # without a checkpoint, at which the others would be left open
    return LiveListener(listeners[0])


def live_ports() -> Ports:
    """Return a fresh set of real seams; nothing is shared between two sets."""
    return Ports(
        wall_clock=LiveWallClock(),
        random=random.Random(),  # noqa: S311 - for jitter; ids come from LiveIds
        ids=LiveIds(),
        threads=LiveThreads(),
        disk=LiveDisk(),
        spawn=live_spawn,
        dial=live_dial,
        listen=live_listen,
        environment=MappingProxyType(dict(os.environ)),
    )
