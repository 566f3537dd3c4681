"""Programs that processes of a simulation start: coroutines behind three pipes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol, final

import trio
import trio.testing

from semibot.ports import ByteReceiver, ByteSender, Process, Spawn

if TYPE_CHECKING:
    from .world import World

FIRST_PID: Final = 10_000
"""The first process id that a child gets."""


class Program(Protocol):
    """What a child does."""

    async def __call__(self, child: SimulatedChild, environment: Mapping[str, str]) -> int:
        """Run to the end, and return the exit status."""
        ...


@final
class SimulatedChild:
    """A child process; a :class:`semibot.ports.Process`.

    Args:
        pid: Its process id.
    """

    def __init__(self, pid: int) -> None:
        self.pid: Final = pid
        """Its process id."""
        stdin, input_ = trio.testing.memory_stream_one_way_pair()
        output, stdout = trio.testing.memory_stream_one_way_pair()
        complaints, stderr = trio.testing.memory_stream_one_way_pair()
        self.stdin: ByteSender = stdin
        self.stdout: ByteReceiver = stdout
        self.stderr: ByteReceiver = stderr
        self.input: trio.testing.MemoryReceiveStream = input_
        self.output: trio.testing.MemorySendStream = output
        self.complaints: trio.testing.MemorySendStream = complaints
        self.on_term: Callable[[], None] = lambda: self.exit(-signal.SIGTERM)
        """What SIGTERM does."""
        self._scope = trio.CancelScope()
        self._has_ended = trio.Event()
        self._status: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self._has_ended.is_set()

    async def wait(self) -> int:
        """Wait for its end and return the status; negative means a signal."""
        await self._has_ended.wait()
        return self._status or 0

    def signal_group(self, signum: int) -> None:
        """Take a signal."""
        if not self.is_alive:
            return
        if signum == signal.SIGKILL:
            self.exit(-signum)
        elif signum == signal.SIGTERM:
            self.on_term()

    def exit(self, status: int) -> None:
        """End it now, wherever it is."""
        if self._status is None:
            self._status = status
        self._scope.cancel("it has ended")

    async def run(self, program: Program, environment: Mapping[str, str]) -> None:
        """Be the program until it ends."""
        try:
            with self._scope:
                status = await program(self, environment)
                self.exit(status)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.exit(-signal.SIGPIPE)  # nobody reads what it says
        finally:
            for stream in (self.input, self.output, self.complaints):
                stream.close()
            self._has_ended.set()


def spawning(world: World, command: str, program: Program, otherwise: Spawn, *, name: str) -> Spawn:
    """Return a port that starts *program* for a command.

    Args:
        world: Whose processes are started.
        command: First word of the command.
        program: What runs then.
        otherwise: Starts everything else.
        name: What the trace calls it.
    """

    async def spawn(
        argv: Sequence[str],
        *,
        cwd: str | None,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> Process:
        if argv[0] != command:
            return await otherwise(argv, cwd=cwd, environment=environment, pass_fds=pass_fds)
        await trio.sleep(0.01)
        child = SimulatedChild(FIRST_PID + world.next_number())
        world.trace.note("spawn", name, child.pid)

        async def run() -> None:
            await child.run(program, environment)
            world.trace.note("exit", name, child.pid, await child.wait())

        world.begin(run)
        return child

    return spawn
