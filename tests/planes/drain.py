"""Tell a host to stop while runs stream to readers, one of which reads nothing.

As a program: ``python tests/planes/drain.py [RUNS]``.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import attrs
import trio
from following import TERMINAL, Follower, check_reader, check_store
from harness import PATIENCE, Plane, open_plane, seconds_until, wait_vm
from http_client import BROKEN, ask, open_exchange

DRAIN = 30.0
"""``host.drain``, in seconds."""

SMALL = 4096
"""Receive buffer of a reader that is to stall soon, in bytes."""


@attrs.frozen
class Drained:
    """What stopping a host showed, in seconds after the signal."""

    ready_503: float
    """Until ``/readyz`` said 503."""
    exit: float
    """Until the process had ended."""
    outcomes: dict[str, int]
    """How the runs ended."""
    closed_in_order: int
    """Readers whose stream the host ended in order."""


async def drain(
    plane: Plane, runs: int, message: str, *, signals: int = 1, chunks: int = 3
) -> Drained:
    """Start *runs* sessions with two readers each, and one that stalls; then stop the host."""
    async with trio.open_nursery() as nursery:
        askers = [Follower() for _ in range(runs)]
        readers = [Follower() for _ in range(runs)]
        for asker in askers:
            nursery.start_soon(plane.start, asker, message)
        for asker, reader in zip(askers, readers, strict=True):
            await asker.wait(lambda f: f.session_id)
            nursery.start_soon(plane.follow, reader, asker.session_id)
        stalled = trio.Event()
        nursery.start_soon(stall, plane.port, askers[0].session_id, stalled)
        await stalled.wait()
        for follower in (*askers, *readers):
            await follower.wait_types("text_chunk", chunks)
        plane.process.send_signal(signal.SIGTERM)
        start = trio.current_time()
        ready_503 = await _until_refused(plane.port) - start
        for _ in range(signals - 1):
            start = trio.current_time()
            plane.process.send_signal(signal.SIGTERM)
        with trio.fail_after(DRAIN + 1):
            await plane.process.wait()
        seconds = trio.current_time() - start
        assert plane.process.returncode == 0 or signals > 1, plane.log
        assert await seconds_until(lambda: not plane.processes(), 1.0) is not None
        outcomes: dict[str, int] = {}
        closed = 0
        for asker, reader in zip(askers, readers, strict=True):
            stored = plane.stored(asker.session_id)
            check_store(stored, running=0 if signals == 1 else 1)
            if signals == 1:
                check_reader(reader.seen, stored)
                check_reader(asker.seen, stored)
                assert stored[-1][3]["type"] in TERMINAL
                # Whoever reads has seen the end before the stream was closed.
                for follower in (asker, reader):
                    await follower.wait(lambda f: f.is_over)
                    assert follower.types[-1] in TERMINAL, follower.types[-3:]
                closed += (asker.ended_at is not None) + (reader.ended_at is not None)
        for outcome, count in plane.rows("SELECT outcome, count(*) FROM runs GROUP BY outcome"):
            outcomes[str(outcome)] = int(str(count))
        assert plane.rows("SELECT * FROM commands WHERE kind = 'cancel'") == []
        nursery.cancel_scope.cancel()
    return Drained(ready_503, seconds, outcomes, closed)


async def stall(port: int, session_id: str, begun: trio.Event) -> None:
    """Ask for a session's events and read none of them."""
    path = f"/api/v1/sessions/{session_id}/stream"
    async with open_exchange(port, "GET", path, reads=False, receive_buffer=SMALL):
        begun.set()
        await trio.sleep_forever()


async def _until_refused(port: int) -> float:
    """Return when ``/readyz`` was 503, or the host took no connection any more."""
    with trio.fail_after(5):
        while True:
            try:
                answer = await ask(port, "GET", "/readyz")
            except BROKEN:
                return trio.current_time()
            if answer.status == 503:
                return trio.current_time()


async def run_drain(runs: int, directory: Path, message: str, *, signals: int = 1) -> Drained:
    async with open_plane(directory) as plane:
        await wait_vm(plane)
        with trio.fail_after(3 * PATIENCE):
            return await drain(plane, runs, message, signals=signals)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=20)
    options = parser.parse_args()
    for name, message, signals in (
        ("runs that end soon", "stream 60 0.05 500", 1),
        ("runs that do not end", "stream 100000 0.05 500", 1),
        ("a second signal", "stream 100000 0.05 500", 2),
    ):
        with tempfile.TemporaryDirectory(prefix="semibot-drain-") as directory:
            plane = Path(directory) / "plane"

            async def one(
                plane: Path = plane, message: str = message, signals: int = signals
            ) -> Drained:
                return await run_drain(options.runs, plane, message, signals=signals)

            print(f"{name}: {trio.run(one)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
