"""What any store has to do with conversations; a part of ``store_conformance``."""

from __future__ import annotations

from typing import Final

import attrs

from semibot.errors import BadCursor, IdempotencyConflict, NotFound, SessionBusy
from semibot.store.base import CancelAnswered, NewSession, Store
from semibot.wire.codec import JsonObject
from semibot.wire.events import TextChunk, ToolCallStart

from ._expectations import StoreCheck, expect, expect_raises
from .store_user import StoreUser, cancelled, completed, started

NEW: Final = NewSession(agent_id=None, runtime_type="semigraph", openclaw_config=None)


# --- messages -------------------------------------------------------------------------


async def a_message_is_stored_with_its_session_run_and_command(store: Store) -> None:
    """A first message makes the session, the run and the command in one transaction."""
    ada = await StoreUser.join(store)
    accepted = await ada.send("s", "Which way?\nThere are two.", create=NEW)
    expect((accepted.session_id, accepted.after_seq, accepted.is_repeat), ("s", 0, False))
    work = await ada.work("s")
    expect(
        [(each.kind, each.run_id) for each in work.commands], [("user_message", accepted.run_id)]
    )
    expect(
        work.commands[0].payload,
        {"message": "Which way?\nThere are two.", "message_id": accepted.message_id},
    )
    expect([(run.id, run.is_written) for run in work.open_runs], [(accepted.run_id, False)])
    expect(work.session.title, "Which way?")
    expect(await store.sessions_with_work("ada"), ("s",))


async def what_is_not_the_users_is_not_found(store: Store) -> None:
    """Another user's session is the same as none, whatever is asked of it."""
    ada = await StoreUser.join(store)
    bob = await StoreUser.join(store, "bob")
    accepted = await ada.open_session()
    other = await bob.open_session()
    for session_id in (accepted.session_id, "none"):
        with expect_raises(NotFound):
            await bob.send(session_id)
        with expect_raises(NotFound):
            await bob.cancel(session_id)
        with expect_raises(NotFound):
            await store.list_messages("bob", session_id, None, 10)
        with expect_raises(NotFound):
            await store.hold_session(session_id, bob.link)
        expect(await store.get_session("bob", session_id), None)
        expect(await store.delete_session("bob", session_id, "command"), None)
    with expect_raises(NotFound):
        await bob.cancel(other.session_id, accepted.run_id)
    page = await store.list_sessions("bob", None, 10)
    expect([session.id for session in page.sessions], [other.session_id])


async def a_busy_session_does_as_it_is_told(store: Store) -> None:
    """``reject`` refuses, ``enqueue`` waits, ``interrupt`` cancels what came before."""
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    await ada.write(first.session_id)
    with expect_raises(SessionBusy):
        await ada.send(first.session_id, on_busy="reject")
    second = await ada.send(first.session_id, on_busy="enqueue")
    third = await ada.send(first.session_id, on_busy="interrupt")
    work = await ada.work(first.session_id)
    expect(
        [(each.kind, each.run_id) for each in work.commands],
        [
            ("user_message", first.run_id),
            ("user_message", second.run_id),
            ("cancel", first.run_id),
            ("user_message", third.run_id),
        ],
    )
    expect([run.wants_cancel for run in work.open_runs], [True, True, False])


async def sixteen_runs_may_wait(store: Store) -> None:
    """The seventeenth that would wait is refused, and nothing of it is stored."""
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    for _ in range(16):
        await ada.send(first.session_id)
    for on_busy in ("enqueue", "interrupt"):
        with expect_raises(SessionBusy):
            await ada.send(first.session_id, on_busy=on_busy)
    work = await ada.work(first.session_id)
    expect((len(work.open_runs), len(work.commands)), (17, 17))
    expect(any(run.wants_cancel for run in work.open_runs), False)


async def a_repeat_under_a_key_is_the_same_run(store: Store) -> None:
    """A key comes back to the run of the first message; with another body it is refused."""
    ada = await StoreUser.join(store)
    await StoreUser.join(store, "bob")
    first = await ada.send("s", create=NEW, key=("key", "hash"))
    again = await ada.send("t", create=NEW, key=("key", "hash"))
    expect(again, attrs.evolve(first, is_repeat=True))
    await ada.answer(first, "answer")
    later = await ada.send("s", key=("key", "hash"))
    expect((later.run_id, later.after_seq, later.is_repeat), (first.run_id, 0, True))
    with expect_raises(IdempotencyConflict):
        await ada.send("s", key=("key", "other hash"))
    expect(await store.get_session("ada", "t"), None)
    await store.delete_session("ada", "s", "stop")
    with expect_raises(NotFound):
        await ada.send("s", create=NEW, key=("key", "hash"))


