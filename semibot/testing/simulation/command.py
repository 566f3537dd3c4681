"""``python -m semibot.testing simulate``: run many seeds, and say which broke a promise."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final, final

import attrs

from .faults import FAULTS
from .invariants import PROMISES
from .report import SimulationReport, Violation
from .simulating import simulate

SHOWN: Final = 1500
"""Letters of a violation that are shown, unless it is asked for by ``--show``."""

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Its exit status: 1 if there is a violation, 2 if it was called wrongly or could not
        say what it found, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    output = _Output()
    with _ctrl_c() as is_interrupted:
        status = _run(options, output, is_interrupted)
    if not output.is_well():
        return 2
    return INTERRUPTED if is_interrupted() else status


def _run(options: argparse.Namespace, output: _Output, is_interrupted: Callable[[], bool]) -> int:
    say = output.say
    if options.list:
        _list(say)
        return 0
    began = time.perf_counter()
    reports: list[SimulationReport] = []
    if options.show is not None:
        reports.append(_simulate(options, options.show, show=say))
        for violation in reports[0].violations:
            say(f"{violation.at:.3f} {violation.invariant}: {violation.text}")
    else:
        with _reports(options) as coming:
            for report in coming:
                reports.append(report)
                for violation in report.violations:
                    _say_violation(violation, say)
                if report.violations and options.stop_at_first:
                    break
                if is_interrupted() or output.error is not None:
                    break
    if options.show is not None and not options.json:
        say(str(attrs.evolve(reports[0], violations=())))
    else:
        _summarize(reports, time.perf_counter() - began, say, as_json=options.json)
    return 1 if any(report.violations for report in reports) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m semibot.testing", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("simulate", description=__doc__)
    add = command.add_argument
    add("--seeds", type=_positive, default=20, metavar="N", help="how many seeds; 20 by default")
    add("--from", dest="first", type=int, default=1, metavar="SEED", help="the first; 1 by default")
    add("--minutes", type=_amount, default=10.0, metavar="M", help="how long things go wrong in "
        "each seed, in simulated minutes; 10 by default")  # fmt: skip
    add("--jobs", type=_positive, default=1, metavar="N", help="how many seeds run side by side")
    add("--json", action="store_true", help="end with one line of JSON")
    kinds = partial(_names, [fault.kind for fault in FAULTS], "fault")
    add("--faults", type=kinds, metavar="KINDS", help="separated by commas; all by default")
    promises = partial(_names, list(PROMISES), "invariant")
    add("--without", type=promises, default=(), metavar="NAMES", help="invariants, separated by "
        "commas, that are not looked at")  # fmt: skip
    add("--busy-limit", type=_amount, metavar="S", help="seconds for which a seed may keep a "
        "processor busy; 0, the default, means 20, and 2 for each minute")  # fmt: skip
    add("--stop-at-first", action="store_true", help="stop at the first seed with a violation")
    add("--show", type=int, metavar="SEED", help="tell all that happens in this one seed")
    add("--list", action="store_true", help="list faults and invariants")
    return parser


# --- what is asked for ----------------------------------------------------------------


def _names(known: Iterable[str], what: str, text: str) -> tuple[str, ...]:
    names = tuple(name for word in text.split(",") if (name := word.strip()))
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no such {what}s: {', '.join(unknown)}; --list says which there are"
        )
    return names


def _positive(text: str) -> int:
    number = int(text) if text.removeprefix("-").isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return number


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return number


# --- what is done ---------------------------------------------------------------------


@contextmanager
def _ctrl_c() -> Generator[Callable[[], bool]]:
    """Let Ctrl-C stop after the seeds under way, and a second one at once.

    Raised into a simulation, it could be taken for a fault of what it meets there.
    """
    was_pressed = False

    def note(*_: object) -> None:
        nonlocal was_pressed
        was_pressed = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        text = b"stops after the seeds under way; Ctrl-C again stops at once\n"
        with contextlib.suppress(OSError):
            os.write(2, text)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: was_pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare_worker() -> None:
    """Prepare a process of several: it ends with the command, however that ends.

    At the first Ctrl-C the others say what happens; the second one ends it.
    """

    def note(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def follow() -> None:
        command = multiprocessing.parent_process()
        if command is not None:
            command.join()
        os._exit(1)

    signal.signal(signal.SIGINT, note)
    # Killed, the command tells nobody, and workers would wait for seeds for ever.
    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _reports(options: argparse.Namespace) -> Generator[Iterator[SimulationReport]]:
    """Give the seeds' reports in order; with several jobs from as many processes."""
    run = partial(_simulate, options)
    seeds = range(options.first, options.first + options.seeds)
    if options.jobs == 1:
        yield map(run, seeds)
        return
    # Fresh ones, because a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(options.jobs, context, initializer=_prepare_worker)
    try:
        yield pool.map(run, seeds)
    finally:
        pool.shutdown(cancel_futures=True)


def _simulate(
    options: argparse.Namespace, seed: int, *, show: Callable[[str], None] | None = None
) -> SimulationReport:
    logging.getLogger("trio-websocket").setLevel(logging.CRITICAL)
    return simulate(
        seed,
        minutes=options.minutes,
        faults=options.faults,
        without=options.without,
        busy_limit=options.busy_limit,
        show=show,
    )


# --- what is said ---------------------------------------------------------------------


@final
class _Output:
    """Where lines go. If nobody takes them any more, they are dropped.

    An error would come up in the middle of a simulation, and be taken for one of its own.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None
        """Why lines are dropped."""

    def say(self, line: str) -> None:
        """Write a line."""
        if self.error is None:
            try:
                print(line, flush=True)
            except OSError as exc:
                self.error = exc

    def is_well(self) -> bool:
        """Return whether every line has been written, or nobody wanted more."""
        if self.error is None:
            return True
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 1)  # or Python would complain at its end
        if isinstance(self.error, BrokenPipeError):
            return True
        sys.stderr.write(f"simulate: cannot write: {self.error}\n")
        return False


def _list(say: Callable[[str], None]) -> None:
    say("faults:")
    for fault in FAULTS:
        say(f"  {fault.kind:18} excuses {fault.excuses}")
    say("invariants:")
    for name, text in PROMISES.items():
        say(f"  {name:24} {text}")


def _say_violation(violation: Violation, say: Callable[[str], None]) -> None:
    say(f"seed {violation.seed}, {violation.invariant}: {violation.text[:SHOWN]}")
    say(f"  {violation.command}")


def _summarize(
    reports: Sequence[SimulationReport],
    seconds: float,
    say: Callable[[str], None],
    *,
    as_json: bool,
) -> None:
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
        say(json.dumps(summary))
        return
    say(f"{len(reports)} seeds, {hours:.1f} simulated hours in {seconds:.0f} s")
    say(f"{runs} runs, {events} events, {len(violations)} violations")
    say(", ".join(f"{kind} {count}" for kind, count in sorted(faults.items())))
