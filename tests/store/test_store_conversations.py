"""Messages, queues, cancels and deletion, where the conformance suite does not look."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from semibot.errors import IdempotencyConflict, LinkFenced, NotFound, SessionBusy, StoreError
from semibot.store.base import CancelAnswered, CommandsDone, NewSession, ReportIn, Store
from semibot.testing.store_user import StoreUser, cancelled, completed, started
from semibot.wire.codec import JsonObject

NEW = NewSession(agent_id=None, runtime_type="semigraph", openclaw_config=None)
DAY = 24 * 3600


# --- messages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("  hello\nworld", "hello"),
        ("\n\nlater", "later"),
        ("x" * 60, "x" * 50),
        ("", ""),
        (" \n ", ""),
        ("钥" * 51, "钥" * 50),
    ],
)
async def test_a_title_is_the_beginning_of_the_first_line(
    store: Store, message: str, title: str
) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session(message)
    session = await store.get_session("ada", accepted.session_id)
    assert session
    assert session.title == title


async def test_nobody_unknown_gets_a_session(store: Store) -> None:
    ada = await StoreUser.join(store)
    stranger = StoreUser(store, "stranger", ada.link)
    with pytest.raises(NotFound):
        await stranger.open_session()


async def test_a_session_is_not_made_twice(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    with pytest.raises(StoreError):
        await ada.send(accepted.session_id, create=NEW)
    assert len((await ada.work(accepted.session_id)).commands) == 1


async def test_a_refused_first_message_leaves_no_session(store: Store) -> None:
    ada = await StoreUser.join(store)
    await ada.send("a", create=NEW, key=("key", "hash"))
    with pytest.raises(IdempotencyConflict):
        await ada.send("b", create=NEW, key=("key", "other"))
    assert await store.get_session("ada", "b") is None


async def test_reject_lets_a_message_pass_when_nothing_runs(store: Store) -> None:
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    await ada.answer(first)
    second = await ada.send(first.session_id, on_busy="reject")
    assert second.after_seq == 2
    with pytest.raises(SessionBusy) as caught:
        await ada.send(first.session_id, on_busy="reject")
    assert caught.value.waiting == 1


async def test_interrupt_cancels_each_earlier_run_once(store: Store) -> None:
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    await ada.write(first.session_id)
    await ada.send(first.session_id, on_busy="interrupt")
    last = await ada.send(first.session_id, on_busy="interrupt")
    work = await ada.work(first.session_id)
    assert [each.run_id for each in work.commands if each.kind == "cancel"] == [first.run_id]
    assert [run.wants_cancel for run in work.open_runs] == [True, True, False]
    assert work.open_runs[-1].id == last.run_id


async def test_a_key_is_forgotten_after_a_day(store: Store, mock_clock: MockClock) -> None:
    ada = await StoreUser.join(store)
    first = await ada.send("s", create=NEW, key=("key", "hash"))
    mock_clock.jump(DAY - 1)
    assert (await ada.send("s", key=("key", "hash"))).is_repeat
    mock_clock.jump(1)
    later = await ada.send("s", key=("key", "other hash"))
    assert not later.is_repeat
    assert later.run_id != first.run_id
    assert (await ada.send("s", key=("key", "other hash"))).run_id == later.run_id


async def test_a_key_belongs_to_one_session_and_one_user(store: Store) -> None:
    ada = await StoreUser.join(store)
    bob = await StoreUser.join(store, "bob")
    await ada.send("s", create=NEW, key=("key", "hash"))
    await ada.send("t", create=NEW)
    with pytest.raises(IdempotencyConflict):
        await ada.send("t", key=("key", "hash"))
    assert not (await bob.send("u", create=NEW, key=("key", "hash"))).is_repeat
    await store.remember_answer("ada", "answered", "hash", {})
    with pytest.raises(IdempotencyConflict):
        await ada.send("s", key=("answered", "hash"))


# --- cancelling -----------------------------------------------------------------------


async def test_a_run_cancelled_while_it_waited_keeps_its_receipt(store: Store) -> None:
    """It is written with `cancelled` at its turn, and the answer stays the first one."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    asked = await ada.cancel(accepted.session_id)
    assert asked.state == "not_started"
    await ada.write(accepted.session_id)
    run = await store.get_run(accepted.run_id)
    assert run
    assert (run.is_written, run.wants_cancel, run.receipt) == (True, True, asked.receipt)
    assert await ada.cancel(accepted.session_id) == asked
    await ada.say(accepted, started(accepted), cancelled(accepted))
    ended = await ada.cancel(accepted.session_id, accepted.run_id)
    assert (ended.state, ended.receipt) == ("ended", asked.receipt)


async def test_a_receipt_without_an_end_does_not_keep_a_run_from_being_cancelled(
    store: Store,
) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    asked = await ada.cancel(accepted.session_id)
    await store.mark_written(str(asked.command_id), ada.link)
    answer = CancelAnswered(
        session_id=accepted.session_id,
        command_id=str(asked.command_id),
        run_id=accepted.run_id,
        receipt={"run_id": accepted.run_id},
    )
    await store.commit_intake(ada.link, [answer])
    again = await ada.cancel(accepted.session_id)
    assert again.state == "pending"
    assert again.command_id != asked.command_id


