"""Planted bugs of terms, resume, relay and outbox: what is told again after a break."""

from __future__ import annotations

from typing import Final

from planting import Edit, Mutant

HISTORY_BUGS: Final = (
    # --- terms ---
    Mutant(
        name="term_not_raised",
        place="terms",
        bug="a session that loses its holder goes on in the same term",
        edits=(
            Edit(
                "store/_losses.py", "SET term = term + 1, holder_vm", "SET term = term, holder_vm"
            ),
            Edit("store/_losses.py", "term=session.term + 1,", "term=session.term,"),
        ),
        invariants=("one_meaning",),
        faults=("both_killed", "vm_kill", "host_kill"),
        seed=7,
        minutes=2.5,
    ),
    Mutant(
        name="losses_omitted",
        place="terms",
        bug="a VM that takes the place of another inherits its sessions",
        edits=(
            Edit(
                "store/_vms.py",
                "losses = () if is_same else _replace_process(db, vm)",
                "losses = ()",
            ),
        ),
        invariants=("settles",),
        faults=("vm_kill",),
        seed=14,
        minutes=1.0,
    ),
    # --- resume ---
    Mutant(
        name="resume_eats_next_frame",
        place="resume",
        bug="a VM drops what comes first after resume_response, heartbeats aside",
        edits=(
            Edit(
                "channel/connection.py",
                "            await self._read_until_live(socket)\n",
                "            await self._read_until_live(socket)\n"
                "            while '\"heartbeat\"' in await socket.receive():\n"
                "                pass\n",
            ),
        ),
        invariants=("settles", "same_view"),
        faults=("cut_with_loss",),
        seed=1,
        minutes=1.0,
    ),
    Mutant(
        name="resume_from_one_before",
        place="resume",
        bug="a host expects an event again that it has",
        edits=(
            Edit(
                "host/greeting.py",
                "HeldHere(Incoming(row.term, committed), tail",
                "HeldHere(Incoming(row.term, committed - 1), tail",
            ),
        ),
        invariants=("runs_go_on", "settles", "no_failure", "same_view"),
        faults=("cut_with_loss",),
        seed=1,
        minutes=1.0,
    ),
    Mutant(
        name="duplicate_on_resume",
        place="resume",
        bug="a reader that comes back is shown its last event again",
        edits=(
            Edit(
                "host/relay.py",
                "cursor = Cursor(run_id=None, term=start.term, seq=start.seq, shown=start.seq)",
                "after = max(start.seq - 1, 0)\n"
                "        cursor = Cursor(run_id=None, term=start.term, seq=after, shown=start.seq)",
            ),
        ),
        invariants=("gapless", "same_for_all", "same_view"),
        seed=1,
        minutes=0.5,
    ),
    # --- relay ---
    Mutant(
        name="cursor_off_by_one",
        place="relay",
        bug="a reader that is sent more than two events at once misses the next",
        edits=(
            Edit(
                "host/tail.py",
                "        cursor.seq = cursor.shown = upto = self.start_seq + stop - 1\n",
                "        upto = self.start_seq + stop - 1\n"
                "        cursor.seq = cursor.shown = upto + (stop - first > 2)\n",
            ),
        ),
        invariants=("gapless", "same_for_all", "same_view"),
        seed=1,
        minutes=0.5,
    ),
    Mutant(
        name="tail_survives_failed_commit",
        place="relay",
        bug="what could not be committed stays published",
        edits=(
            Edit(
                "host/intake.py",
                "        if broken:\n            self._relay.break_off(sorted(broken))",
                "        del broken",
            ),
            Edit(
                "host/intake.py",
                "    if (tail.term, tail.received_seq) != (term, committed):",
                "    if tail.term != term:",
            ),
        ),
        invariants=("no_failure", "settles", "one_terminal", "same_for_all", "same_view"),
        faults=("fsync_error", "disk_full"),
        seed=4,
        minutes=1.0,
    ),
    # --- outbox ---
    Mutant(
        name="outbox_dropped_at_reconnect",
        place="outbox",
        bug="reports that wait are not sent on the next link",
        edits=(
            Edit(
                "channel/exchange.py",
                "        for row in self.outbox.rows:\n            self.row_is_durable(row)\n",
                "",
            ),
        ),
        invariants=("settles",),
        faults=("cut_with_loss",),
        seed=4,
        minutes=1.0,
    ),
    Mutant(
        name="outbox_forgets_ids",
        place="outbox",
        bug="a report that is sent again gets another id",
        edits=(
            Edit(
                "channel/exchange.py",
                "        return self.row.encoded",
                '        again = f"{self.row.frame.id}{id(self)}"\n'
                "        return encode_frame(attrs.evolve(self.row.frame, id=again))",
            ),
        ),
        invariants=("once",),
        faults=("cut_with_loss",),
        seed=1,
        minutes=1.0,
    ),
)
