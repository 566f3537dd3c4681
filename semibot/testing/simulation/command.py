"""``python -m semibot.testing simulate``: run many seeds, and say which broke a promise."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial

import attrs

from .faults import FAULTS
from .invariants import PROMISES
from .report import SimulationReport, Violation
from .simulating import simulate

SHOWN = 1500
"""Letters of a violation that are shown, unless it is asked for by ``--show``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 1 if there is a violation."""
    options = _parser().parse_args(arguments)
    if options.list:
        _list()
        return 0
    if options.show is not None:
        return _show(options)
    began = time.perf_counter()
    reports: list[SimulationReport] = []
    with _reports(options) as coming:
        for report in coming:
            reports.append(report)
            for violation in report.violations:
                _print_violation(violation)
            if report.violations and options.stop_at_first:
                break
    _summarize(reports, time.perf_counter() - began, as_json=options.json)
    return 1 if any(report.violations for report in reports) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m semibot.testing", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("simulate", description=__doc__)
    add = command.add_argument
    add("--seeds", type=int, default=20, help="how many seeds")
    add("--from", dest="first", type=int, default=1, help="the first of them")
    add("--minutes", type=float, default=10.0, help="how long things go wrong in each, simulated")
    add("--jobs", type=_positive, default=1, help="how many seeds are run side by side")
    add("--json", action="store_true", help="end with one line of JSON")
    add("--faults", type=_names, help="kinds of faults, separated by commas; all by default")
    add("--without", type=_names, default=(), help="invariants that are not looked at")
    add("--busy-limit", type=float, help="seconds of a processor that a seed may take")
    add("--stop-at-first", action="store_true", help="stop at the first seed with a violation")
    add("--show", type=int, metavar="SEED", help="tell all that happens in one seed")
    add("--list", action="store_true", help="list faults and invariants")
    return parser


@contextmanager
def _reports(options: argparse.Namespace) -> Generator[Iterator[SimulationReport]]:
    """Give the seeds' reports in order; with several jobs from as many processes."""
    run = partial(_simulate, options)
    seeds = range(options.first, options.first + options.seeds)
    if options.jobs == 1:
        yield map(run, seeds)
        return
    # Fresh ones, because a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"))
    try:
        yield pool.map(run, seeds)
    finally:
        pool.shutdown(cancel_futures=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _simulate(options: argparse.Namespace, seed: int, *, shows: bool = False) -> SimulationReport:
    logging.getLogger("trio-websocket").setLevel(logging.CRITICAL)
    try:
        return simulate(
            seed,
            minutes=options.minutes,
            faults=options.faults,
            without=options.without,
            busy_limit=options.busy_limit,
            show=print if shows else None,
        )
    except ValueError as exc:
        sys.exit(f"simulate: {exc}")


def _list() -> None:
    print("faults:")
    for fault in FAULTS:
        print(f"  {fault.kind:18} excuses {fault.excuses}")
    print("invariants:")
    for name, text in PROMISES.items():
        print(f"  {name:24} {text}")


def _show(options: argparse.Namespace) -> int:
    report = _simulate(options, options.show, shows=True)
    for violation in report.violations:
        print(f"{violation.at:.3f} {violation.invariant}: {violation.text}")
    print(attrs.evolve(report, violations=()))
    return 1 if report.violations else 0


def _print_violation(violation: Violation) -> None:
    print(f"seed {violation.seed}, {violation.invariant}: {violation.text[:SHOWN]}")
    print(f"  {violation.command}", flush=True)


def _summarize(reports: Sequence[SimulationReport], seconds: float, *, as_json: bool) -> None:
    faults: Counter[str] = Counter({fault.kind: 0 for fault in FAULTS})
    for report in reports:
        faults.update(report.faults)
    hours = sum(report.simulated_seconds for report in reports) / 3600
    violations = [violation for report in reports for violation in report.violations]
    events = sum(report.events for report in reports)
    runs = sum(report.runs for report in reports)
    if as_json:
        summary = {
            "seeds": len(reports),
            "faults": dict(faults),
            "violations": [attrs.asdict(violation) for violation in violations],
            "traces": {str(report.seed): report.trace for report in reports},
            "simulated_hours": round(hours, 3),
            "seconds": round(seconds, 1),
            "events": events,
            "runs": runs,
        }
        print(json.dumps(summary))
        return
    print(f"{len(reports)} seeds, {hours:.1f} simulated hours in {seconds:.0f} s")
    print(f"{runs} runs, {events} events, {len(violations)} violations")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(faults.items())))
