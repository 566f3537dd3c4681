"""Which tails a relay keeps in memory, and whom it tells what."""

from __future__ import annotations

import gc

import pytest
import trio
from relay_kit import SESSION, Kit, event, failing, loss
from trio.testing import wait_all_tasks_blocked

from semibot.errors import DeadlineExceeded, NotFound, StoreError
from semibot.host.tail import KEPT_BYTES, Tail


@pytest.fixture
def kit():
    return Kit()


# --- loading --------------------------------------------------------------------------


async def test_a_tail_begins_at_the_committed_end(kit):
    kit.store.add(event(1), event(2, term=2))
    tail = await kit.relay.tail(SESSION)
    assert (tail.term, tail.committed_seq, tail.published_seq, tail.received_seq) == (2, 2, 2, 2)
    assert kit.relay.loaded(SESSION) is tail
    assert await kit.relay.tail(SESSION) is tail
    assert kit.store.calls == ["tail_start"]


async def test_those_who_want_a_tail_at_once_get_the_same(kit):
    tails = []

    async def get() -> None:
        tails.append(await kit.relay.tail(SESSION))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(get)
    assert len(set(map(id, tails))) == 1
    assert kit.store.calls == ["tail_start"]


async def test_if_the_one_who_loads_a_tail_is_cancelled_the_next_one_does_it(kit):
    tails: list[Tail] = []
    kit.store.gate = trio.Event()
    first = trio.CancelScope()

    async def get(scope: trio.CancelScope) -> None:
        with scope:
            tails.append(await kit.relay.tail(SESSION))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get, first)
        await wait_all_tasks_blocked()
        nursery.start_soon(get, trio.CancelScope())
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        kit.store.gate.set()
    assert tails == [kit.relay.loaded(SESSION)]
    assert kit.store.calls == ["tail_start", "tail_start"]


async def test_a_session_that_does_not_exist_is_not_found(kit):
    for opening in (
        kit.relay.tail("nobody"),
        kit.relay.open_reader("nobody", last_event_id=None),
        kit.relay.open_run_reader("nobody", "r1", 0),
    ):
        with pytest.raises(NotFound):
            await opening
    assert kit.relay.loaded("nobody") is None


async def test_a_store_that_fails_leaves_nothing_behind(kit):
    kit.store.failure = failing()
    with pytest.raises(StoreError):
        await kit.relay.tail(SESSION)
    kit.store.failure = None
    await kit.relay.tail(SESSION)


async def test_loading_is_bounded(kit, autojump_clock):
    kit.store.gate = trio.Event()
    with pytest.raises(DeadlineExceeded, match=r"store\.commit"):
        await kit.relay.tail(SESSION)


async def test_a_loss_while_a_tail_is_loaded_is_not_missed(kit):
    kit.store.add(event(1))
    kit.store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kit.relay.tail, SESSION)
        await wait_all_tasks_blocked()
        await kit.lose(event(2, term=2))
        kit.store.gate.set()
    tail = kit.relay.loaded(SESSION)
    assert tail is not None
    assert (tail.term, tail.committed_seq) == (2, 2)


async def test_a_session_that_is_deleted_while_its_tail_is_loaded_is_not_found(kit):
    kit.store.gate = trio.Event()
    with pytest.RaisesGroup(NotFound):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kit.relay.tail, SESSION)
            await wait_all_tasks_blocked()
            kit.relay.forget(SESSION)
            kit.store.gate.set()


# --- keeping --------------------------------------------------------------------------


async def test_of_tails_that_nobody_needs_the_longest_unused_go(kit):
    kit.restart(max_idle_tails=2)
    for session_id in ("s1", "s2", "s3", "s2", "s4"):
        await kit.relay.tail(session_id)
    gc.collect()
    loaded = [each for each in ("s1", "s2", "s3", "s4") if kit.relay.loaded(each)]
    assert loaded == ["s2", "s4"]


