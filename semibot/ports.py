"""The seams to the outside world that tests and simulations replace.

Everything that is not a pure function of its input comes through here: wall-clock time,
randomness, ids, the environment, worker threads, what makes files last, connections and child
processes. Elapsed time does not: it is :func:`trio.current_time`, which a mock clock already
controls. This module knows no Trio, so that the parts of semibot without I/O can name the seams
too; the real implementations are in :mod:`semibot.live`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeVar, TypeVarTuple

import attrs

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class WallClock(Protocol):
    """What time it is, for people; never used to measure how long something took."""

    def now(self) -> datetime:
        """Return the current time as an aware ``datetime`` in UTC."""
        ...


class IdSource(Protocol):
    """Where fresh identifiers come from."""

    def new_id(self) -> str:
        """Return a new identifier: 32 hexadecimal digits, 128 random bits."""
        ...


class Threads(Protocol):
    """Where blocking code runs."""

    async def run_sync(
        self,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        limiter: str,
        abandon_on_cancel: bool = False,
        on_exit: Callable[[], None] | None = None,
    ) -> T:
        """Run ``fn(*args)`` off the loop and return its result.

        Args:
            fn: Blocking function.
            *args: Its arguments.
            limiter: Name of the capacity limiter that bounds how many run at once.
            abandon_on_cancel: Whether a cancellation leaves the thread behind. Its
                result is then discarded; the limiter keeps counting it until it ends.
            on_exit: Called in the thread when *fn* has really ended, abandoned or not.
        """
        ...

    def in_use(self) -> Mapping[str, int]:
        """Return how many threads each named limiter has out, abandoned ones included."""
        ...


class Disk(Protocol):
    """Where files last: what decides whether a write outlives the loss of power."""

    @property
    def sqlite_vfs(self) -> str | None:
        """Name of the SQLite VFS through which databases are opened; None means the usual."""
        ...

    def sync(self, descriptor: int) -> None:
        """Bring a file's content, or the names in a directory, to the disk; blocking.

        Args:
            descriptor: The open file, which must be readable, or the directory.

        Raises:
            OSError: If the disk refuses; what was written since the last time may be lost.
        """
        ...


class ByteSender(Protocol):
    """The writing end of a pipe or connection."""

    async def send_all(self, data: bytes) -> None:
        """Write all of *data*.

        Raises:
            trio.BrokenResourceError: If the reader is gone.
            trio.ClosedResourceError: If this end was closed.
        """
        ...

    async def aclose(self) -> None:
        """Close this end; the reader sees the end of the stream."""
        ...


class ByteReceiver(Protocol):
    """The reading end of a pipe or connection."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return the next bytes, or an empty value at the end of the stream."""
        ...

    async def aclose(self) -> None:
        """Close this end."""
        ...


class ByteStream(ByteSender, ByteReceiver, Protocol):
    """A connection."""

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the other side takes bytes again."""
        ...


class Dial(Protocol):
    """Open a connection."""

    async def __call__(self, host: str, port: int, *, use_tls: bool) -> ByteStream:
        """Connect to *host*.

        Args:
            host: Name or address.
            port: Port, 1 to 65535.
            use_tls: Whether to speak TLS, and to verify the other side for *host*.

        Raises:
            OSError: If nobody answers, or TLS fails.
        """
        ...


class Listener(Protocol):
    """Takes connections."""

    @property
    def port(self) -> int:
        """The port that is listened on."""
        ...

    async def accept(self) -> ByteStream:
        """Return the next connection.

        Raises:
            OSError: If there are too many open files, for the moment.
            trio.ClosedResourceError: If the listener was closed.
        """
        ...

    async def aclose(self) -> None:
        """Take no more connections."""
        ...


class Listen(Protocol):
    """Begin to take connections."""

    async def __call__(self, host: str, port: int) -> Listener:
        """Listen on one address.

        Args:
            host: Name or address to bind.
            port: Port; 0 takes a free one.

        Raises:
            OSError: If the address is taken or not ours.
        """
        ...


class Process(Protocol):
    """A child process as the operating system gives it; nothing here stops it for us."""

    @property
    def pid(self) -> int:
        """Process id."""
        ...

    @property
    def stdin(self) -> ByteSender:
        """What the child reads."""
        ...

    @property
    def stdout(self) -> ByteReceiver:
        """What the child writes."""
        ...

    @property
    def stderr(self) -> ByteReceiver:
        """What the child complains about."""
        ...

    async def wait(self) -> int:
        """Wait for the exit, reap, and return the status; negative means a signal."""
        ...

    def signal_group(self, signum: int) -> None:
        """Send a signal to the child's process group; no error if it is gone."""
        ...


class Spawn(Protocol):
    """Start a program in a session of its own, with three pipes."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> Process:
        """Start *argv* (never a shell string) and return once it exists.

        Raises:
            OSError: If the program cannot be started.
        """
        ...


@attrs.frozen(kw_only=True)
class Ports:
    """One set of seams. :func:`semibot.live.live_ports` makes the real one."""

    wall_clock: WallClock
    """Time for people."""
    random: random.Random = attrs.field(repr=False)
    """Jitter and the like; never secrets."""
    ids: IdSource
    """Fresh identifiers."""
    threads: Threads
    """Worker threads with named limiters."""
    disk: Disk
    """What makes files last."""
    spawn: Spawn
    """Child processes; only ``tools/processes.py`` calls it."""
    dial: Dial
    """Connections that we open."""
    listen: Listen
    """Connections that others open."""
    environment: Mapping[str, str] = attrs.field(repr=False)
    """The environment variables that this program was started with."""
    is_simulated: bool = False
    """Whether time may jump; real threads that watch the loop are then not started."""
