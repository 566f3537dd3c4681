"""What one reader is sent, in which order, and when."""

from __future__ import annotations

import json
import re

import attrs
import pytest
import trio
from relay_kit import SESSION, Client, Kit, event, failing, loss
from trio.testing import wait_all_tasks_blocked

from semibot.config import Deadlines
from semibot.host.tail import CHUNK_BYTES, KEPT_BYTES
from semibot.wire.sse import KEEPALIVE


@pytest.fixture
def kit():
    return Kit()


async def follow(nursery: trio.Nursery, client: Client) -> Client:
    nursery.start_soon(client.read_on)
    await wait_all_tasks_blocked()
    return client


async def test_the_first_chunk_says_when_to_come_back_and_does_not_wait(kit, autojump_clock):
    client = await kit.reader("1-0")
    assert re.fullmatch(rb"retry: ([12][0-9]{3}|3000)\n\n", await client.step())
    await kit.receive(event(1))
    assert (await client.step()).startswith(b"id: 1-1\nevent: message\ndata: {")
    assert trio.current_time() == 0


async def test_the_first_chunk_has_what_there_is(kit):
    await kit.receive(event(1), event(2))
    client = await kit.reader("1-0")
    assert (await client.step()).startswith(b"retry: ")
    assert client.ids == ["1-1", "1-2"]


async def test_a_reader_without_an_id_begins_with_the_state_and_goes_on_from_there(kit):
    kit.store.add(event(1), event(2))
    await kit.receive(event(3))
    client = await kit.reader(None)
    await client.step()
    await client.step()
    assert client.got == ["resync 1-2", "text_chunk 1-3"]
    body = json.loads(client.messages[0].data)
    assert client.messages[0].event == "message"
    assert body == {
        "type": "resync",
        "messages": [
            {
                "id": "m1",
                "run_id": "r1",
                "role": "user",
                "content": "[[1, 1], [1, 2]]",
                "metadata": {},
                "created_at": 7,
            }
        ],
        "run": None,
        "truncated": False,
    }


async def test_an_empty_session_has_a_state_as_well(kit):
    client = await kit.reader(None)
    await client.step()
    assert client.got == ["resync 1-0"]


async def test_a_reader_is_woken_once_for_all_events_that_come_together(kit):
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-0"))
        await kit.receive(*(event(seq) for seq in range(1, 101)))
        await wait_all_tasks_blocked()
        assert len(client.ids) == 100
        assert len(client.chunks) == 2
        nursery.cancel_scope.cancel()


async def test_what_waits_for_its_commit_is_not_seen_before(kit):
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-0"))
        ask = event(2, type="tool_auth_required")
        await kit.receive(event(1))
        await kit.receive(ask, waits=True)
        await kit.receive(event(3))
        await wait_all_tasks_blocked()
        assert client.ids == ["1-1"]
        await kit.commit(event(1), ask)
        await wait_all_tasks_blocked()
        assert client.ids == ["1-1", "1-2", "1-3"]
        nursery.cancel_scope.cancel()


# --- replay ---------------------------------------------------------------------------


async def test_what_is_no_longer_in_memory_is_read_from_the_store(kit):
    kit.store.add(event(1), event(2), event(3))
    await kit.receive(event(4))
    client = await kit.reader("1-1")
    await client.step()
    await client.step()
    assert client.ids == ["1-2", "1-3", "1-4"]
    assert kit.relay.events_forwarded == 3


async def test_a_long_past_comes_in_chunks(kit):
    kit.store.add(*(event(seq, text="x" * 9_000) for seq in range(1, 51)))
    await kit.receive(event(51))
    client = await kit.reader("1-0")
    while len(client.ids) < 51:
        assert len(await client.step()) <= CHUNK_BYTES + 100
    assert client.ids == [f"1-{seq}" for seq in range(1, 52)]


async def test_a_chunk_from_the_store_counts_what_is_sent_and_not_what_is_stored(kit):
    kit.store.add(*(event(seq, text="") for seq in range(1, 4001)))
    client = await kit.reader("1-0")
    while len(client.ids) < 4000:
        assert len(await client.step()) <= CHUNK_BYTES + 100
    assert client.ids == [f"1-{seq}" for seq in range(1, 4001)]


async def test_what_comes_while_the_store_is_read_follows_without_a_gap(kit):
    kit.store.add(event(1), event(2))
    client = await kit.reader("1-0")
    kit.store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        await follow(nursery, client)
        await kit.receive(event(3))
        await kit.commit(event(3))
        await kit.lose(event(4, term=2))
        kit.store.gate.set()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert client.ids == ["1-1", "1-2", "1-3", "2-4"]


