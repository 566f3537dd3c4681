"""What is left when a VM, or one session of it, is lost."""

from __future__ import annotations

import pytest

from semibot.store.base import SessionLoss, Store, VmStatus
from semibot.testing.store_user import StoreUser, completed, started
from semibot.wire.codec import load_json
from semibot.wire.events import TextChunk


async def lose(
    store: Store, ada: StoreUser, status: VmStatus = "disconnected"
) -> tuple[SessionLoss, ...]:
    return await store.lose_vm(
        ada.link.vm_id, status=status, last_error=None, code="INTERRUPTED", message="it is gone"
    )


async def test_an_interrupted_run_says_why_and_keeps_what_was_said(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session("question")
    await ada.write(accepted.session_id)
    await ada.say(accepted, started(accepted), TextChunk(content="half"))
    (loss,) = await lose(store, ada)
    assert [load_json(event.data) for event in loss.events] == [
        {
            "type": "execution_error",
            "run_id": accepted.run_id,
            "code": "INTERRUPTED",
            "error": "it is gone",
            "retryable": True,
        }
    ]
    page = await store.list_messages("ada", accepted.session_id, None, 1)
    assert page.messages[0].content == "half"
    assert page.messages[0].metadata["outcome"] == "interrupted"
    assert await store.read_events(accepted.session_id, 2, 1000) == loss.events
    assert loss.user_id == "ada"


async def test_a_run_that_had_not_begun_begins_with_its_question(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session("question")
    await ada.write(accepted.session_id)
    (loss,) = await lose(store, ada)
    assert load_json(loss.events[0].data) == {
        "type": "run_started",
        "run_id": accepted.run_id,
        "message_id": accepted.message_id,
        "message": "question",
    }
    run = await store.get_run(accepted.run_id)
    assert run
    assert (run.first_seq, run.last_seq, run.receipt) == (1, 2, None)


async def test_an_idle_session_loses_its_holder_without_a_word(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.answer(accepted)
    (loss,) = await lose(store, ada)
    assert (loss.term, loss.base_seq, loss.events, loss.ended_runs) == (2, 2, (), ())
    session = await store.get_session("ada", accepted.session_id)
    assert session
    assert (session.term, session.holder_vm, session.holder_boot) == (2, None, None)


async def test_what_was_answered_as_never_started_ends_as_cancelled(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    asked = await ada.cancel(accepted.session_id)
    await ada.write(accepted.session_id)
    (loss,) = await lose(store, ada)
    assert load_json(loss.events[1].data) == {
        "type": "execution_complete",
        "run_id": accepted.run_id,
        "cancelled": True,
    }
    run = await store.get_run(accepted.run_id)
    assert run
    assert (run.outcome, run.receipt) == ("cancelled", asked.receipt)


async def test_a_cancel_that_no_vm_answers_is_answered(store: Store) -> None:
    """Also one of a run that had ended, and whose receipt was still to come."""
    ada = await StoreUser.join(store)
    ended, running, quiet = [await ada.open_session() for _ in range(3)]
    for accepted in (ended, running, quiet):
        await ada.write(accepted.session_id)
    for accepted in (ended, running):
        await ada.cancel(accepted.session_id)
    await ada.say(ended, started(ended), completed(ended))
    await lose(store, ada)
    receipts = []
    for accepted in (ended, running, quiet):
        run = await store.get_run(accepted.run_id)
        assert run
        receipts.append(run.receipt)
    assert receipts == [
        {"run_id": ended.run_id, "outcome": "completed", "vm_lost": True},
        {"run_id": running.run_id, "outcome": "interrupted", "vm_lost": True},
        None,
    ]
    assert await store.sessions_with_work("ada") == ()


async def test_a_receipt_is_not_made_up_for_a_cancel_that_needed_none(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.cancel(accepted.session_id)
    await ada.write(accepted.session_id)
    await ada.say(accepted, started(accepted), completed(accepted))
    await lose(store, ada)
    run = await store.get_run(accepted.run_id)
    assert run
    assert run.receipt == {"run_id": accepted.run_id, "started": False, "outcome": "cancelled"}


@pytest.mark.parametrize("status", ["failed", "terminated"])
async def test_a_vm_that_is_history_is_not_lost_again(store: Store, status: VmStatus) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    assert len(await lose(store, ada, status)) == 1
    assert await lose(store, ada, status) == ()
    assert await store.active_vms() == ()
    newest = await store.newest_vm("ada")
    assert newest
    assert (newest.status, newest.epoch, newest.boot_hash) == (status, 2, "boot-1")


async def test_nothing_is_lost_with_a_vm_that_does_not_exist(store: Store) -> None:
    ada = await StoreUser.join(store)
    assert await store.lose_vm("none", status="failed", last_error=None, code="X", message="") == ()
    assert await store.lose_session("none", code="X", message="") is None
    assert await store.end_unwritten_runs("none", outcome="cancelled") is None
    assert await ada.store.newest_vm("ada") is not None


async def test_losing_one_users_vm_leaves_other_users_alone(store: Store) -> None:
    ada = await StoreUser.join(store)
    bob = await StoreUser.join(store, "bob")
    mine, theirs = await ada.open_session(), await bob.open_session()
    await ada.write(mine.session_id)
    await bob.write(theirs.session_id)
    assert [loss.session_id for loss in await lose(store, ada)] == [mine.session_id]
    assert (await bob.say(theirs, started(theirs))).committed == {theirs.session_id: 1}
    assert len((await bob.work(theirs.session_id)).commands) == 1


async def test_several_written_runs_end_in_order(store: Store) -> None:
    ada = await StoreUser.join(store, level=1)
    first = await ada.open_session("one")
    second = await ada.send(first.session_id, "two")
    for _ in range(2):
        await ada.write(first.session_id)
    (loss,) = await lose(store, ada)
    assert loss.ended_runs == (first.run_id, second.run_id)
    assert [event.type for event in loss.events] == ["run_started", "execution_error"] * 2
    assert [event.seq for event in loss.events] == [1, 2, 3, 4]


# --- runs that no VM got --------------------------------------------------------------


async def test_a_level_2_holder_makes_its_events_itself(store: Store) -> None:
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    await ada.answer(first)
    second = await ada.send(first.session_id)
    await ada.cancel(first.session_id, second.run_id)
    assert await store.end_unwritten_runs(first.session_id, outcome="cancelled") is None
    assert len((await ada.work(first.session_id)).open_runs) == 1


async def test_a_level_1_holder_gets_no_cancelled_run(store: Store) -> None:
    ada = await StoreUser.join(store, level=1)
    first = await ada.open_session()
    await ada.answer(first)
    await ada.send(first.session_id)
    await ada.send(first.session_id, on_busy="interrupt")
    loss = await store.end_unwritten_runs(first.session_id, outcome="interrupted")
    assert loss
    assert (loss.term, loss.base_seq, loss.user_id) == (1, 2, "ada")
    assert [event.type for event in loss.events] == ["run_started", "execution_error"]
    run = await store.get_run(loss.ended_runs[0])
    assert run
    assert run.outcome == "interrupted"
    assert len((await ada.work(first.session_id)).commands) == 1


async def test_every_cancelled_run_of_a_free_session_is_ended(store: Store) -> None:
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    second = await ada.send(first.session_id)
    for accepted in (first, second):
        await ada.cancel(first.session_id, accepted.run_id)
    loss = await store.end_unwritten_runs(first.session_id, outcome="cancelled")
    assert loss
    assert loss.ended_runs == (first.run_id, second.run_id)
    assert await store.sessions_with_work("ada") == ()
    page = await store.list_messages("ada", first.session_id, None, 10)
    assert [each.metadata.get("outcome") for each in page.messages] == [
        None,
        "cancelled",
        None,
        "cancelled",
    ]


async def test_a_run_that_nobody_cancelled_is_not_ended(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    assert await store.end_unwritten_runs(accepted.session_id, outcome="cancelled") is None
    assert await store.tail_start(accepted.session_id) == (1, 0)
