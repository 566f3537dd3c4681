"""Count what a fault has cost: what was acknowledged and is lost, what came twice, who stayed.

Acknowledged is what somebody was told and may rely on: an event that was in the database
before the fault, or that a reader saw under an id, and a message that was answered with 200.
One exception is a rule: when VM *and* host are killed, the last events that readers saw may
not have been committed. They are taken back in the open: their ids are never used again,
the reader is sent ``resync``, and no end of a run is among them. They are counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import attrs
import trio
from following import TERMINAL, Follower, Stored, check_reader, check_store
from harness import Plane

from semibot.wire.sse import EventId


@attrs.define
class Audit:
    """What was found; empty lists are good."""

    acked: int = 0
    """Events and messages that were acknowledged."""
    lost: list[str] = attrs.field(factory=list[str])
    """Those that are not there any more."""
    duplicates: list[str] = attrs.field(factory=list[str])
    """What came, or took effect, twice."""
    orphans: list[str] = attrs.field(factory=list[str])
    """Processes that were alive too long."""
    wrong: list[str] = attrs.field(factory=list[str])
    """Anything else that must not be, such as a run with two ends."""
    taken_back: int = 0
    """Events that a reader saw and that were replaced by ``resync``."""

    @property
    def problems(self) -> list[str]:
        """Everything that was found."""
        kinds = ("lost", "duplicates", "orphans", "wrong")
        return [f"{kind}: {what}" for kind in kinds for what in getattr(self, kind)]

    def __iadd__(self, other: Audit) -> Self:
        for field in attrs.fields(Audit):
            value = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, value)
        return self

    def __str__(self) -> str:
        return (
            f"acked {self.acked}, lost {len(self.lost)}, duplicates {len(self.duplicates)}, "
            f"orphans {len(self.orphans)}, otherwise wrong {len(self.wrong)}, "
            f"taken back {self.taken_back}"
        )


def stored_before(plane: Plane, session_id: str) -> Stored:
    """Return what is in the database right now; nothing if there is no session yet."""
    return plane.stored(session_id) if session_id else []


def audit_events(
    stored: Stored,
    followers: Sequence[Follower],
    before: Stored = (),
    *,
    may_take_back: bool = False,
) -> Audit:
    """Compare a session in the store with what was there, and with what readers saw.

    Args:
        stored: The session as it is now; all its runs have ended.
        followers: Who saw it, across reconnects.
        before: What was in the database before the fault.
        may_take_back: Whether both VM and host were killed.
    """
    audit = Audit()
    by_id = {EventId(term, seq): event for term, seq, _, event in stored}
    acked = {EventId(term, seq): event for term, seq, _, event in before}
    for ident, event in acked.items():
        if by_id.get(ident) != event:
            audit.lost.append(f"{ident} was in the database: {event}")
    for follower in followers:
        live = {item.id: item for item in follower.seen if item.type != "resync"}
        ids = Counter(item.id for item in follower.seen if item.type != "resync")
        audit.duplicates += [f"{ident} {n} times" for ident, n in ids.items() if n > 1]
        for ident, item in live.items():
            if ident in by_id or not may_take_back or item.type in TERMINAL:
                acked[ident] = item.event
                if by_id.get(ident) != item.event:
                    audit.lost.append(f"{ident} was seen: {item.event}")
            else:
                audit.taken_back += 1
        seen = list(follower.seen)
        while may_take_back and seen and seen[-1].type != "resync" and seen[-1].id not in by_id:
            del seen[-1]  # it has not come back since, to be told
        _note(audit, check_reader, seen, stored)
    _note(audit, check_store, stored)
    audit.acked = len(acked)
    return audit


def audit_text(stored: Stored, expected: Mapping[str, str]) -> Audit:
    """Compare what runs said with what the model, or the bridge, had to say.

    Args:
        stored: The session's events.
        expected: By run, all that it says if nobody disturbs it.
    """
    audit = Audit()
    for run_id, whole in expected.items():
        events = [event for _, _, run, event in stored if run == run_id]
        text = "".join(event["content"] for event in events if event["type"] == "text_chunk")
        is_complete = bool(events) and events[-1]["type"] == "execution_complete"
        if not whole.startswith(text):
            audit.duplicates.append(f"run {run_id} says {text[-60:]!r}")
        elif is_complete and "cancelled" not in events[-1] and text != whole:
            audit.lost.append(f"run {run_id} ends with {text[-60:]!r}")
    return audit


def audit_effects(stored: Stored, run_id: str, lines: Sequence[str], count: int) -> Audit:
    """Look at what tools have appended to a file: a line for each call, and none twice."""
    audit = Audit(acked=0)
    audit.duplicates += [f"line {line} {n} times" for line, n in Counter(lines).items() if n > 1]
    events = [event for _, _, run, event in stored if run == run_id]
    succeeded = sum(event["type"] == "tool_call_complete" and event["success"] for event in events)
    if len(lines) < succeeded:
        audit.lost.append(f"{succeeded} calls succeeded, but {len(lines)} lines are there")
    is_complete = bool(events) and events[-1]["type"] == "execution_complete"
    if is_complete and "cancelled" not in events[-1] and len(lines) != count:
        audit.lost.append(f"{len(lines)} of {count} lines, and the run is complete")
    return audit


async def audit_replay(plane: Plane, session_id: str, stored: Stored) -> Audit:
    """Let one more reader read everything from the beginning."""
    audit = Audit()
    last = EventId(*stored[-1][:2]) if stored else EventId(1, 0)
    replayed = Follower(headers={"Last-Event-ID": "1-0"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.follow, replayed, session_id)
        await replayed.wait(lambda f: f.last_id == last)
        nursery.cancel_scope.cancel()
    if [item.event for item in replayed.seen] != [event for _, _, _, event in stored]:
        audit.lost.append(f"a new reader of {session_id} sees something else than the store holds")
    return audit


def audit_messages(plane: Plane, questions: Mapping[str, str]) -> Audit:
    """Look for messages that were answered with 200: there is each, once, in its run."""
    audit = Audit(acked=len(questions))
    for run_id, question in questions.items():
        found = plane.rows(
            "SELECT run_id FROM messages WHERE role = 'user' AND content = ?", question
        )
        if (run_id,) not in found:
            audit.lost.append(f"message {question!r} of run {run_id}")
        if len(found) > 1:
            audit.duplicates.append(f"message {question!r} {len(found)} times")
    return audit


def audit_runs(plane: Plane) -> Audit:
    """Look at all runs: each has ended, with one event."""
    audit = Audit()
    open_runs = plane.rows("SELECT id FROM runs WHERE outcome IS NULL")
    audit.wrong += [f"run {run_id} has not ended" for (run_id,) in open_runs]
    for run_id, count in plane.rows(
        "SELECT runs.id, count(events.seq) AS ends FROM runs LEFT JOIN events"
        " ON events.run_id = runs.id AND events.type IN (?, ?) GROUP BY runs.id HAVING ends != 1",
        *TERMINAL,
    ):
        audit.wrong.append(f"run {run_id} has {count} ends")
    return audit


def _note(audit: Audit, check: object, *arguments: object) -> None:
    try:
        check(*arguments)
    except (AssertionError, KeyError) as exc:
        audit.wrong.append(str(exc) or repr(exc))


def total(audits: Iterable[Audit]) -> Audit:
    """Return the sum."""
    result = Audit()
    for audit in audits:
        result += audit
    return result
