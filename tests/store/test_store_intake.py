"""What links bring is committed once, in order, and per session all or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from semibot.config import Deadlines
from semibot.errors import LinkFenced
from semibot.store.base import (
    CancelAnswered,
    CommandsDone,
    EventsIn,
    MessageAccepted,
    ReportIn,
    Store,
    StoredEvent,
)
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports
from semibot.testing.store_user import StoreUser, cancelled, completed, failed, started
from semibot.wire.events import ExecutionComplete, SessionEvent, TextChunk, Usage, encode_event


async def outcome_of(store: Store, accepted: MessageAccepted) -> str | None:
    run = await store.get_run(accepted.run_id)
    return run and run.outcome


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("DEADLINE_EXCEEDED", "timeout"),
        ("INTERRUPTED", "interrupted"),
        ("EXECUTION_PLANE_DISCONNECTED", "interrupted"),
        ("MODEL_ERROR", "failed"),
    ],
)
async def test_an_error_says_how_the_run_ended(store: Store, code: str, outcome: str) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    can_retry = outcome == "interrupted"
    end = attrs.evolve(failed(accepted, code), retryable=can_retry)
    await ada.say(accepted, started(accepted), end)
    assert await outcome_of(store, accepted) == outcome
    page = await store.list_messages("ada", accepted.session_id, None, 1)
    assert page.messages[0].metadata == {
        "outcome": outcome,
        "error": {"code": code, "message": "it did not work", "retryable": can_retry},
    }


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ({"final_response": "all of it"}, "all of it"),
        ({"cancelled": True, "partial_response": "half of it"}, "half of it"),
        ({"cancelled": True}, ""),
    ],
)
async def test_without_chunks_the_end_holds_the_answer(
    store: Store, end: dict[str, object], text: str
) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    usage = Usage(tokens_in=3, tokens_out=4)
    await ada.say(
        accepted,
        started(accepted),
        ExecutionComplete(run_id=accepted.run_id, usage=usage, **end),
    )
    page = await store.list_messages("ada", accepted.session_id, None, 1)
    assert page.messages[0].content == text
    assert page.messages[0].metadata["usage"] == {"tokens_in": 3, "tokens_out": 4}


async def test_bytes_that_are_no_json_end_a_run_nevertheless(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    texts = ("{", "[1]", '{"content":5}', '{"content":"\\ud83d"}', '{"content":"fine"}')
    events = [
        StoredEvent(term=1, seq=seq, run_id=accepted.run_id, type="text_chunk", data=data)
        for seq, data in enumerate(texts, 1)
    ]
    for seq, data in ((6, "]"), (7, "[]")):
        events.append(attrs.evolve(events[0], seq=seq, type="execution_error", data=data))
    session_id = accepted.session_id
    op = EventsIn(session_id=session_id, term=1, events=tuple(events[:6]))
    await store.commit_intake(ada.link, [op])
    assert await outcome_of(store, accepted) == "failed"
    page = await store.list_messages("ada", session_id, None, 1)
    assert page.messages[0].content == "\ufffdfine"
    unheard_of = attrs.evolve(events[6], run_id="unheard of")
    op = EventsIn(session_id=session_id, term=1, events=(unheard_of,))
    result = await store.commit_intake(ada.link, [op])
    assert result.ended_runs == ((session_id, "unheard of"),)
    assert result.committed == {session_id: 7}


async def test_a_conflict_takes_everything_of_its_session_and_nothing_of_others(
    store: Store,
) -> None:
    ada = await StoreUser.join(store)
    bad, good = await ada.open_session(), await ada.open_session()
    for accepted in (bad, good):
        await ada.write(accepted.session_id)
    (asked, _) = [await ada.cancel(accepted.session_id) for accepted in (bad, good)]
    await store.mark_written(str(asked.command_id), ada.link)
    snapshot = {"checkpoint": {}, "short_term_memory": {}, "term": 1, "covers_seq": 1}
    result = await store.commit_intake(
        ada.link,
        [
            await ada.events(bad, started(bad)),
            await ada.events(good, started(good)),
            ReportIn(id="snap", session_id=bad.session_id, method="snapshot_sync", params=snapshot),
            ReportIn(id=None, session_id=good.session_id, method="snapshot_sync", params=snapshot),
            CancelAnswered(
                session_id=bad.session_id,
                command_id=str(asked.command_id),
                run_id=bad.run_id,
                receipt={"run_id": bad.run_id},
            ),
            await ada.events(bad, started(bad), after=5),
            await ada.events(bad, started(bad), after=6),
        ],
    )
    assert result.refused == {bad.session_id: "conflict"}
    assert result.committed == {good.session_id: 1}
    assert result.dropped == (("snap", "conflict"),)
    assert result.done_ids == ("snap", asked.command_id)
    run = await store.get_run(bad.run_id)
    assert run
    assert (run.first_seq, run.receipt) == (None, None)
    assert asked.command_id in [each.id for each in (await ada.work(bad.session_id)).commands]


async def test_numbers_below_the_first_are_a_conflict(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    op = await ada.events(accepted, started(accepted), after=-1)
    result = await store.commit_intake(ada.link, [op])
    assert result.refused == {accepted.session_id: "conflict"}


async def test_a_repeat_says_again_what_has_ended(store: Store) -> None:
    """A commit may have worked although it was not heard of."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    op = await ada.events(accepted, started(accepted), completed(accepted))
    first = await store.commit_intake(ada.link, [op])
    assert await store.commit_intake(ada.link, [op]) == first
    assert first.ended_runs == ((accepted.session_id, accepted.run_id),)
    page = await store.list_messages("ada", accepted.session_id, None, 10)
    assert len(page.messages) == 2


