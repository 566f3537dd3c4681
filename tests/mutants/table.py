"""The planted bugs: what each changes, what finds it, and a seed that does."""

from __future__ import annotations

from typing import Final

from planting import Edit, Mutant

MUTANTS: Final = (
    # --- store ---
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
    # --- links ---
    Mutant(
        name="epoch_not_raised",
        place="links",
        bug="a VM's next link gets the epoch of the one before",
        edits=(
            Edit(
                "store/_vms.py",
                "link_attempt = ?, epoch = epoch + 1, bootstrap",
                "link_attempt = ?, epoch = max(epoch, 1), bootstrap",
            ),
        ),
        invariants=("epochs_rise",),
        faults=("cut_with_loss",),
        seed=1,
        minutes=0.5,
    ),
    Mutant(
        name="old_link_lives_on",
        place="links",
        bug="a link that was replaced is not closed",
        edits=(
            Edit(
                "host/links.py",
                "                    old.intake.abandon()\n                    is_other",
                "                    is_other",
            ),
            Edit(
                "host/links.py",
                'old.close(4009, "other_instance" if is_other else "superseded")',
                "del is_other",
            ),
        ),
        invariants=("one_link", "no_failure"),
        faults=("late_dial",),
        seed=1,
        minutes=1.5,
    ),
    Mutant(
        name="epoch_not_checked",
        place="links",
        bug="a link that was replaced goes on, and what comes on it is taken",
        edits=(
            Edit(
                "store/_rows.py",
                'if row is None or row.integer("epoch") != link.epoch:',
                "if row is None:",
            ),
            Edit(
                "store/_vms.py",
                '" WHERE id = ? AND user_id = ? AND epoch = ?"\n'
                "        \" AND status NOT IN ('failed', 'terminated')\",\n"
                "        (db.now(), link.vm_id, link.user_id, link.epoch),\n"
                "    )\n    return changed > 0\n\n\ndef link_closed",
                '" WHERE id = ? AND user_id = ?"\n'
                "        \" AND status NOT IN ('failed', 'terminated')\",\n"
                "        (db.now(), link.vm_id, link.user_id),\n"
                "    )\n    return changed > 0\n\n\ndef link_closed",
            ),
            Edit(
                "host/links.py",
                "                    old.intake.abandon()\n                    is_other",
                "                    is_other",
            ),
            Edit(
                "host/links.py",
                'old.close(4009, "other_instance" if is_other else "superseded")',
                "del is_other",
            ),
        ),
        invariants=("no_failure", "one_link"),
        faults=("late_dial", "half_open", "cut_with_loss"),
        seed=5,
        minutes=1.0,
    ),
    Mutant(
        name="old_close_unregisters_new",
        place="links",
        bug="the end of a link that was replaced unregisters the new one",
        edits=(
            Edit(
                "host/links.py",
                "            if self._links.get(link.user_id) is link:\n"
                "                del self._links[link.user_id]\n",
                "            if link.user_id in self._links:\n"
                "                del self._links[link.user_id]\n",
            ),
        ),
        invariants=("no_failure",),
        faults=("late_dial", "half_open"),
        seed=6,
        minutes=1.0,
    ),
    Mutant(
        name="ticket_not_consumed",
        place="links",
        bug="a ticket lets in whoever comes with it, again and again",
        edits=(
            Edit(
                "store/_vms.py",
                'problem = "the ticket is spent"\n',
                "problem = None\n",
            ),
            Edit(
                "store/_vms.py",
                'ticket.integer("attempt") > accepted_attempt',
                'ticket.integer("attempt") >= accepted_attempt',
            ),
        ),
        invariants=("keeps_strangers_out",),
        faults=("ticket_replay",),
        seed=1,
        minutes=0.5,
    ),
    Mutant(
        name="vm_deaf_to_silence",
        place="links",
        bug="a VM never gives up a link on which it hears nothing",
        edits=(
            Edit(
                "channel/connection.py",
                "                raise LinkEnded(CloseCode.SILENT, "
                'f"the host was silent for {dead_after:g} s")',
                "                pass",
            ),
        ),
        invariants=("half_open_noticed",),
        faults=("half_open",),
        seed=1,
        minutes=0.7,
    ),
    Mutant(
        name="host_deaf_to_silence",
        place="links",
        bug="a host never gives up a link on which it hears nothing",
        edits=(
            Edit(
                "host/vm_socket.py",
                '                raise Refused(CloseCode.SILENT, "silence")',
                "                await trio.sleep_forever()",
            ),
        ),
        invariants=("half_open_noticed", "heartbeats_go_on"),
        faults=("half_open",),
        seed=2,
        minutes=0.7,
    ),
    Mutant(
        name="heartbeat_ends_on_error",
        place="links",
        bug="the heartbeat loop ends when the host has not answered, and says nothing",
        edits=(
            Edit(
                "channel/connection.py",
                "            self._exchange.outgoing.put_heartbeat(encode_frame(frame))\n",
                "            heard_at = 0.0 if self._socket is None else self._socket.heard_at\n"
                "            if trio.current_time() - heard_at > interval + 3:\n"
                "                await trio.sleep_forever()\n"
                "            self._exchange.outgoing.put_heartbeat(encode_frame(frame))\n",
            ),
        ),
        invariants=("heartbeats_go_on",),
        faults=("clogged", "half_open"),
        seed=1,
        minutes=0.7,
    ),
    Mutant(
        name="service_returns_unnoticed",
        place="lifetimes",
        bug="the heartbeat returns, and nobody minds that a service has ended",
        edits=(
            Edit(
                "lifetimes.py",
                "                    raise ServiceEnded(name)",
                "                    pass",
            ),
            Edit(
                "channel/connection.py",
                "            await trio.sleep(interval)\n\n    async def _ping",
                "            await trio.sleep(interval)\n            return\n\n    async def _ping",
            ),
        ),
        invariants=("heartbeats_go_on",),
        seed=1,
        minutes=0.5,
    ),
    Mutant(
        name="no_pause",
        place="links",
        bug="a VM dials again at once, for ever",
        edits=(
            Edit("channel/backoff.py", "return self._random.uniform(0.0, longest)", "return 0.0"),
        ),
        invariants=("no_hot_loop",),
        faults=("connect_refused",),
        seed=1,
        minutes=0.7,
    ),
    Mutant(
        name="no_jitter",
        place="links",
        bug="all VMs dial again in step",
        edits=(
            Edit(
                "channel/backoff.py", "return self._random.uniform(0.0, longest)", "return longest"
            ),
        ),
        invariants=("no_hot_loop",),
        faults=("connect_refused",),
        seed=1,
        minutes=1.0,
    ),
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
    # --- runs ---
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
"""Every one of them."""
