"""Kill a program with agents at work and see who is left: ``python tests/outcomes/sigkill.py 50``.

Linux only: elsewhere a child that ignores the end of its input outlives its parent.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs
from causes import processes_in

PROGRAM = Path(__file__).with_name("agents_to_kill.py")
BOUND = 1.0


@attrs.frozen
class Killing:
    """What one SIGKILL left."""

    before: int
    """Processes of the program's agents before it."""
    left: int
    """Those alive one second after it."""
    seconds: float
    """Until the last was gone."""


def kill_once(workspace: Path) -> Killing:
    """Start the program in *workspace*, kill it at work, and watch its children go."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM)], cwd=workspace, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == "ready\n"
            before = len(processes_in(workspace) - {program.pid})
        finally:
            program.kill()
            started = time.monotonic()
            program.wait()
    while (left := processes_in(workspace)) and time.monotonic() - started < BOUND:
        time.sleep(0.005)  # nobody tells when a foreign process is gone
    return Killing(before, len(left), time.monotonic() - started)


def main() -> None:
    """Kill many times and print the sum."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    found: list[Killing] = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            found.append(kill_once(Path(directory)))
    clean = sum(killing.left == 0 for killing in found)
    slowest = max(killing.seconds for killing in found) * 1000
    fewest = min(killing.before for killing in found)
    sys.stdout.write(
        f"{clean} of {runs}: none alive {BOUND:g} s after SIGKILL "
        f"(at least {fewest} processes each time; the last was gone after {slowest:.0f} ms)\n"
    )
    sys.exit(0 if clean == runs else 1)


if __name__ == "__main__":
    main()
