"""Planted bugs of what a store keeps, and of sessions that are told a thing twice."""

from __future__ import annotations

from typing import Final

from planting import Edit, Mutant

STORE_BUGS: Final = (
    Mutant(
        name="no_fsync",
        place="store",
        bug="a commit is acknowledged before it is on the disk",
        edits=(Edit("store/sqlite.py", "PRAGMA synchronous = full", "PRAGMA synchronous = off"),),
        invariants=(
            "acknowledged_is_stored",
            "epochs_rise",
            "one_meaning",
            "same_for_all",
            "same_view",
        ),
        faults=("host_kill",),
        seed=1,
        minutes=1.0,
    ),
    Mutant(
        name="ack_before_commit",
        place="store",
        bug="the host acknowledges an event when it arrives",
        edits=(
            Edit(
                "host/frame_reader.py",
                "self._link.intake.put_event(session_id, event, size_of(frame.data))\n",
                "self._link.intake.put_event(session_id, event, size_of(frame.data))\n"
                "                self._link.send(HostAck(sessions={session_id: frame.seq}))\n",
            ),
            Edit(
                "host/frame_reader.py",
                "        intake.put_event(frame.session_id, event, size_of(data))\n",
                "        intake.put_event(frame.session_id, event, size_of(data))\n"
                "        self._link.send(HostAck(sessions={frame.session_id: seq}))\n",
            ),
        ),
        invariants=("acknowledged_is_stored",),
        seed=1,
        minutes=0.5,
    ),
    Mutant(
        name="command_not_noted",
        place="store",
        bug="that a message was written to a VM is not remembered",
        edits=(
            Edit(
                "store/_commands.py",
                'db.change("UPDATE runs SET is_written = 1 WHERE id = ?", (command.run_id,))',
                "pass",
            ),
        ),
        invariants=("silent_after_receipt", "settles", "once"),
        seed=1,
        minutes=2.5,
    ),
    Mutant(
        name="command_twice",
        place="session",
        bug="a message that comes again after its run is carried out again",
        edits=(
            Edit(
                "session/managed.py",
                "            if command_id in self.answers:\n",
                "            if command_id in self.answers and frame.type != 'user_message':\n",
            ),
            Edit(
                "session/managed.py",
                "if run.id in self._unfinished or run.id in self._receipts:",
                "if run.id in self._unfinished:",
            ),
        ),
        invariants=("once", "one_terminal"),
        faults=("cut_with_loss",),
        seed=1,
        minutes=1.0,
    ),
)