async def test_an_id_of_an_older_term_that_exists_goes_on_into_the_next(kit):
    kit.store.add(event(1), event(2), event(3, term=2), event(4, term=3))
    client = await kit.reader("1-1")
    await client.step()
    assert client.ids == ["1-2", "2-3", "3-4"]


@pytest.mark.parametrize("term", [1, 2])
async def test_the_id_before_the_first_event_is_always_known(kit, term):
    kit.store.add(event(1), event(2, term=2))
    client = await kit.reader(f"{term}-0")
    await client.step()
    assert client.ids == ["1-1", "2-2"]


async def test_the_id_of_a_state_in_a_term_without_events_is_known(kit):
    kit.store.add(event(1))
    kit.store.term = 2
    first = await kit.reader(None)
    await first.step()
    assert first.ids == ["2-1"]
    await kit.lose(event(2, term=3), term=3)
    again = await kit.reader("2-1")
    await again.step()
    assert again.ids == ["3-2"]


@pytest.mark.parametrize("after", ["1-3", "1-7"])
async def test_an_id_above_the_end_of_its_older_term_gets_the_state(kit, after, autojump_clock):
    kit.store.add(event(1), event(2), event(3, term=2))
    client = await kit.reader(after)
    await client.step()
    assert client.got == ["resync 2-3"]
    assert trio.current_time() == 0


async def test_a_past_that_is_not_there_gets_the_state(kit):
    kit.store.add(event(1), event(2), event(3))
    client = await kit.reader("1-1")
    whole, kit.store.events = kit.store.events, kit.store.events[:1]
    kit.store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        await follow(nursery, client)
        kit.store.events = whole
        kit.store.gate.set()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert client.got == ["resync 1-3"]


# --- ids that are not known yet -------------------------------------------------------


async def test_an_id_above_what_is_known_is_held_until_it_is(kit, autojump_clock):
    kit.store.add(event(1))
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-3"))
        await kit.receive(event(2), event(3))
        await wait_all_tasks_blocked()
        assert client.ids == []
        await kit.receive(event(4))
        await wait_all_tasks_blocked()
        assert client.ids == ["1-4"]
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


async def test_an_id_that_nobody_knows_gets_the_state_once_the_vm_has_settled(kit, autojump_clock):
    kit.store.add(event(1))
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-3"))
        await kit.receive(event(2))
        (await kit.relay.tail(SESSION)).settle()
        await wait_all_tasks_blocked()
        assert client.ids == ["1-1", "1-2"]
        assert client.got[0] == "resync 1-1"
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("after", ["1-3", "2-1", "999999999-999999999999999999"])
async def test_an_id_that_nobody_knows_gets_the_state_after_ten_seconds(kit, after, autojump_clock):
    kit.store.add(event(1))
    client = await kit.reader(after)
    await client.step()
    await client.step()
    assert client.got == ["resync 1-1"]
    assert trio.current_time() == 10


async def test_an_id_is_held_with_keepalives(autojump_clock):
    kit = Kit(deadlines=Deadlines(http_keepalive=4.0))
    client = await kit.reader("1-3")
    times = []
    for _ in range(4):
        await client.step()
        times.append(trio.current_time())
    assert client.chunks[1:3] == [KEEPALIVE, KEEPALIVE]
    assert client.got == ["resync 1-0"]
    assert times == [0, 4, 8, 10]


async def test_after_an_id_was_held_keepalives_come_in_time(kit, autojump_clock):
    client, other = await kit.reader("1-3"), await kit.reader("1-0")
    await client.step()
    await other.step()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.step)
        await trio.sleep(9)
        nursery.start_soon(other.step)
        await wait_all_tasks_blocked()
        await kit.commit(event(1), event(2), event(3))
    assert trio.current_time() == 15
    assert (client.chunks[1:], other.ids) == ([KEEPALIVE], ["1-1", "1-2", "1-3"])


async def test_a_loss_ends_the_hold_of_an_id_above_its_base(kit, autojump_clock):
    kit.store.add(event(1))
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-3"))
        await kit.lose(event(2, term=2))
        await wait_all_tasks_blocked()
        assert client.got == ["resync 2-2"]
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


async def test_a_loss_makes_a_held_id_known(kit, autojump_clock):
    kit.store.add(event(1))
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-2"))
        kit.store.add(event(2))  # by the loss's transaction
        await kit.lose(event(3, term=2))
        await wait_all_tasks_blocked()
        assert client.ids == ["2-3"]
        nursery.cancel_scope.cancel()