async def test_tails_with_readers_or_uncommitted_events_stay(kit):
    kit.restart(max_idle_tails=0)
    await kit.receive(event(1))
    reader = await kit.relay.open_reader("s2", last_event_id=None)
    for number in range(3, 9):
        await kit.relay.tail(f"s{number}")
    gc.collect()
    assert kit.relay.loaded("s1") is not None
    assert kit.relay.loaded("s2") is not None
    assert kit.relay.loaded("s7") is None
    await kit.commit(event(1))
    reader.close()
    del reader
    await kit.relay.tail("s9")
    gc.collect()
    assert (kit.relay.loaded("s1"), kit.relay.loaded("s2")) == (None, None)


async def test_a_tail_that_went_while_somebody_has_it_is_still_the_only_one(kit):
    kit.restart(max_idle_tails=0)
    tail = await kit.relay.tail("s1")
    await kit.relay.tail("s2")
    tail.receive(event(1), waits_for_commit=False)
    await kit.relay.tail("s3")
    del tail
    gc.collect()
    assert (await kit.relay.tail("s1")).received_seq == 1
    assert kit.store.calls == ["tail_start"] * 3


async def test_memory_is_bounded_over_all_sessions(kit):
    kit.restart(max_committed_bytes=2 * KEPT_BYTES)
    readers = []
    for number in range(1, 11):
        tail = await kit.relay.tail(f"s{number}")
        readers.append(await kit.relay.open_run_reader(f"s{number}", "r1", 0))
        for seq in range(1, 31):
            tail.receive(event(seq, text="x" * (KEPT_BYTES // 32)), waits_for_commit=False)
        tail.commit(30)
        assert sum(kit.relay.buffered().values()) <= 2 * KEPT_BYTES
    assert kit.relay.buffered_bytes("s1") == 0
    assert kit.relay.buffered_bytes("s10") > KEPT_BYTES // 2
    assert kit.relay.buffered_bytes("s11") == 0
    assert {each.end_reason for each in readers} == {None}
    assert kit.relay.reader_count == 10


async def test_one_session_alone_may_have_to_give_its_memory_up(kit):
    kit.restart(max_committed_bytes=100)
    await kit.receive(event(1), event(2))
    assert kit.relay.buffered_bytes(SESSION) > 100
    await kit.commit(event(1), event(2))
    assert kit.relay.buffered() == {}
    client = await kit.reader("1-0")
    await client.step()
    assert client.ids == ["1-1", "1-2"]


# --- telling --------------------------------------------------------------------------


async def test_sessions_that_are_not_loaded_need_not_be_told_anything(kit):
    kit.relay.publish_loss(loss(0))
    kit.relay.forget(SESSION)
    kit.relay.break_off([SESSION])
    assert kit.relay.loaded(SESSION) is None


async def test_after_a_failed_commit_the_store_is_asked_anew(kit):
    await kit.receive(event(1), event(2))
    kit.store.add(event(1))  # as it turns out, this was committed
    kit.relay.break_off([SESSION])
    tail = await kit.relay.tail(SESSION)
    assert (tail.committed_seq, tail.received_seq) == (1, 1)


async def test_a_host_that_stops_ends_all_readers_and_those_to_come(kit):
    client = await kit.reader("1-0")
    kit.relay.close()
    later = await kit.run_reader()
    for each in (client, later):
        assert await each.step() is None
        assert each.reader.end_reason == "closing"


async def test_who_watches_a_run(kit):
    mine = await kit.run_reader("r1")
    assert not kit.relay.is_watched(SESSION, "r1", mine.reader)
    other = await kit.run_reader("r2")
    assert not kit.relay.is_watched(SESSION, "r1", mine.reader)
    same = await kit.run_reader("r1")
    assert kit.relay.is_watched(SESSION, "r1", mine.reader)
    same.reader.close()
    assert not kit.relay.is_watched(SESSION, "r1", mine.reader)
    page = await kit.reader(None)
    assert kit.relay.is_watched(SESSION, "r1", mine.reader)
    page.reader.close()
    await kit.receive(event(1, type="execution_complete"))
    ended = await kit.run_reader("r1")
    await ended.step()
    assert ended.reader.end_reason == "run_ended"
    assert not kit.relay.is_watched(SESSION, "r1", mine.reader)
    assert other.reader.end_reason is None


async def test_nobody_watches_a_session_that_is_not_loaded(kit):
    client = await kit.run_reader("r1")
    kit.relay.forget(SESSION)
    assert not kit.relay.is_watched(SESSION, "r1", client.reader)
