"""What any store has to do with events and losses; a part of ``store_conformance``."""

from __future__ import annotations

from typing import Final

import attrs

from semibot.errors import StoreError
from semibot.store.base import CancelAnswered, CommandsDone, MessageAccepted, SessionLoss, Store
from semibot.wire.events import TextChunk

from ._expectations import StoreCheck, expect, expect_raises
from .store_user import StoreUser, completed, failed, started

# --- what comes in --------------------------------------------------------------------


async def a_terminal_event_ends_its_run(store: Store) -> None:
    """The outcome and the answer, joined from the chunks, are stored with it."""
    ada = await StoreUser.join(store)
    first = await ada.open_session("question")
    result = await ada.answer(first, "ans", "wer")
    expect(result.committed, {first.session_id: 4})
    expect(result.ended_runs, ((first.session_id, first.run_id),))
    run = await store.get_run(first.run_id)
    expect(run and (run.first_seq, run.last_seq, run.outcome), (1, 4, "completed"))
    second = await ada.send(first.session_id, "more")
    await ada.write(first.session_id)
    await ada.say(second, started(second, "more"), failed(second, "DEADLINE_EXCEEDED"))
    run = await store.get_run(second.run_id)
    expect(run and (run.first_seq, run.last_seq, run.outcome), (5, 6, "timeout"))
    page = await store.list_messages("ada", first.session_id, None, 10)
    expect(
        [(each.role, each.content, each.metadata.get("outcome")) for each in page.messages],
        [
            ("user", "question", None),
            ("assistant", "answer", "completed"),
            ("user", "more", None),
            ("assistant", "", "timeout"),
        ],
    )


async def numbers_have_no_gaps_and_no_second_meaning(store: Store) -> None:
    """Repeats are skipped; gaps and other bytes refuse the session and nobody else."""
    ada = await StoreUser.join(store)
    first, other = await ada.open_session(), await ada.open_session()
    for accepted in (first, other):
        await ada.write(accepted.session_id)
    events = await ada.events(first, started(first), TextChunk(content="a"))
    await store.commit_intake(ada.link, [events])
    await store.commit_intake(ada.link, [events])
    expect(await store.tail_start(first.session_id), (1, 2))

    gap = await ada.events(first, TextChunk(content="b"), after=4)
    changed = await ada.events(first, TextChunk(content="c"), after=1)
    for wrong in (gap, changed):
        result = await store.commit_intake(
            ada.link,
            [
                await ada.events(first, TextChunk(content="next")),
                await ada.events(other, TextChunk(content="neighbour")),
                wrong,
            ],
        )
        expect(result.refused, {first.session_id: "conflict"})
        expect(list(result.committed), [other.session_id])
    expect(await store.read_events(first.session_id, 0, 10_000), events.events)
    expect(await store.tail_start(other.session_id), (1, 2))