async def test_a_state_that_is_newer_than_the_tail_waits_for_it(kit, autojump_clock):
    tail = await kit.relay.tail(SESSION)
    tail.settle()
    await kit.receive(event(1), event(2))
    kit.store.add(event(1), event(2, term=2, type="execution_error"))
    client = await kit.reader(None)
    await client.step()
    assert client.got == ["resync 2-2"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.step)
        await wait_all_tasks_blocked()
        kit.relay.publish_loss(loss(1, kit.store.events[1]))
        await kit.receive(event(3, term=2))
    assert client.got == ["resync 2-2", "text_chunk 2-3"]
    assert trio.current_time() == 0


# --- losses and failures --------------------------------------------------------------


async def test_a_live_reader_that_has_seen_too_much_gets_the_state(kit):
    kit.store.add(event(1))
    async with trio.open_nursery() as nursery:
        ahead = await follow(nursery, await kit.reader("1-1"))
        await kit.receive(event(2), event(3))
        behind = await kit.reader("1-1")
        await wait_all_tasks_blocked()
        await kit.lose(event(2, term=2, type="execution_error"))
        await follow(nursery, behind)
        await kit.receive(event(3, term=2))
        await wait_all_tasks_blocked()
        assert ahead.got == [
            "text_chunk 1-2",
            "text_chunk 1-3",
            "resync 2-2",
            "text_chunk 2-3",
        ]
        assert behind.got == ["execution_error 2-2", "text_chunk 2-3"]
        nursery.cancel_scope.cancel()


async def test_the_store_is_not_ahead_of_what_the_tail_says(kit):
    kit.store.add(event(1), event(2))
    await kit.receive(event(3), event(4))
    kit.store.add(event(3, term=2, type="execution_error"))  # a loss that is not told yet
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-0"))
        assert client.ids == ["1-1", "1-2", "1-3", "1-4"]
        kit.relay.publish_loss(loss(2, kit.store.events[2]))
        await wait_all_tasks_blocked()
        assert client.got[4:] == ["resync 2-3"]
        nursery.cancel_scope.cancel()


async def test_a_loss_while_an_older_id_is_looked_up_is_not_missed(kit):
    kit.store.add(event(1), event(2, term=2))
    client = await kit.reader("1-1")
    kit.store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        await follow(nursery, client)
        await kit.lose(event(3, term=3), term=3)
        kit.store.gate.set()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert client.ids == ["2-2", "3-3"]


async def test_after_a_failed_commit_readers_come_back_and_miss_nothing(kit, autojump_clock):
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-0"))
        await kit.receive(event(1), event(2))
        await wait_all_tasks_blocked()
        kit.relay.break_off([SESSION, "unknown"])
        await wait_all_tasks_blocked()
        assert (client.has_ended, client.reader.end_reason) == (True, "store_failed")
        again = await follow(nursery, await kit.reader(client.ids[-1]))
        await kit.receive(event(1), event(2), event(3))
        await wait_all_tasks_blocked()
        assert again.ids == ["1-3"]
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


async def test_a_reader_ends_when_the_store_cannot_be_read(kit):
    kit.store.add(event(1))
    client = await kit.reader("1-0")
    kit.store.failure = failing()
    assert await client.step() is None
    assert client.reader.end_reason == "store_failed"


async def test_a_store_that_does_not_answer_ends_the_reader(kit, autojump_clock):
    client = await kit.reader(None)
    kit.store.gate = trio.Event()
    assert await client.step() is None
    assert client.reader.end_reason == "store_failed"
    assert trio.current_time() == kit.deadlines.store_commit


async def test_a_deleted_session_ends_its_readers(kit):
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-0"))
        kit.relay.forget(SESSION)
    assert client.reader.end_reason == "deleted"


async def test_a_session_that_is_deleted_while_its_state_is_read_ends_the_reader(kit):
    client = await kit.reader(None)
    kit.store.exists = False
    assert await client.step() is None
    assert client.reader.end_reason == "deleted"


@pytest.mark.parametrize("after", ["1-0", None])
async def test_what_ends_a_reader_while_it_reads_the_store_ends_it_at_once(kit, after):
    kit.store.add(event(1))
    client = await kit.reader(after)
    kit.store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        await follow(nursery, client)
        kit.relay.close()
        kit.store.gate.set()
    assert client.reader.end_reason == "closing"


