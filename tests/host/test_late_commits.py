"""A commit takes so long that its caller gives up, and takes effect after all."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from host_kit import accept_message, open_core
from relay_kit import SESSION, Client, Kit, event, failing

from semibot.config.settings import HostSettings
from semibot.host.host import COMPARE_INTERVAL, run_core
from semibot.testing import capture_logs, simulated_ports
from semibot.wire.sse import EventId


@pytest.fixture
def kit():
    return Kit()


# --- tails and the store --------------------------------------------------------------


async def test_readers_of_a_session_in_a_newer_term_come_again(kit):
    await kit.receive(event(1), event(2))
    await kit.commit(event(1), event(2))
    client = await kit.reader("1-2")
    kit.store.add(event(3, term=2, type="execution_error"))  # nobody told the relay
    await kit.relay.compare()
    assert await client.step() is None
    assert client.reader.end_reason == "store_failed"
    again = await kit.reader("1-2")
    await again.step()
    assert again.got == ["execution_error 2-3"]


async def test_readers_of_a_session_that_is_gone_are_told_so(kit):
    await kit.receive()
    client = await kit.reader("1-0")
    kit.store.exists = False
    await kit.relay.compare()
    assert await client.step() is None
    assert client.reader.end_reason == "deleted"


async def test_readers_find_what_was_said_for_a_vm_in_the_same_term(kit):
    await kit.receive()
    client = await kit.reader("1-0")
    kit.store.add(event(1, type="run_started"), event(2, type="execution_error"))
    await kit.relay.compare()
    await client.step()
    assert client.got == ["run_started 1-1", "execution_error 1-2"]
    assert client.reader.end_reason is None


async def test_what_is_being_committed_is_left_to_whoever_commits_it(kit):
    await kit.receive(event(1), event(2), waits=True)
    kit.store.add(event(1), event(2))
    await kit.relay.compare()
    tail = await kit.relay.tail(SESSION)
    assert (tail.term, tail.committed_seq, tail.received_seq) == (1, 0, 2)


# --- the host -------------------------------------------------------------------------


@attrs.define(eq=False)
class LateStore:
    """The real store, and a count of late commits that the test raises."""

    inner: Any
    late: int = 0
    is_broken: bool = False
    more: trio.Event = attrs.field(factory=trio.Event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def commit_late(self) -> None:
        self.late += 1
        self.more.set()

    async def late_commits(self, known: int) -> int:
        while self.late <= known:
            await self.more.wait()
        return self.late

    async def tail_start(self, session_id: str) -> tuple[int, int] | None:
        if self.is_broken:
            self.is_broken = False
            raise failing()
        return await self.inner.tail_start(session_id)


@asynccontextmanager
async def open_late_core(tmp_path):
    """Open a host with a session that a reader follows, and delete it behind the host's back."""
    stores: list[LateStore] = []

    def wrap(inner: Any) -> LateStore:
        stores.append(LateStore(inner))
        return stores[0]

    settings = HostSettings(data_dir=tmp_path, workspace=tmp_path)
    async with open_core(settings, simulated_ports(), wrap) as core, run_core(core):
        await core.store.ensure_user("ann", "org", vm_mode="external")
        await accept_message(core, "ann", "s1", "r1", "Hello")
        reader = await core.relay.open_reader("s1", last_event_id=EventId(1, 0))
        await stores[0].inner.delete_session("ann", "s1", "d1")
        yield stores[0], Client(reader)


async def test_a_host_compares_its_readers_with_the_store(tmp_path, autojump_clock):
    async with open_late_core(tmp_path) as (store, client):
        with trio.move_on_after(5):
            await client.read_on()
        assert client.reader.end_reason is None  # it cannot know
    async with open_late_core(tmp_path / "again") as (store, client):
        store.commit_late()
        with trio.fail_after(5):
            await client.read_on()
        assert client.reader.end_reason == "deleted"


async def test_a_host_compares_again_if_it_could_not(tmp_path, autojump_clock):
    async with open_late_core(tmp_path) as (store, client):
        store.is_broken = True
        store.commit_late()
        with capture_logs() as logs, trio.fail_after(5 + COMPARE_INTERVAL):
            await client.read_on()
        assert client.reader.end_reason == "deleted"
        assert "readers could not be compared with the store" in str(logs)
