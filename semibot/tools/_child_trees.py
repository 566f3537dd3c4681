"""Start a child, and reach its whole tree of processes: through a guard or through its group.

Two tiers. ``guard`` (Linux) puts :mod:`semibot.tools.guard` between this process and the
child: nothing escapes it, and the tree dies with us even if we are killed with SIGKILL.
``group`` (everywhere else, and in a simulation) reaches the child's process group; a process
that leaves the group escapes, and only the end of its stdin tells a child that we are gone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Literal, Protocol, Self, TypeAlias, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import ChildStartFailed
from semibot.lifetimes import grace
from semibot.logs import get_logger
from semibot.ports import ByteReceiver, ByteSender, Ports, Process
from semibot.tools import guard
from semibot.tools._child_output import Tail, empty

log: Final = get_logger(__name__)

Tier: TypeAlias = Literal["guard", "group"]
"""How the tree of a child is reached."""

_GUARD_PROGRAM: Final = str(Path(guard.__file__))
_GUARD_VARIABLES: Final = ("LD_LIBRARY_PATH",)
"""What the guard's own interpreter may need in order to start."""

_COMPLAINT_BYTES: Final = 500


@attrs.frozen(kw_only=True)
class ExitStatus:
    """How a child ended. Both fields are None if nobody could find out."""

    code: int | None = None
    """Its exit status, or None if a signal ended it."""
    signal: int | None = None
    """Number of the signal that ended it, or None."""

    @classmethod
    def from_return_code(cls, return_code: int) -> Self:
        """Return the status for a code as ``subprocess`` has it: negative means a signal."""
        if return_code < 0:
            return cls(signal=-return_code)
        return cls(code=return_code)

    def __str__(self) -> str:
        if self.signal is not None:
            with suppress(ValueError):  # real-time signals have no name
                return f"killed by {signal.Signals(self.signal).name}"
            return f"killed by signal {self.signal}"
        return f"exit status {'unknown' if self.code is None else self.code}"


@attrs.frozen(kw_only=True)
class Command:
    """What to start."""

    argv: tuple[str, ...]
    """Program and arguments."""
    environment: Mapping[str, str] = attrs.field(repr=False)
    """All the variables that the program gets."""
    cwd: str | None
    """Directory to start in, or None to stay."""

    @property
    def program(self) -> str:
        """The program as it was named."""
        return self.argv[0]

    def check(self) -> None:
        """Refuse what no operating system can start.

        Raises:
            ChildStartFailed: If there is nothing to start, or a string cannot be passed on.
        """
        if not self.argv or not self.argv[0]:
            raise ChildStartFailed("(nothing)", "the command is empty")
        words = [*self.argv, *self.environment.values(), self.cwd or ""]
        if any("\0" in word for word in (*words, *self.environment)):
            raise ChildStartFailed(self.program.replace("\0", "?"), "a NUL character is in it")
        if any(not name or "=" in name for name in self.environment):
            raise ChildStartFailed(self.program, "an environment variable has an impossible name")
        try:
            for word in (*words, *self.environment):
                os.fsencode(word)
        except UnicodeEncodeError:
            raise ChildStartFailed(ascii(self.program), "it cannot be encoded") from None

    def start_failed(self, reason: str, *, is_about_cwd: bool) -> ChildStartFailed:
        """Return the error for what the operating system said."""
        where = f"working directory {self.cwd}: " if is_about_cwd else ""
        return ChildStartFailed(self.program, f"{where}{reason}")


class ChildTree(Protocol):
    """A child that runs, with everything it started."""

    @property
    def tier(self) -> Tier:
        """How the tree is reached."""
        ...

    @property
    def pid(self) -> int:
        """Process id of the child itself."""
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

    @property
    def status(self) -> ExitStatus | None:
        """How the child itself ended, or None as long as that is not known."""
        ...

    @property
    def is_gone(self) -> bool:
        """Whether child and tree have ended and are reaped."""
        ...

    async def wait(self) -> None:
        """Wait until child and tree have ended and are reaped; the status is known then.

        Only one task may wait.
        """
        ...

    def terminate(self) -> None:
        """Send SIGTERM to the tree. Not to be called once it is gone."""
        ...

    def kill(self) -> None:
        """Send SIGKILL to the tree. Not to be called once it is gone."""
        ...

    async def aclose(self) -> None:
        """Close every descriptor; does not wait."""
        ...