# --- cancelling -----------------------------------------------------------------------


async def a_cancel_says_what_it_found(store: Store) -> None:
    """Idle, waiting, running and ended runs are cancelled each in their own way."""
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    second = await ada.send(first.session_id)
    await ada.write(first.session_id)

    waiting = await ada.cancel(first.session_id, second.run_id)
    expect(waiting.state, "not_started")
    expect(waiting.receipt, {"run_id": second.run_id, "started": False, "outcome": "cancelled"})
    expect((await ada.cancel(first.session_id, second.run_id)).receipt, waiting.receipt)

    running = await ada.cancel(first.session_id)
    expect((running.state, running.run_id, running.receipt), ("pending", first.run_id, None))
    expect(await ada.cancel(first.session_id, first.run_id), running)
    await store.mark_written(str(running.command_id), ada.link)
    receipt: JsonObject = {"run_id": first.run_id, "outcome": "cancelled", "seconds": 0.5}
    result = await store.commit_intake(
        ada.link,
        [
            await ada.events(first, started(first), cancelled(first)),
            CancelAnswered(
                session_id=first.session_id,
                command_id=str(running.command_id),
                run_id=first.run_id,
                receipt=receipt,
            ),
        ],
    )
    expect(result.done_ids, (running.command_id,))
    ended = await ada.cancel(first.session_id, first.run_id)
    expect((ended.state, ended.receipt), ("ended", receipt))

    await ada.write(first.session_id)
    await ada.say(second, started(second), completed(second, "too late"))
    idle = await ada.cancel(first.session_id)
    expect((idle.state, idle.receipt), ("idle", {"run_id": None, "already": True}))


async def a_cancel_of_what_ended_by_itself_says_so(store: Store) -> None:
    """There is no receipt where nothing was cancelled."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.answer(accepted, "answer")
    asked = await ada.cancel(accepted.session_id, accepted.run_id)
    expect(asked.state, "ended")
    expect(asked.receipt, {"run_id": accepted.run_id, "outcome": "completed", "already": True})


# --- reading --------------------------------------------------------------------------


async def history_ends_with_the_message_in_question(store: Store) -> None:
    """It is in the order of the runs, and as long as fits."""
    ada = await StoreUser.join(store)
    first = await ada.open_session("one")
    second = await ada.send(first.session_id, "two")
    await ada.send(first.session_id, "three")
    await ada.answer(first, "ONE")
    history = await store.read_history(first.session_id, second.run_id, 10_000)
    expect(
        [(each["role"], each["content"]) for each in history],
        [("user", "one"), ("assistant", "ONE"), ("user", "two")],
    )
    short = await store.read_history(first.session_id, second.run_id, 80)
    expect([each["content"] for each in short], ["ONE", "two"])


async def pages_go_on_where_the_last_one_ended(store: Store) -> None:
    """Messages and sessions are paged by cursors, and strange cursors are refused."""
    ada = await StoreUser.join(store)
    first = await ada.open_session("0")
    for number in range(1, 5):
        await ada.send(first.session_id, str(number))
    for _ in range(2):
        await ada.open_session()
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        messages = await store.list_messages("ada", first.session_id, cursor, 2)
        seen = [each.content for each in messages.messages] + seen
        cursor = messages.next_cursor
    expect((seen, cursor), (["0", "1", "2", "3", "4"], None))
    sessions = await store.list_sessions("ada", None, 2)
    rest = await store.list_sessions("ada", sessions.next_cursor, 2)
    found = [session.id for session in (*sessions.sessions, *rest.sessions)]
    expect((len(set(found)), rest.next_cursor), (3, None))
    for strange in ("?", "e30", str(sessions.next_cursor)):
        with expect_raises(BadCursor):
            await store.list_messages("ada", first.session_id, strange, 2)


async def a_reader_can_join_where_messages_end(store: Store) -> None:
    """``last_event_id`` and the state for a resync name an event of the term it has."""
    ada = await StoreUser.join(store)
    first = await ada.open_session("one")
    page = await store.list_messages("ada", first.session_id, None, 10)
    expect(page.last_event_id, "1-0")
    await ada.answer(first, "ONE")
    second = await ada.send(first.session_id, "two")
    await ada.write(first.session_id)
    call = ToolCallStart(call_id="c", tool_name="shell", arguments={})
    await ada.say(second, started(second, "two"), TextChunk(content="TW"), call)
    page = await store.list_messages("ada", first.session_id, None, 10)
    expect(page.last_event_id, "1-3")
    view = await store.resync_view(first.session_id, 10_000)
    expect(view and (view.term, view.last_seq, view.truncated), (1, 6, False))
    expect(
        view and view.run,
        {
            "run_id": second.run_id,
            "message_id": second.message_id,
            "text": "TW",
            "open_calls": [{"call_id": "c", "tool_name": "shell"}],
        },
    )
    expect(view and [each.content for each in view.messages], ["one", "ONE", "two"])
    await ada.say(second, completed(second))
    await store.lose_session(first.session_id, code="INTERRUPTED", message="lost")
    page = await store.list_messages("ada", first.session_id, None, 10)
    expect(page.last_event_id, "1-7")
    expect(await store.tail_start(first.session_id), (2, 7))
    expect([await store.term_end(first.session_id, term) for term in (1, 2)], [7, 0])
    view = await store.resync_view(first.session_id, 10_000)
    expect(view and (view.term, view.last_seq, view.run), (1, 7, None))
    expect(await store.resync_view("none", 10_000), None)
    expect(await store.tail_start("none"), None)


async def events_are_read_in_pieces(store: Store) -> None:
    """At least one at a time, then as many as fit."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.answer(accepted, "x" * 100, "y" * 100)
    (only,) = await store.read_events(accepted.session_id, 1, 1)
    expect((only.seq, only.type), (2, "text_chunk"))
    size = len(only.data.encode())
    pair = await store.read_events(accepted.session_id, 1, 2 * size)
    expect([event.seq for event in pair], [2, 3])
    expect(await store.read_events(accepted.session_id, 4, 1), ())