async def test_a_fenced_link_brings_nothing(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    old = ada.link
    op = await ada.events(accepted, started(accepted))
    await ada.dial("boot-1")
    for link in (old, attrs.evolve(ada.link, vm_id="none"), attrs.evolve(ada.link, user_id="bob")):
        with pytest.raises(LinkFenced):
            await store.commit_intake(link, [op])
    assert await store.tail_start(accepted.session_id) == (1, 0)


async def test_only_who_got_a_command_says_that_it_is_done(store: Store) -> None:
    ada = await StoreUser.join(store)
    bob = await StoreUser.join(store, "bob")
    accepted = await ada.open_session()
    second = await ada.send(accepted.session_id)
    await ada.write(accepted.session_id)
    written, waiting = (await ada.work(accepted.session_id)).commands
    done = CommandsDone(command_ids=(written.id, waiting.id))
    assert (await store.commit_intake(bob.link, [done])).done_ids == done.command_ids
    assert len((await ada.work(accepted.session_id)).commands) == 2
    assert (await store.commit_intake(ada.link, [done])).done_ids == done.command_ids
    assert [each.run_id for each in (await ada.work(accepted.session_id)).commands] == [
        second.run_id
    ]


async def test_a_level_1_host_answers_its_own_cancels(store: Store) -> None:
    ada = await StoreUser.join(store, level=1)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    asked = await ada.cancel(accepted.session_id)
    receipt = {"run_id": accepted.run_id, "outcome": "cancelled"}
    answer = CancelAnswered(
        session_id=accepted.session_id,
        command_id=str(asked.command_id),
        run_id=None,
        receipt=receipt,
    )
    await store.commit_intake(
        ada.link, [await ada.events(accepted, started(accepted), cancelled(accepted)), answer]
    )
    run = await store.get_run(accepted.run_id)
    assert run
    assert run.receipt == receipt
    assert (await ada.work(accepted.session_id)).commands == ()


async def test_the_first_receipt_counts(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    asked = await ada.cancel(accepted.session_id)
    await store.mark_written(str(asked.command_id), ada.link)
    answer = CancelAnswered(
        session_id=accepted.session_id,
        command_id=str(asked.command_id),
        run_id=accepted.run_id,
        receipt={"seconds": 1},
    )
    for op in (answer, attrs.evolve(answer, receipt={"seconds": 2})):
        result = await store.commit_intake(ada.link, [op])
        assert result.done_ids == (asked.command_id,)
    run = await store.get_run(accepted.run_id)
    assert run
    assert run.receipt == {"seconds": 1}


async def test_an_ended_run_leaves_only_its_cancel_to_be_answered(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    asked = await ada.cancel(accepted.session_id)
    await ada.say(accepted, started(accepted), completed(accepted))
    work = await ada.work(accepted.session_id)
    assert [each.id for each in work.commands] == [asked.command_id]
    assert await ada.cancel(accepted.session_id, accepted.run_id) == asked


# --- against a model ------------------------------------------------------------------

Kind = Literal["start", "text", "end", "again"]


@attrs.frozen
class Piece:
    """One event of a batch: what it says, and how far off the next number it is."""

    session: int
    kind: Kind
    shift: int


@attrs.frozen
class Lose:
    session: int


pieces = st.builds(
    Piece,
    st.integers(0, 1),
    st.sampled_from(["start", "text", "text", "end", "again", "again"]),
    st.sampled_from([0, 0, 0, 0, 0, -1, -2, 1]),
)
actions = st.lists(
    st.one_of(st.lists(pieces, min_size=1, max_size=6), st.builds(Lose, st.integers(0, 1))),
    max_size=8,
)


@attrs.define
class Model:
    """What one session has to look like."""

    accepted: MessageAccepted
    term: int = 1
    events: list[StoredEvent] = attrs.field(factory=list)
    ended: set[str] = attrs.field(factory=set)

    def take(self, batch: Sequence[StoredEvent]) -> bool:
        """Take a batch, or nothing of it."""
        events, ended = list(self.events), set(self.ended)
        for event in batch:
            if event.seq <= len(events):
                if event.seq < 1 or events[event.seq - 1] != event:
                    return False
            elif event.seq > len(events) + 1 or event.run_id in ended:
                return False
            else:
                events.append(event)
                if event.type.startswith("execution_"):
                    ended.add(event.run_id)
        self.events, self.ended = events, ended
        return True

    def event(self, piece: Piece, said: Sequence[StoredEvent]) -> StoredEvent:
        known = [*self.events, *said]
        seq = len(known) + 1 + piece.shift
        if piece.kind == "again" and 1 <= seq <= len(known):
            return known[seq - 1]
        event: SessionEvent = {
            "start": started(self.accepted),
            "text": TextChunk(content="x"),
            "again": TextChunk(content="y"),
            "end": completed(self.accepted),
        }[piece.kind]
        return StoredEvent(
            term=self.term,
            seq=seq,
            run_id=self.accepted.run_id,
            type=event.type,
            data=encode_event(event),
        )


@settings(max_examples=40, deadline=None)
@given(actions)
def test_a_session_is_what_a_model_says_whatever_comes_in(
    script: list[list[Piece] | Lose],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(play, Path(directory), script)


async def play(directory: Path, script: list[list[Piece] | Lose]) -> None:
    ports = simulated_ports()
    async with open_sqlite_store(directory / "db", ports=ports, deadlines=Deadlines()) as store:
        ada = await StoreUser.join(store)
        models = [Model(await ada.open_session()) for _ in range(2)]
        for model in models:
            await ada.write(model.accepted.session_id)
        for action in script:
            if isinstance(action, Lose):
                await lose(store, models[action.session])
            else:
                await bring(store, ada, models, action)
            for model in models:
                await go_on(ada, model)
        for model in models:
            await compare(store, model)


async def bring(store: Store, ada: StoreUser, models: list[Model], batch: Sequence[Piece]) -> None:
    said: list[list[StoredEvent]] = [[], []]
    ops: list[EventsIn] = []
    for piece in batch:
        model, known = models[piece.session], said[piece.session]
        event = model.event(piece, known)
        if event.seq == len(model.events) + len(known) + 1:
            known.append(event)
        ops.append(EventsIn(session_id=model.accepted.session_id, term=model.term, events=(event,)))
    result = await store.commit_intake(ada.link, ops)
    for model in models:
        session_id = model.accepted.session_id
        mine = [event for op in ops if op.session_id == session_id for event in op.events]
        if model.take(mine):
            assert session_id not in result.refused
            assert result.committed.get(session_id, len(model.events)) == len(model.events)
        else:
            assert result.refused[session_id] == "conflict"


async def lose(store: Store, model: Model) -> None:
    base = len(model.events)
    loss = await store.lose_session(model.accepted.session_id, code="INTERRUPTED", message="lost")
    assert loss is not None
    model.term += 1
    assert (loss.term, loss.base_seq) == (model.term, base)
    assert model.take(loss.events)


async def go_on(ada: StoreUser, model: Model) -> None:
    """Hold the session again, and begin the next run if the last one has ended."""
    if model.accepted.run_id in model.ended:
        model.accepted = await ada.send(model.accepted.session_id)
        await ada.write(model.accepted.session_id)
    else:
        await ada.store.hold_session(model.accepted.session_id, ada.link)


async def compare(store: Store, model: Model) -> None:
    session_id = model.accepted.session_id
    assert list(await store.read_events(session_id, 0, 10**6)) == model.events
    assert [event.seq for event in model.events] == list(range(1, len(model.events) + 1))
    assert await store.tail_start(session_id) == (model.term, len(model.events))
    ends = [event.run_id for event in model.events if event.type.startswith("execution_")]
    assert len(ends) == len(set(ends))
    answers = (await store.list_messages("ada", session_id, None, 100)).messages
    assert [each.run_id for each in answers if each.role == "assistant"] == ends