async def close_streams(*streams: ByteSender | ByteReceiver) -> None:
    """Close pipes. They close before the first checkpoint, so nothing is waited for."""
    for stream in streams:
        with trio.CancelScope() as scope:
            scope.cancel("closing a pipe needs no wait")
            await stream.aclose()


# --- group ----------------------------------------------------------------------------


@final
@attrs.define(eq=False)
class GroupTree:
    """A child of ours that leads a process group."""

    _process: Process
    tier: Tier = attrs.field(default="group", init=False)
    status: ExitStatus | None = attrs.field(default=None, init=False)
    is_gone: bool = attrs.field(default=False, init=False)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def stdin(self) -> ByteSender:
        """What the child reads."""
        return self._process.stdin

    @property
    def stdout(self) -> ByteReceiver:
        """What the child writes."""
        return self._process.stdout

    @property
    def stderr(self) -> ByteReceiver:
        """What the child complains about."""
        return self._process.stderr

    async def wait(self) -> None:
        """Wait for the child, then kill what it left in its group."""
        return_code = await self._process.wait()
        # The number of the group is taken as long as the group has members. If it has none, it
        # is free since a moment ago, and numbers go round before they are used again.
        self._process.signal_group(signal.SIGKILL)
        self.status = ExitStatus.from_return_code(return_code)
        self.is_gone = True

    def terminate(self) -> None:
        """Signal the group."""
        self._process.signal_group(signal.SIGTERM)
        self._process.signal_group(signal.SIGCONT)  # a stopped process can only then obey

    def kill(self) -> None:
        """Kill the group."""
        self._process.signal_group(signal.SIGKILL)

    async def aclose(self) -> None:
        """Close the three pipes."""
        await close_streams(self.stdin, self.stdout, self.stderr)


async def _start_group(command: Command, ports: Ports) -> ChildTree:
    try:
        process = await ports.spawn(command.argv, cwd=command.cwd, environment=command.environment)
    except OSError as exc:
        is_about_cwd = command.cwd is not None and exc.filename == command.cwd
        raise command.start_failed(exc.strerror or str(exc), is_about_cwd=is_about_cwd) from exc
    return GroupTree(process)


# --- guard ----------------------------------------------------------------------------


class _GuardImpossible(Exception):
    """Raised when a guard says that it cannot guard anything here."""


