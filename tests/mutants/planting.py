"""Plant a bug: copy the product, change named lines of the copy, and run the simulation on it.

The tree itself is never changed. A simulation runs in a process of its own, which finds the
copy before the product.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import attrs

PRODUCT: Final = Path(__file__).resolve().parents[2] / "semibot"


@attrs.frozen
class Edit:
    """One change of one line, or a few, of the product."""

    file: str
    """Path below ``semibot``."""
    old: str
    """Text that occurs there exactly once."""
    new: str
    """What it becomes."""


@attrs.frozen(kw_only=True)
class Mutant:
    """A bug, and what is to find it."""

    name: str
    """What to call it."""
    place: str
    """The part of the product that it is in."""
    bug: str
    """What is wrong, in a few words."""
    edits: tuple[Edit, ...]
    """How it comes in: more than one where the product has two nets, and both are cut."""
    invariants: tuple[str, ...]
    """What finds it; without these, nothing does."""
    faults: tuple[str, ...] = ()
    """Kinds of faults that it needs; empty means that it shows without any."""
    seed: int
    """A seed that finds it with those faults."""
    minutes: float = 2.5
    """How long things go wrong in that seed."""


def listed(mutants: Sequence[Mutant]) -> str:
    """Return the table as the documentation shows it."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 12 26 34 28", ""]
    rows = [("Where", "Bug", "What is wrong", "Found by")]
    for mutant in mutants:
        found_by = ", ".join(f"``{name}``" for name in mutant.invariants)
        rows.append((mutant.place, f"``{mutant.name}``", mutant.bug, found_by))
    for first, *others in rows:
        lines += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return "\n".join(lines) + "\n"


@attrs.frozen(kw_only=True)
class Outcome:
    """What some seeds of a simulation found."""

    violations: tuple[tuple[int, str, str], ...]
    """Seed, invariant and text of each violation, in the order of the seeds."""
    seconds: float
    """How long it took."""
    failure: str | None = None
    """Why it did not get to its end, or None."""

    @property
    def seed(self) -> int | None:
        """The first seed that found something."""
        return self.violations[0][0] if self.violations else None

    @property
    def invariants(self) -> tuple[str, ...]:
        """Which invariants found something, each once."""
        return tuple(dict.fromkeys(name for _, name, _ in self.violations))


def count_places(edit: Edit) -> int:
    """Return how often the text that *edit* replaces occurs in its file."""
    return (PRODUCT / edit.file).read_text(encoding="utf-8").count(edit.old)


@contextmanager
def planted(edits: Sequence[Edit]) -> Generator[Path]:
    """Copy the product, with *edits*; yields the directory that the copy is in."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(
        prefix="semibot-mutant-", dir=memory if memory.is_dir() else None
    ) as name:
        root = Path(name)
        ignore = shutil.ignore_patterns("__pycache__", "web")
        shutil.copytree(PRODUCT, root / "semibot", ignore=ignore)
        shutil.copytree(PRODUCT / "host" / "web", root / "semibot" / "host" / "web")
        for edit in edits:
            file = root / "semibot" / edit.file
            text = file.read_text(encoding="utf-8")
            if text.count(edit.old) != 1:
                message = (
                    f"{edit.file}: the text to be replaced occurs {text.count(edit.old)} times"
                )
                raise ValueError(message)
            file.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
        yield root


def run_simulation(
    edits: Sequence[Edit],
    *,
    seeds: int,
    first: int,
    minutes: float,
    faults: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Outcome:
    """Run seeds of the simulation on a product with *edits*, to the first that finds something.

    Args:
        edits: What is changed.
        seeds: How many seeds are tried.
        first: The first of them.
        minutes: How long things go wrong in each.
        faults: Kinds of faults that may happen.
        without: Invariants that are not looked at.
    """
    command = [sys.executable, "-m", "semibot.testing", "simulate", "--json", "--stop-at-first"]
    command += ["--seeds", str(seeds), "--from", str(first), "--minutes", f"{minutes:g}"]
    # How long a seed really takes depends on the machine.
    command += ["--faults", ",".join(faults), "--without", ",".join((*without, *NOT_LOOKED_AT))]
    began = time.perf_counter()
    with planted(edits) as root:
        done = subprocess.run(
            command,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
    seconds = time.perf_counter() - began
    try:
        found = json.loads(done.stdout.splitlines()[-1])["violations"]
    except (IndexError, ValueError, KeyError):
        return Outcome(violations=(), seconds=seconds, failure=(done.stdout + done.stderr)[-2000:])
    violations = tuple((each["seed"], each["invariant"], each["text"]) for each in found)
    return Outcome(violations=violations, seconds=seconds)


NOT_LOOKED_AT: Final = ("within_limits", "too_small")
"""Promises that are about the simulation itself: what it takes and how much happens."""


def hunt(mutant: Mutant, *, seeds: int, first: int | None = None) -> Outcome:
    """Look for a mutant with every invariant there is.

    Args:
        mutant: The mutant.
        seeds: How many seeds are tried.
        first: The first of them; the mutant's own by default.
    """
    return run_simulation(
        mutant.edits,
        seeds=seeds,
        first=mutant.seed if first is None else first,
        minutes=mutant.minutes,
        faults=mutant.faults,
    )


def ablate(mutant: Mutant, *, seeds: int, first: int | None = None) -> Outcome:
    """Look for a mutant without the invariants that are named for it."""
    return run_simulation(
        mutant.edits,
        seeds=seeds,
        first=mutant.seed if first is None else first,
        minutes=mutant.minutes,
        faults=mutant.faults,
        without=mutant.invariants,
    )
