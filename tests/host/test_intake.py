"""What a link brings is committed in groups, and nothing before its commit is acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from link_kit import DEADLINES, open_plane
from trio.testing import MockClock

from semibot.errors import LinkFenced, StoreError
from semibot.host.intake import OVERHEAD, InputBudget, Intake, adopt_tail
from semibot.host.pace import BUSY, REST, WINDOW
from semibot.store.base import (
    CommandsDone,
    EventsIn,
    IntakeOp,
    IntakeResult,
    LinkRef,
    StoredEvent,
)

LINK = LinkRef(vm_id="vm", user_id="ann", epoch=1, boot_hash="b")


class Store:
    """Commits, waits or fails as it is told."""

    def __init__(self) -> None:
        self.commits: list[tuple[IntakeOp, ...]] = []
        self.error: Exception | None = None
        self.gate = trio.Event()
        self.gate.set()

    async def commit_intake(self, link: LinkRef, ops: Sequence[IntakeOp]) -> IntakeResult:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.commits.append(tuple(ops))
        seen = {op.session_id: op.events[-1].seq for op in ops if isinstance(op, EventsIn)}
        return IntakeResult(committed=seen, refused={}, done_ids=(), dropped=(), ended_runs=())


class Relay:
    def __init__(self) -> None:
        self.broken: list[str] = []

    def loaded(self, session_id: str) -> None:
        return None

    def break_off(self, session_ids: Sequence[str]) -> None:
        self.broken += session_ids


class Kit:
    def __init__(self) -> None:
        self.store, self.relay, self.budget = Store(), Relay(), InputBudget(10_000)
        self.results: list[IntakeResult] = []
        self.failures: list[StoreError] = []
        self.intake = Intake(
            store=self.store,  # type: ignore[arg-type]  # as much of it as is used here
            relay=self.relay,  # type: ignore[arg-type]  # the same
            link=LINK,
            deadlines=DEADLINES,
            budget=self.budget,
            after_commit=self._after_commit,
            on_failure=self.failures.append,
        )

    async def _after_commit(self, ops: Sequence[IntakeOp], result: IntakeResult) -> None:
        self.results.append(result)
        await trio.lowlevel.checkpoint()

    def event(self, seq: int, sid: str = "s1", term: int = 1, size: int = 10) -> None:
        event = StoredEvent(term=term, seq=seq, run_id="r", type="text_chunk", data="{}")
        self.intake.put_event(sid, event, size)


def shape(ops: Sequence[IntakeOp]) -> list[Any]:
    return [
        (op.session_id, op.term, [event.seq for event in op.events])
        if isinstance(op, EventsIn)
        else type(op).__name__
        for op in ops
    ]


async def test_one_commit_takes_everything_grouped_by_session(mock_clock: MockClock) -> None:
    kit = Kit()
    kit.event(1)
    kit.event(1, "s2")
    kit.intake.put(CommandsDone(command_ids=("c",)), 5)
    kit.event(2)
    kit.event(3, term=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kit.intake.serve)
        await trio.testing.wait_all_tasks_blocked()
        assert [shape(ops) for ops in kit.store.commits] == [
            [("s1", 1, [1, 2]), ("s2", 1, [1]), "CommandsDone", ("s1", 2, [3])]
        ]
        kit.event(2, "s2")
        await trio.testing.wait_all_tasks_blocked()
        assert len(kit.store.commits) == 2
        nursery.cancel_scope.cancel()
    assert kit.budget.used == 0


async def test_who_pours_events_out_is_committed_in_larger_groups(
    autojump_clock: MockClock,
) -> None:
    kit = Kit()
    many = int(BUSY * WINDOW) + 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kit.intake.serve)
        for seq in range(1, many + 1):
            kit.event(seq)
        await trio.testing.wait_all_tasks_blocked()
        assert len(kit.store.commits) == 1
        for seq in (many + 1, many + 2):
            kit.event(seq)
            await trio.testing.wait_all_tasks_blocked()
        assert len(kit.store.commits) == 1
        await trio.sleep(REST)
        await trio.testing.wait_all_tasks_blocked()
        assert shape(kit.store.commits[1]) == [("s1", 1, [many + 1, many + 2])]
        assert trio.current_time() == pytest.approx(REST)
        nursery.cancel_scope.cancel()


async def test_what_comes_during_a_commit_goes_into_the_next_one(mock_clock: MockClock) -> None:
    kit = Kit()
    kit.store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kit.intake.serve)
        kit.event(1)
        await trio.testing.wait_all_tasks_blocked()
        kit.event(2)
        assert kit.intake.uncommitted_bytes == 2 * (10 + OVERHEAD)
        nursery.cancel_scope.cancel()  # the commit under way is brought to its end
        await_end = kit.store.gate
        await_end.set()
    assert [shape(ops) for ops in kit.store.commits] == [[("s1", 1, [1])]]
    await kit.intake.close()
    assert shape(kit.store.commits[1]) == [("s1", 1, [2])]
    assert kit.intake.is_closed
    kit.event(3)
    kit.intake.put(CommandsDone(command_ids=("c",)), 5)
    event = StoredEvent(term=1, seq=1, run_id="r", type="t", data="{}")
    kit.intake.put_repeat("s1", event, 5)
    assert kit.intake.uncommitted_bytes == 0
    assert not await kit.intake.commit()


@pytest.mark.parametrize("error", [StoreError("full"), LinkFenced("old")])
async def test_a_failure_breaks_readers_off_and_closes_for_good(
    error: StoreError, mock_clock: MockClock
) -> None:
    kit = Kit()
    kit.store.error = error
    kit.event(1)
    kit.event(1, "s2")
    assert not await kit.intake.commit()
    assert kit.relay.broken == ["s1", "s2"]
    assert kit.failures == [error]
    assert kit.results == []
    assert kit.budget.used == 0
    kit.intake.abandon()
    assert kit.failures == [error]


async def test_a_bug_in_the_store_is_no_answer_and_forgets_no_bytes(mock_clock: MockClock) -> None:
    kit = Kit()
    kit.store.error = RuntimeError("a bug")
    kit.event(1)
    with pytest.raises(RuntimeError):
        await kit.intake.commit()
    assert kit.budget.used == 0
    kit.intake.abandon()
    assert kit.relay.broken == ["s1"]


async def test_a_commit_that_takes_too_long_counts_as_failed(autojump_clock: MockClock) -> None:
    kit = Kit()
    kit.store.gate = trio.Event()
    kit.event(1)
    assert not await kit.intake.commit()
    assert trio.current_time() == pytest.approx(DEADLINES.store_commit)
    assert "too long" in str(kit.failures[0])


async def test_events_of_a_session_that_is_lost_are_forgotten(mock_clock: MockClock) -> None:
    kit = Kit()
    kit.event(1)
    kit.event(1, "s2")
    kit.intake.put(CommandsDone(command_ids=("c",)), 5)
    kit.intake.drop_events("s1")
    assert await kit.intake.commit()
    assert [shape(ops) for ops in kit.store.commits] == [[("s2", 1, [1]), "CommandsDone"]]
    assert kit.budget.used == 0


async def test_readers_wait_for_room_of_the_link_and_of_the_host(mock_clock: MockClock) -> None:
    kit, other = Kit(), Kit()
    other.intake._budget = kit.budget
    went_on: list[str] = []

    async def read(name: str, each: Kit) -> None:
        await each.intake.wait_room()
        went_on.append(name)

    kit.event(1, size=20_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "same", kit)
        nursery.start_soon(read, "other", other)
        await trio.testing.wait_all_tasks_blocked()
        assert went_on == []
        await kit.intake.commit()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(went_on) == ["other", "same"]


async def test_a_link_that_is_given_up_lets_its_reader_go(mock_clock: MockClock) -> None:
    kit = Kit()
    kit.budget = InputBudget()
    kit.intake._budget = kit.budget
    kit.event(1, size=17 * 2**20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kit.intake.wait_room)
        await trio.testing.wait_all_tasks_blocked()
        kit.intake.abandon()


async def test_a_tail_that_knows_too_much_or_too_little_is_brought_to_the_store(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        await plane.say("hi")
        tail = await adopt_tail(plane.relay, "s1", 1, 0)
        event = StoredEvent(term=1, seq=1, run_id="r", type="text_chunk", data="{}")
        tail.receive(event, waits_for_commit=False)
        reader = await plane.relay.open_run_reader("s1", "r", 0)
        fresh = await adopt_tail(plane.relay, "s1", 1, 0)
        assert fresh is not tail
        assert fresh.received_seq == 0
        assert reader.end_reason == "store_failed"
        assert await adopt_tail(plane.relay, "s1", 1, 4) is fresh
        assert fresh.received_seq == 4