@final
@attrs.define(eq=False)
class GuardTree:
    """A child of a guard of ours."""

    _guard: Process
    _control: trio.lowlevel.FdStream
    _status_pipe: trio.lowlevel.FdStream
    pid: int = attrs.field(default=0, init=False)
    tier: Tier = attrs.field(default="guard", init=False)
    status: ExitStatus | None = attrs.field(default=None, init=False)
    is_gone: bool = attrs.field(default=False, init=False)
    _pending: bytes = attrs.field(default=b"", init=False)

    @property
    def stdin(self) -> ByteSender:
        """What the child reads."""
        return self._guard.stdin

    @property
    def stdout(self) -> ByteReceiver:
        """What the child writes."""
        return self._guard.stdout

    @property
    def stderr(self) -> ByteReceiver:
        """What the child complains about."""
        return self._guard.stderr

    async def _read_report(self) -> tuple[str, str] | None:
        """Return the guard's next line as its first word and the rest; None at the end."""
        while b"\n" not in self._pending:
            data = await self._status_pipe.receive_some()
            if not data:
                return None
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        word, _, rest = line.decode().partition(" ")
        return word, rest

    async def order(self, command: Command) -> None:
        """Have the guard start the child.

        Raises:
            ChildStartFailed: If the child cannot be started.
            _GuardImpossible: If the guard cannot work here.
        """
        order = guard.encode_order(command.argv, command.environment, command.cwd)
        with suppress(trio.BrokenResourceError):  # it ended early; its report says why
            await self._control.send_all(order)
        match await self._read_report():
            case ("started", pid):
                self.pid = int(pid)
            case ("failed", failure):
                stage, number = failure.split()
                raise command.start_failed(os.strerror(int(number)), is_about_cwd=stage == "cwd")
            case ("unsupported", reason):
                raise _GuardImpossible(reason)
            case _:
                complaint = Tail(_COMPLAINT_BYTES)
                await empty(self.stderr, complaint)
                words = complaint.content().decode(errors="replace").strip()
                raise ChildStartFailed(command.program, f"its guard process ended: {words}")

    async def wait(self) -> None:
        """Wait for the guard, which ends after everything else."""
        while (report := await self._read_report()) is not None:
            _, return_code = report  # that of the child; nothing else is reported any more
            self.status = ExitStatus.from_return_code(int(return_code))
        if await self._guard.wait() != 0:
            # Somebody killed the guard. The child got SIGKILL from the kernel at that moment;
            # its group is all of the tree that can still be named.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            log.warning("guard process died; descendants may be left", pid=self.pid)
        self.status = self.status or ExitStatus()
        self.is_gone = True

    def terminate(self) -> None:
        """Have the guard terminate the tree."""
        self._tell(guard.TERMINATE)

    def kill(self) -> None:
        """Have the guard kill the tree."""
        self._tell(guard.KILL)

    def _tell(self, byte: bytes) -> None:
        # A few bytes always fit into the pipe. Its other end is closed once the tree is gone.
        with suppress(OSError):
            os.write(self._control.fileno(), byte)
            self._guard.signal_group(signal.SIGCONT)  # in case somebody stopped the guard

    async def abort(self, deadlines: Deadlines) -> None:
        """Undo a start that failed or was cancelled."""
        with grace("child.kill_grace", deadlines.child_kill_grace) as scope:
            await self.aclose()  # the guard sees the end of its control pipe
            await self._guard.wait()
        if scope.cancelled_caught:
            self._guard.signal_group(signal.SIGKILL)
            with grace("child.kill_grace", deadlines.child_kill_grace):
                await self._guard.wait()

    async def aclose(self) -> None:
        """Close the five pipes; whatever is left of the tree is then killed by the guard."""
        await close_streams(self._control, self._status_pipe, self.stdin, self.stdout, self.stderr)


async def _start_guarded(command: Command, ports: Ports, deadlines: Deadlines) -> ChildTree:
    with ExitStack() as ours, ExitStack() as theirs:
        control_reader, control_writer = os.pipe()
        theirs.callback(os.close, control_reader)
        ours.callback(os.close, control_writer)
        status_reader, status_writer = os.pipe()
        theirs.callback(os.close, status_writer)
        ours.callback(os.close, status_reader)
        words = [str(fd) for fd in (control_reader, status_writer, os.getpid())]
        process = await ports.spawn(
            [sys.executable, "-I", "-S", _GUARD_PROGRAM, *words],
            cwd=None,
            environment={
                name: ports.environment[name]
                for name in _GUARD_VARIABLES
                if name in ports.environment
            },
            pass_fds=(control_reader, status_writer),
        )
        ours.pop_all()
    tree = GuardTree(
        process, trio.lowlevel.FdStream(control_writer), trio.lowlevel.FdStream(status_reader)
    )
    try:
        await tree.order(command)
    except BaseException:
        await tree.abort(deadlines)
        raise
    return tree


# --- choice ---------------------------------------------------------------------------


def _default_tier(ports: Ports) -> Tier:
    if ports.is_simulated or sys.platform != "linux" or not sys.executable:
        return "group"
    return "guard"


async def start_tree(
    command: Command, *, ports: Ports, deadlines: Deadlines, tier: Tier | None
) -> ChildTree:
    """Start a program in the strongest tier there is. A cancelled start leaves nothing.

    Args:
        command: What to start; already checked.
        ports: Where processes come from.
        deadlines: Bounds of the clean-up.
        tier: The tier to use, or None for the strongest that works here.

    Raises:
        ChildStartFailed: If it cannot be started.
    """
    if (tier or _default_tier(ports)) == "group":
        return await _start_group(command, ports)
    try:
        return await _start_guarded(command, ports, deadlines)
    except OSError as exc:
        raise ChildStartFailed(command.program, f"its guard process: {exc.strerror}") from exc
    except _GuardImpossible as exc:
        if tier is not None:
            raise ChildStartFailed(command.program, f"no guard works here: {exc}") from exc
        log.warning("no guard works here", reason=str(exc))
    return await _start_group(command, ports)