async def a_run_has_one_end(store: Store) -> None:
    """Nothing of a run follows its terminal event."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.answer(accepted)
    for late in (TextChunk(content="late"), completed(accepted)):
        result = await ada.say(accepted, late)
        expect(result.refused, {accepted.session_id: "conflict"})
    expect(await store.tail_start(accepted.session_id), (1, 2))


async def only_the_holder_speaks_for_a_session(store: Store) -> None:
    """Other terms and processes are fenced; deleted sessions are gone; all is acknowledged."""
    ada = await StoreUser.join(store)
    bob = await StoreUser.join(store, "bob")
    held, free, deleted = [await ada.open_session() for _ in range(3)]
    foreign = await bob.open_session()
    await ada.write(held.session_id)
    await store.delete_session("ada", deleted.session_id, "stop")
    right = await ada.events(held, started(held))
    result = await store.commit_intake(
        ada.link,
        [
            await ada.events(free, started(free)),
            await ada.events(foreign, started(foreign)),
            await ada.events(deleted, started(deleted)),
            attrs.evolve(right, term=2),
            CommandsDone(command_ids=("unknown",)),
            CancelAnswered(
                session_id=deleted.session_id, command_id="other", run_id=None, receipt={}
            ),
        ],
    )
    expect(
        result.refused,
        {
            free.session_id: "fenced",
            foreign.session_id: "fenced",
            deleted.session_id: "gone",
            held.session_id: "fenced",
        },
    )
    expect(result.done_ids, ("unknown", "other"))
    expect(result.committed, {})
    expect((await ada.say(held, started(held))).refused, {})


# --- losses ---------------------------------------------------------------------------


async def a_lost_vm_interrupts_what_was_written(store: Store) -> None:
    """Written runs end in the next term; what was never written waits for the next VM."""
    ada = await StoreUser.join(store)
    begun, sent, waiting = [await ada.open_session() for _ in range(3)]
    for accepted in (begun, sent):
        await ada.write(accepted.session_id)
    queued = await ada.send(begun.session_id)
    await ada.say(begun, started(begun), TextChunk(content="so far"))
    asked = await ada.cancel(begun.session_id)
    losses = await store.lose_vm(
        ada.link.vm_id,
        status="disconnected",
        last_error="silence",
        code="EXECUTION_PLANE_DISCONNECTED",
        message="the execution plane is gone",
    )
    by_session = {loss.session_id: loss for loss in losses}
    expect(set(by_session), {begun.session_id, sent.session_id})
    _expect_loss(by_session[begun.session_id], begun, 2, ["execution_error"])
    _expect_loss(by_session[sent.session_id], sent, 0, ["run_started", "execution_error"])
    run = await store.get_run(begun.run_id)
    expect(
        run and (run.outcome, run.receipt),
        (
            "interrupted",
            {"run_id": begun.run_id, "outcome": "interrupted", "vm_lost": True},
        ),
    )
    expect((await ada.cancel(begun.session_id, begun.run_id)).state, "ended")
    expect(asked.state, "pending")
    work = await ada.work(begun.session_id)
    expect([each.run_id for each in work.commands], [queued.run_id])
    expect((await ada.work(waiting.session_id)).session.term, 1)
    with expect_raises(StoreError):
        await ada.say(begun, TextChunk(content="late"))

    await ada.dial("boot-1")
    expect(await store.held_sessions(ada.link), {})
    held = await ada.write(begun.session_id)
    expect((held.session.term, held.next_seq), (2, 4))


def _expect_loss(
    loss: SessionLoss, accepted: MessageAccepted, base_seq: int, types: list[str]
) -> None:
    expect((loss.term, loss.base_seq, loss.ended_runs), (2, base_seq, (accepted.run_id,)))
    expect([event.type for event in loss.events], types)
    expect([event.term for event in loss.events], [2] * len(types))
    numbers = [event.seq for event in loss.events]
    expect(numbers, list(range(base_seq + 1, base_seq + 1 + len(types))))


async def one_session_is_lost_alone(store: Store) -> None:
    """Its neighbours keep their holder, and the next holder begins in the next term."""
    ada = await StoreUser.join(store)
    first, other = await ada.open_session(), await ada.open_session()
    for accepted in (first, other):
        await ada.write(accepted.session_id)
    loss = await store.lose_session(first.session_id, code="INTERRUPTED", message="lost")
    expect(loss and [event.type for event in loss.events], ["run_started", "execution_error"])
    expect(list(await store.held_sessions(ada.link)), [other.session_id])
    again = await store.lose_session(first.session_id, code="INTERRUPTED", message="lost")
    expect(again, None)
    expect(await store.tail_start(first.session_id), (2, 2))


async def a_run_that_no_vm_got_is_ended_by_the_host(store: Store) -> None:
    """Both its events are made in the present term, as far as runs want it in order."""
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    second, third = [await ada.send(first.session_id) for _ in range(2)]
    for accepted in (first, third):
        await ada.cancel(first.session_id, accepted.run_id)
    loss = await store.end_unwritten_runs(first.session_id, outcome="cancelled")
    expect(loss and (loss.term, loss.base_seq, loss.ended_runs), (1, 0, (first.run_id,)))
    expect(loss and [event.type for event in loss.events], ["run_started", "execution_complete"])
    work = await ada.work(first.session_id)
    expect([run.id for run in work.open_runs], [second.run_id, third.run_id])
    expect([each.run_id for each in work.commands], [second.run_id, third.run_id])
    expect(await store.end_unwritten_runs(first.session_id, outcome="cancelled"), None)


INTAKE_CHECKS: Final[tuple[StoreCheck, ...]] = (
    a_terminal_event_ends_its_run,
    numbers_have_no_gaps_and_no_second_meaning,
    a_run_has_one_end,
    only_the_holder_speaks_for_a_session,
    a_lost_vm_interrupts_what_was_written,
    one_session_is_lost_alone,
    a_run_that_no_vm_got_is_ended_by_the_host,
)
"""The checks of this file."""