@pytest.mark.parametrize("run_id", [None, "r2"])
async def test_when_the_host_stops_a_reader_still_gets_what_was_said(kit, run_id):
    client = await (kit.reader("1-0") if run_id is None else kit.run_reader(run_id, 0))
    assert await client.step()  # the greeting
    for seq in range(1, 4):
        await kit.receive(event(seq, run_id="r1" if seq < 3 else "r2"))
    kit.relay.close()
    last = await client.step()
    assert last is not None
    assert (b"id: 1-3" in last, b"id: 1-1" in last) == (True, run_id is None)
    assert await client.step() is None
    assert client.reader.end_reason == "closing"


async def test_a_closed_reader_says_nothing_more(kit):
    await kit.receive(event(1))
    client = await kit.reader("1-0")
    with client.reader:
        assert kit.relay.reader_count == 1
    assert kit.relay.reader_count == 0
    assert await client.step() is None
    assert client.reader.end_reason is None


# --- one run --------------------------------------------------------------------------


def run_of(run_id: str, first: int, *, term: int = 1):
    return [
        event(first, run_id=run_id, term=term, type="run_started"),
        event(first + 1, run_id=run_id, term=term),
        event(first + 2, run_id=run_id, term=term, type="execution_complete"),
    ]


async def test_a_reader_of_one_run_shows_that_run_only_and_ends_with_it(kit):
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.run_reader("r2"))
        await kit.receive(*run_of("r1", 1), *run_of("r2", 4), *run_of("r3", 7))
    assert client.got == ["run_started 1-4", "text_chunk 1-5", "execution_complete 1-6"]
    assert client.reader.end_reason == "run_ended"


async def test_a_reader_of_a_run_that_has_ended_finds_it_in_the_store(kit):
    kit.store.add(*run_of("r1", 1), *run_of("r2", 4), *run_of("r3", 7))
    client = await kit.run_reader("r2", after_seq=1)
    await client.read_on()
    assert client.ids == ["1-4", "1-5", "1-6"]
    assert kit.relay.events_forwarded == 3


async def test_a_reader_of_one_run_passes_a_long_past_of_others(kit):
    events = [event(seq, run_id="r1", text="x" * 9_000) for seq in range(1, 31)]
    kit.store.add(*events)
    await kit.receive(*(event(seq, run_id="r1", text="x" * 9_000) for seq in range(31, 61)))
    await kit.receive(*run_of("r2", 61))
    client = await kit.run_reader("r2")
    await client.read_on()
    assert client.ids == ["1-61", "1-62", "1-63"]


async def test_a_reader_whose_run_waits_for_others_gets_keepalives(kit, autojump_clock):
    client = await kit.run_reader("r2")
    await client.step()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.step)
        for seq in range(1, 20):
            await trio.sleep(0.9)
            await kit.receive(event(seq))
    assert client.chunks[1:] == [KEEPALIVE]


async def test_a_reader_of_one_run_sees_its_end_after_a_loss(kit):
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.run_reader("r1"))
        started = event(1, type="run_started")
        await kit.receive(started, event(2), event(3))
        await kit.commit(started)
        await wait_all_tasks_blocked()
        end = event(2, term=2, type="execution_error")
        await kit.lose(end, event(3, term=2, run_id="r2", type="execution_error"))
    assert client.got == [
        "run_started 1-1",
        "text_chunk 1-2",
        "text_chunk 1-3",
        "resync 2-3",
        "execution_error 2-2",
    ]
    assert client.reader.end_reason == "run_ended"


async def test_a_reader_of_one_run_that_has_seen_nothing_void_gets_no_state(kit):
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.run_reader("r2"))
        await kit.receive(event(1), event(2))
        await wait_all_tasks_blocked()
        await kit.lose(*run_of("r2", 1, term=2))
    assert client.ids == ["2-1", "2-2", "2-3"]


async def test_a_reader_of_one_run_comes_to_its_end_over_a_past_that_is_not_there(kit):
    kit.store.add(event(1), event(2))
    client = await kit.run_reader("r1", after_seq=0)
    kit.store.events = []
    await kit.receive(event(3, type="execution_complete"))
    await client.read_on()
    assert client.got == ["resync 1-0", "execution_complete 1-3"]


async def test_a_reader_of_one_run_skips_a_hole_in_the_past(kit):
    kit.store.add(event(1), event(2), event(3, type="execution_complete"))
    client = await kit.run_reader("r1", after_seq=0)
    del kit.store.events[0]
    await client.step()
    await client.step()
    assert client.got == ["resync 1-2", "text_chunk 1-2", "execution_complete 1-3"]


# --- keepalives -----------------------------------------------------------------------