async def test_an_unknown_run_is_not_cancelled(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    with pytest.raises(NotFound):
        await ada.cancel(accepted.session_id, "none")


# --- commands -------------------------------------------------------------------------


async def test_work_is_listed_in_the_order_in_which_it_came(store: Store) -> None:
    ada = await StoreUser.join(store)
    first, second = await ada.open_session(), await ada.open_session()
    await ada.send(first.session_id)
    assert await store.sessions_with_work("ada") == (first.session_id, second.session_id)
    assert await store.sessions_with_work("bob") == ()
    await ada.answer(first)
    await ada.answer(second)
    assert await store.sessions_with_work("ada") == (first.session_id,)
    assert (await ada.work(second.session_id)).commands == ()
    assert await store.session_work("none") is None
    assert await store.get_run("none") is None


async def test_the_newest_snapshot_comes_with_all_that_it_has(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.answer(accepted, "text")
    reports: list[ReportIn] = []
    for covers_seq in (1, 3, 2):
        params: JsonObject = {
            "checkpoint": {"at": covers_seq},
            "short_term_memory": {},
            "conversation_state": {"turn": 1},
            "file_manifest": ["a"],
            "term": 1,
            "covers_seq": covers_seq,
        }
        reports.append(
            ReportIn(id=None, session_id=accepted.session_id, method="snapshot_sync", params=params)
        )
    await store.commit_intake(ada.link, reports)
    held = await store.hold_session(accepted.session_id, ada.link)
    assert held.snapshot == {
        "covers_seq": 3,
        "checkpoint": {"at": 3},
        "short_term_memory": {},
        "conversation_state": {"turn": 1},
        "file_manifest": ["a"],
    }


async def test_a_command_is_not_written_for_a_session_that_was_lost(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await store.hold_session(accepted.session_id, ada.link)
    (command,) = (await ada.work(accepted.session_id)).commands
    await store.lose_session(accepted.session_id, code="INTERRUPTED", message="lost")
    with pytest.raises(LinkFenced):
        await store.mark_written(command.id, ada.link)
    assert (await ada.work(accepted.session_id)).commands == (command,)


async def test_a_command_of_another_user_is_not_written(store: Store) -> None:
    ada = await StoreUser.join(store)
    bob = await StoreUser.join(store, "bob")
    accepted = await ada.open_session()
    (command,) = (await ada.work(accepted.session_id)).commands
    with pytest.raises(NotFound):
        await store.mark_written(command.id, bob.link)


# --- deleting -------------------------------------------------------------------------


async def test_a_message_of_a_deleted_session_is_not_written(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await store.hold_session(accepted.session_id, ada.link)
    (command,) = (await ada.work(accepted.session_id)).commands
    await store.delete_session("ada", accepted.session_id, "stop")
    for command_id in (command.id,):
        with pytest.raises(NotFound):
            await store.mark_written(command_id, ada.link)
    assert [each.id for each in (await ada.work(accepted.session_id)).commands] == ["stop"]


async def test_a_stop_has_nobody_to_go_to_when_the_vm_is_lost(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await store.hold_session(accepted.session_id, ada.link)
    await store.delete_session("ada", accepted.session_id, "stop")
    await ada.dial("boot-2")
    assert await store.sessions_with_work("ada") == ()
    with pytest.raises(NotFound):
        await store.mark_written("stop", ada.link)


async def test_a_stop_outlives_the_tombstone_in_vain(store: Store, mock_clock: MockClock) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await store.hold_session(accepted.session_id, ada.link)
    await store.delete_session("ada", accepted.session_id, "stop")
    mock_clock.jump(30 * DAY - 1)
    await store.prune()
    assert (await ada.say(accepted, started(accepted))).refused == {accepted.session_id: "gone"}
    mock_clock.jump(1)
    await store.prune()
    assert (await ada.say(accepted, started(accepted))).refused == {accepted.session_id: "fenced"}
    assert await store.session_work(accepted.session_id) is None


async def test_deleting_takes_everything_of_the_session(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.answer(accepted, "text")
    await store.delete_session("ada", accepted.session_id, "stop")
    assert await store.read_events(accepted.session_id, 0, 1000) == ()
    assert await store.get_run(accepted.run_id) is None
    assert await store.read_history(accepted.session_id, accepted.run_id, 1000) == ()
    assert await store.delete_session("ada", accepted.session_id, "again") is None
    done = CommandsDone(command_ids=("stop",))
    assert (await store.commit_intake(ada.link, [done])).done_ids == ("stop",)


# --- at the same time -----------------------------------------------------------------


async def test_messages_that_come_at_once_get_places_of_their_own(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ada.send, accepted.session_id)
    work = await ada.work(accepted.session_id)
    assert len({run.id for run in work.open_runs}) == 11
    assert [each.run_id for each in work.commands] == [run.id for run in work.open_runs]


async def test_a_busy_message_does_not_spoil_its_neighbours(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    busy: list[SessionBusy] = []

    async def send_or_not() -> None:
        try:
            await ada.send(accepted.session_id)
        except SessionBusy as exc:
            busy.append(exc)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(send_or_not)
    assert len(busy) == 4
    assert len((await ada.work(accepted.session_id)).open_runs) == 17


async def test_a_second_run_follows_the_first(store: Store) -> None:
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    second = await ada.send(first.session_id)
    await ada.answer(first, "one")
    held = await ada.write(first.session_id)
    assert held.next_seq == 4
    await ada.say(second, started(second), completed(second, "two"))
    run = await store.get_run(second.run_id)
    assert run
    assert (run.first_seq, run.last_seq) == (4, 5)
