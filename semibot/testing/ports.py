"""Seams for tests: seeded, on Trio's clock, without threads and processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final, TypeVar, TypeVarTuple, final

import attrs
import trio

from semibot.live import LiveDisk
from semibot.ports import ByteStream, Listener, Ports, Process

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""What the simulated wall clock says when Trio's clock says 0."""


@final
class SimulatedWallClock:
    """A wall clock that goes with Trio's clock, so that a mock clock drives both."""

    def now(self) -> datetime:
        """Return the simulated time in UTC."""
        return EPOCH + timedelta(seconds=trio.current_time())


@final
@attrs.frozen
class SeededIds:
    """Identifiers from a seeded generator: the same seed gives the same ids."""

    _random: random.Random

    def new_id(self) -> str:
        """Return 32 hexadecimal digits."""
        return f"{self._random.getrandbits(128):032x}"


@final
class InlineThreads:
    """Runs "blocking" functions on the loop; a mock clock would jump while a thread runs."""

    async def run_sync(
        self,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        limiter: str,
        abandon_on_cancel: bool = False,
        on_exit: Callable[[], None] | None = None,
    ) -> T:
        """Run ``fn(*args)`` between two checkpoints."""
        await trio.lowlevel.checkpoint()
        try:
            return fn(*args)
        finally:
            if on_exit is not None:
                on_exit()

    def in_use(self) -> Mapping[str, int]:
        """Return nothing: no thread is ever out."""
        return {}


async def refuse_to_spawn(  # noqa: ASYNC124 - the port is async
    argv: Sequence[str],
    *,
    cwd: str | None,
    environment: Mapping[str, str],
    pass_fds: Sequence[int] = (),
) -> Process:
    """Refuse to start a program, as a simulation has none."""
    raise PermissionError(f"a simulation starts no processes, so not {argv[0]} either")


async def refuse_to_dial(host: str, port: int, *, use_tls: bool) -> ByteStream:  # noqa: ASYNC124 - the port is async
    """Refuse to connect, as a simulation without a network does."""
    raise ConnectionRefusedError(f"this simulation has no network, so no {host}:{port} either")


async def refuse_to_listen(host: str, port: int) -> Listener:  # noqa: ASYNC124 - the port is async
    """Refuse to listen, as a simulation without a network does."""
    raise PermissionError(f"this simulation has no network, so no {host}:{port} either")


def simulated_ports(seed: int = 0, environment: Mapping[str, str] | None = None) -> Ports:
    """Return seams that are a pure function of *seed* and Trio's clock.

    Args:
        seed: Seeds ids and jitter, independently of each other.
        environment: The environment variables; none by default.
    """
    return Ports(
        wall_clock=SimulatedWallClock(),
        random=random.Random(f"jitter {seed}"),  # noqa: S311 - reproducible on purpose
        ids=SeededIds(random.Random(f"ids {seed}")),  # noqa: S311 - reproducible on purpose
        threads=InlineThreads(),
        disk=LiveDisk(),
        spawn=refuse_to_spawn,
        dial=refuse_to_dial,
        listen=refuse_to_listen,
        environment=MappingProxyType(dict(environment or {})),
        is_simulated=True,
    )