async def test_an_idle_reader_gets_a_keepalive_every_fifteen_seconds(kit, autojump_clock):
    client = await kit.reader("1-0")
    await client.step()
    for expected in (15, 30, 45):
        assert await client.step() == KEEPALIVE
        assert trio.current_time() == expected


async def test_a_keepalive_does_not_depend_on_those_who_have_left(kit, autojump_clock):
    """The first that waits has the timer for all; it goes, and the second comes to it."""
    readers = [await kit.relay.open_run_reader(f"s{n}", "r1", 0) for n in (2, 3, 4)]
    leave = trio.CancelScope()

    async def wait_cancelled() -> None:
        with leave:
            await readers[0].next_chunk()

    async with trio.open_nursery() as nursery:
        for reader in readers:
            await reader.next_chunk()
        nursery.start_soon(wait_cancelled)
        await wait_all_tasks_blocked()
        for reader in readers[1:]:
            nursery.start_soon(reader.next_chunk)
        await wait_all_tasks_blocked()
        leave.cancel()
        await wait_all_tasks_blocked()
        (await kit.relay.tail("s3")).receive(event(1), waits_for_commit=False)
    assert trio.current_time() == 15


async def test_every_reader_gets_its_keepalives_whoever_comes_and_goes(kit, autojump_clock):
    """Readers of many sessions, busy, idle and cancelled, around the one with the timer."""
    silences: dict[int, list[float]] = {}

    async def read(number: int, *, lifetime: float) -> None:
        session_id = f"s{number % 4}"
        reader = await kit.relay.open_run_reader(session_id, f"r{number % 2}", 0)
        silences[number] = []
        with trio.move_on_after(lifetime), reader:
            while True:
                began = trio.current_time()
                await reader.next_chunk()
                silences[number].append(trio.current_time() - began)
                await trio.sleep(number % 3)

    async def say() -> None:
        seq = 0
        while True:
            await trio.sleep(1.7)
            seq += 1
            for session_id in ("s0", "s1"):
                tail = await kit.relay.tail(session_id)
                tail.receive(event(seq, run_id=f"r{seq % 5 % 3}"), waits_for_commit=False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        async with trio.open_nursery() as readers:
            for number in range(24):
                lifetime = 13.0 + 5 * number if number % 3 else 200.0
                readers.start_soon(lambda n=number, t=lifetime: read(n, lifetime=t))
                await trio.sleep(0.3)
        nursery.cancel_scope.cancel()
    assert max(max(each) for each in silences.values() if each) < 15.001
    assert all(len(each) >= 11 for number, each in silences.items() if number % 3 == 0)


# --- cancellation and stalls ----------------------------------------------------------


@pytest.mark.parametrize("after", ["1-0", None, "1-3", "1-5"])
async def test_a_cancelled_call_loses_nothing(kit, after, autojump_clock):
    """Cancel the reader again and again, each time one step later."""
    kit.store.add(event(1), event(2))
    client = await kit.reader(after)
    for steps in range(12):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.read_some, 3)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        if steps == 3:
            await kit.receive(event(3), event(4))
            await kit.commit(event(3))
    await kit.receive(event(5))
    while client.ids[-1:] != ["1-5"]:
        await client.step()
        if after == "1-5":
            break
    text = b"".join(client.chunks)
    assert text.count(b"retry: ") == 1
    assert text.startswith(b"retry: ")
    seqs = [int(each.partition("-")[2]) for each in client.ids]
    first = {"1-0": 1, "1-3": 4, "1-5": 6}.get(after or "", seqs[0] if seqs else 0)
    assert seqs == list(range(first, 6))


async def test_a_reader_that_stands_still_costs_nothing_and_delays_nobody(kit):
    stalled = await kit.reader("1-0")
    await stalled.step()
    async with trio.open_nursery() as nursery:
        client = await follow(nursery, await kit.reader("1-0"))
        for first in range(1, 201, 10):
            events = [event(seq, text="x" * 100_000) for seq in range(first, first + 10)]
            await kit.receive(*events)
            await wait_all_tasks_blocked()
            assert len(client.ids) == first + 9  # at once, not when the other one reads
            await kit.commit(*events)
            assert kit.relay.buffered_bytes(SESSION) <= KEPT_BYTES
        nursery.cancel_scope.cancel()
    while len(stalled.ids) < 200:
        await stalled.step()
    assert stalled.ids == client.ids


async def test_deadlines_are_the_relays(autojump_clock):
    kit = Kit(deadlines=attrs.evolve(Deadlines(), http_keepalive=2.0))
    client = await kit.reader("1-0")
    await client.step()
    assert await client.step() == KEEPALIVE
    assert trio.current_time() == 2
