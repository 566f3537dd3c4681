"""Compare semibot's host with plain relays, in one interleaved run: ``nox -s bench``.

    python tests/bench/bench.py [--quick] [--rounds N] [--peers a,b] [--json FILE]

Three servers, each in a process of its own:

* ``semibot``: the real host, with SQLite on disk (``synchronous=FULL``), level 2
  acknowledgements, checks of every event, and replay;
* ``quart-trio``: a plain relay, one send per event;
* ``starlette``: the same on Starlette and uvicorn, with uvloop, httptools and websockets.

The relays keep nothing: no disk, no acknowledgements, no replay. All get the same frames
from one WebSocket, which stands for one user's VM with 1 or 100 sessions, each with one
reader. Frames are the same for all servers. In the first rows a frame has one event. In the
batched rows it has up to 64 of one session, and sessions take turns, as when a session's own
queue is drained in one go. In the mixed row the 64 events of a frame are of 64 sessions, which
is the worst that batching can do: every reader gets every event by itself.

**Compare ratios, not rates.** Server and generator share the machine, so events a second say
as much about the generator and the neighbours. CPU per event of the server process is
steadier. Servers are run in turns, the figures are medians over rounds, and each ratio is
taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import trio
from bench_measures import measure_latency, measure_memory, measure_throughput
from bench_peers import PEERS, Peer
from bench_report import Figure, Row, render

BATCH = 64
RATE = 2000


@attrs.frozen(kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    single: int
    """Events of rows with one event a frame."""
    batched: int
    """Events of rows with batches."""
    seconds: float
    """Of each measurement of latency."""
    links: int
    """Idle links."""
    sessions: Sequence[int] = (1, 100)
    batches: Sequence[int] = (1, BATCH)
    """Events in a frame."""


FULL = Plan(rounds=3, single=20_000, batched=60_000, seconds=4.0, links=200)
QUICK = Plan(rounds=1, single=3_000, batched=12_000, seconds=0.5, links=30)
SMOKE = Plan(
    rounds=1, single=200, batched=640, seconds=0.1, links=4, sessions=(3,), batches=(BATCH,)
)


async def run(plan: Plan, peers: Sequence[Peer], say: Callable[[str], None]) -> list[Row]:
    """Measure everything, servers in turns.

    Args:
        plan: How much.
        peers: The servers, in their order.
        say: Told what is going on.
    """
    rows = []
    for batch in plan.batches:
        count = plan.single if batch == 1 else plan.batched
        measure = partial(measure_throughput, batch=batch, count=count)
        for sessions in plan.sessions:
            name = f"{sessions} session{'s' * (sessions > 1)}, {batch} a frame"
            measure_turns = partial(measure, sessions=sessions, turn=batch)
            rows.append(await _rounds(name, plan, peers, measure_turns, say))
        if batch > 1 and sessions > 1:
            name = f"{sessions} sessions, {batch} a frame, mixed"
            measure_mixed = partial(measure, sessions=sessions, turn=1)
            rows.append(await _rounds(name, plan, peers, measure_mixed, say))
    for sessions in plan.sessions:
        measure = partial(measure_latency, sessions=sessions, rate=RATE, seconds=plan.seconds)
        name = f"latency at {RATE:,} events/s, {sessions} session{'s' * (sessions > 1)}"
        rows.append(await _rounds(name, plan, peers, measure, say))
    measure = partial(measure_memory, links=plan.links)
    rows.append(await _rounds("idle VM connection", plan, peers, measure, say))
    return rows


async def _rounds(name, plan, peers, measure, say) -> Row:
    results: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    for number in range(plan.rounds):
        for peer in peers:
            result = await measure(peer)
            figures = {"kib": result} if isinstance(result, float) else attrs.asdict(result)
            results[peer.name].append(figures)
            shown = ", ".join(f"{key} {value:,.1f}" for key, value in figures.items())
            say(f"{name}, round {number + 1}, {peer.name}: {shown}")
    return Row(name, {peer: _figures(rounds) for peer, rounds in results.items()})


def _figures(rounds: list[dict[str, float]]) -> dict[str, Figure]:
    return {
        key: Figure(statistics.median(values), values)
        for key in rounds[0]
        for values in [[one[key] for one in rounds]]
    }


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
    }


def main() -> int:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description="Compare semibot's host with plain relays.")
    parser.add_argument("--quick", action="store_true", help="less than a minute, rough")
    parser.add_argument("--rounds", type=int, help="3, or 1 if quick")
    parser.add_argument("--peers", help="names, separated by commas")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = attrs.evolve(plan, rounds=options.rounds)
    wanted = options.peers.split(",") if options.peers else [peer.name for peer in PEERS]
    peers = [peer for peer in PEERS if peer.name in wanted and peer.is_installed]
    if missing := set(wanted) - {peer.name for peer in peers}:
        print("left out, not installed or not known:", *sorted(missing), file=sys.stderr)
    before = machine()
    rows = trio.run(run, plan, peers, partial(print, file=sys.stderr, flush=True))
    print(render(rows, [peer.name for peer in peers]))
    if options.json:
        content = {
            "machine": before,
            "load_average_after": os.getloadavg(),
            "plan": attrs.asdict(plan),
            "rows": [attrs.asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
