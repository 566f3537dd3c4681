"""Planted bugs of links: epochs, silence, heartbeats, pauses, tickets."""

from __future__ import annotations

from typing import Final

from planting import Edit, Mutant

LINKS_BUGS: Final = (
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
        invariants=("no_failure", "one_link", "cancel_works"),
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
)