# --- deleting -------------------------------------------------------------------------


async def a_deleted_session_is_stopped_in_its_vm(store: Store) -> None:
    """Its rows go, but for the command that stops it, which is delivered and answered."""
    ada = await StoreUser.join(store)
    held, free = await ada.open_session(), await ada.open_session()
    await ada.write(held.session_id)
    before = await store.get_session("ada", held.session_id)
    expect(await store.delete_session("ada", held.session_id, "stop"), (before, "stop"))
    deleted = await store.delete_session("ada", free.session_id, "unused")
    expect(deleted and deleted[1], None)
    expect(await store.get_session("ada", held.session_id), None)
    expect(await store.get_run(held.run_id), None)
    expect(await store.sessions_with_work("ada"), (held.session_id,))
    work = await ada.work(held.session_id)
    expect([(each.id, each.kind) for each in work.commands], [("stop", "stop_session")])
    expect(
        (work.session.user_id, work.session.term, work.session.holder_vm, work.open_runs),
        ("ada", 1, ada.link.vm_id, ()),
    )
    await store.mark_written("stop", ada.link)
    answer = CancelAnswered(
        session_id=held.session_id, command_id="stop", run_id=held.run_id, receipt={}
    )
    expect((await store.commit_intake(ada.link, [answer])).done_ids, ("stop",))
    expect(await store.session_work(held.session_id), None)
    expect(await store.sessions_with_work("ada"), ())


CONVERSATION_CHECKS: Final[tuple[StoreCheck, ...]] = (
    a_message_is_stored_with_its_session_run_and_command,
    what_is_not_the_users_is_not_found,
    a_busy_session_does_as_it_is_told,
    sixteen_runs_may_wait,
    a_repeat_under_a_key_is_the_same_run,
    a_cancel_says_what_it_found,
    a_cancel_of_what_ended_by_itself_says_so,
    history_ends_with_the_message_in_question,
    pages_go_on_where_the_last_one_ended,
    a_reader_can_join_where_messages_end,
    events_are_read_in_pieces,
    a_deleted_session_is_stopped_in_its_vm,
)
"""The checks of this file."""
