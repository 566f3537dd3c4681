"""Planted bugs of runs: their cancels, receipts and ends."""

from __future__ import annotations

from typing import Final

from planting import Edit, Mutant

RUNS_BUGS: Final = (
    Mutant(
        name="cancel_ignored",
        place="runs",
        bug="a cancel is answered when its run has ended by itself",
        edits=(
            Edit(
                "session/managed.py",
                '            run.request_stop("cancelled", reason)\n            return',
                "            return",
            ),
        ),
        invariants=("cancel_works",),
        seed=1,
        minutes=1.5,
    ),
    Mutant(
        name="cancel_inverted",
        place="runs",
        bug="a cancel ends another run than the one it names",
        edits=(
            Edit(
                "session/managed.py",
                "        run = None if run_id is None else self._unfinished.get(run_id)\n"
                "        if run is not None:",
                "        others = [each for each in self._unfinished if each != run_id]\n"
                "        run = self._unfinished[others[0]] if others else None\n"
                "        if run is not None:",
            ),
        ),
        invariants=("cancel_works", "silent_after_receipt"),
        seed=1,
        minutes=1.5,
    ),
    Mutant(
        name="cancel_without_run_id",
        place="runs",
        bug="a VM is not told which run it is to cancel",
        edits=(Edit("host/command_frames.py", "                run_id=command.run_id,\n", ""),),
        invariants=("cancel_works",),
        faults=("cut_with_loss", "half_open", "connect_refused"),
        seed=24,
        minutes=1.5,
    ),
    Mutant(
        name="deleted_run_goes_on",
        place="runs",
        bug="a VM is not told that a session was deleted",
        edits=(
            Edit(
                "store/_sessions.py",
                "stop_id = None if session.holder_vm is None else command_id",
                "stop_id = None",
            ),
        ),
        invariants=("cancel_works",),
        faults=("delete_mid_run",),
        seed=1,
        minutes=1.0,
    ),
    Mutant(
        name="receipt_too_early",
        place="runs",
        bug="a cancel is answered while the adapter still cleans up",
        edits=(
            Edit(
                "session/execution.py",
                "            with trio.move_on_after(cancel_grace):\n"
                "                await self._handled.wait()\n",
                "            self._handled.set()\n",
            ),
        ),
        invariants=("silent_after_receipt",),
        seed=2,
        minutes=1.5,
    ),
    Mutant(
        name="bridge_works_on",
        place="runs",
        bug="a cancel is answered while a bridge still cleans up",
        edits=(Edit("adapters/bridge.py", "                await turn.wait_over()\n", ""),),
        invariants=("silent_after_receipt",),
        faults=("bridge_exit",),
        seed=4,
        minutes=1.5,
    ),
    Mutant(
        name="bridge_not_stopped",
        place="runs",
        bug="a cancel is answered while a bridge that has to be stopped still stops",
        edits=(Edit("adapters/bridge.py", "            await child.wait_ended()\n", ""),),
        invariants=("silent_after_receipt",),
        faults=("bridge_exit",),
        seed=20,
        minutes=1.5,
    ),
    Mutant(
        name="second_terminal",
        place="runs",
        bug="a run ends twice, and the host takes both",
        edits=(
            Edit(
                "session/execution.py",
                "        self.journal.append(self.id, event)\n        self.terminal = event",
                "        self.journal.append(self.id, event)\n"
                "        self.journal.append(self.id, event)\n        self.terminal = event",
            ),
            Edit("store/_intake.py", " or self._is_over(db, event):", ":"),
        ),
        invariants=("one_terminal", "same_view"),
        seed=1,
        minutes=0.3,
    ),
)
