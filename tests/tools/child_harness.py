"""What the tests of child processes share: programs, ports and an audit of what is left."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import coverage
from process_table import children, descriptors

from semibot.config import Deadlines
from semibot.live import live_ports, live_spawn
from semibot.ports import Ports, Process

PROGRAMS = Path(__file__).parent / "programs"
IS_LINUX = sys.platform == "linux"
TIERS = ["guard", "group"] if IS_LINUX else ["group"]
ENVIRONMENT = {"PATH": os.environ["PATH"]}
QUICK = Deadlines(child_eof_grace=0.1, child_term_grace=0.1, child_kill_grace=10)
PATIENT = Deadlines(child_eof_grace=20, child_term_grace=20, child_kill_grace=20)


def program(name: str, *words: str) -> list[str]:
    """Return a command that runs one of the small programs, without the site module's delay."""
    return [sys.executable, "-I", "-S", str(PROGRAMS / f"{name}.py"), *words]


def python(text: str, *words: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", text, *words]


def new_mark() -> str:
    """Return a word by which the processes of one test are found."""
    return uuid.uuid4().hex


@attrs.frozen
class AlteredGuards:
    """Spawn guards that are sabotaged, measured if this process is, or both."""

    alteration: str = ""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> Process:
        measurement = coverage.Coverage.current()
        if argv[3:] and argv[3].endswith("guard.py") and (self.alteration or measurement):
            files = ["", ""]
            if measurement is not None:
                files = [measurement.config.config_file or "", measurement.config.data_file]
            altered = str(PROGRAMS / "altered_guard.py")
            argv = [sys.executable, altered, self.alteration, *files, *argv[3:]]
        return await live_spawn(argv, cwd=cwd, environment=environment, pass_fds=pass_fds)


def ports_with(alteration: str = "") -> Ports:
    return attrs.evolve(live_ports(), spawn=AlteredGuards(alteration))


@contextmanager
def nothing_is_left() -> Iterator[None]:
    """Check that the block leaves no descriptor and no child, dead or alive, even for a while."""
    if not IS_LINUX:
        yield
        return
    before = descriptors()
    yield
    assert descriptors() == before
    assert children() == []
