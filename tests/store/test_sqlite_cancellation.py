from __future__ import annotations

import itertools
import threading

import attrs
import pytest
import trio

from semibot.config.deadlines import Deadlines
from semibot.live import LiveThreads, live_ports
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import cancel_everywhere, simulated_ports


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "semibot.db"


def open_store(path, *, ports=None):
    return open_sqlite_store(path, ports=ports or simulated_ports(), deadlines=Deadlines())


def add_user(db, name):
    db.change("INSERT INTO organizations VALUES (?, 'local', 0) ON CONFLICT DO NOTHING", ("acme",))
    db.change("INSERT INTO users (id, org_id, created_at) VALUES (?, 'acme', 0)", (name,))
    return name


async def test_what_is_cancelled_while_it_waits_is_not_stored(path, autojump_clock):
    async with open_store(path) as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store._writer.write(add_user, "ada")
        assert scope.cancelled_caught
        await store._writer.write(add_user, "eve")
        assert await store.get_user("ada") is None
        assert await store.get_user("eve") is not None


async def test_whoever_is_cancelled_during_a_commit_learns_how_it_ended(path):
    scope = trio.CancelScope()
    ports = live_ports()
    answers = []

    def cancel_and_add(db, name):
        trio.from_thread.run_sync(scope.cancel)
        return add_user(db, name)

    async with open_store(path, ports=ports) as store:
        with scope:
            answers.append(await store._writer.write(cancel_and_add, "ada"))
        assert answers == ["ada"]
        assert await store.get_user("ada") is not None


def test_a_store_that_is_cancelled_anywhere_is_closed(tmp_path):
    path = tmp_path / "semibot.db"
    acknowledged = []
    numbers = itertools.count()

    async def scenario():
        async with open_store(path) as store:
            await store.check()
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(add, store, f"user {next(numbers)}")
            await store.get_user("ada")

    async def add(store, name):
        acknowledged.append(await store._writer.write(add_user, name))

    def audit():
        async def look():
            async with open_store(path) as store:
                missing = [name for name in acknowledged if await store.get_user(name) is None]
            left = sorted(each.name for each in tmp_path.iterdir())
            return (f"lost {missing}" if missing else None) or (
                None if left == ["lock", "semibot.db"] else f"left {left}"
            )

        return trio.run(look)

    report = cancel_everywhere(scenario, audit=audit)
    assert report.problems == ()
    assert report.cancel_points > 10
    assert report.longest == 0
    assert acknowledged


def test_a_store_with_threads_that_is_cancelled_anywhere_leaves_none(tmp_path):
    path = tmp_path / "semibot.db"
    threads = CountedThreads()
    ports = attrs.evolve(live_ports(), threads=threads)

    async def scenario():
        threads.inner = LiveThreads()
        async with open_store(path, ports=ports) as store:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.check)
                nursery.start_soon(store.get_user, "ada")

    def audit():
        with threads.changed:
            if not threads.changed.wait_for(lambda: threads.running == 0, 5):
                return f"{threads.running} threads"
        left = sorted(each.name for each in tmp_path.iterdir())
        return None if left in ([], ["lock", "semibot.db"]) else f"left {left}"

    report = cancel_everywhere(scenario, audit=audit, mock_clock=False)
    assert report.problems == ()
    assert report.cancel_points > 5


class CountedThreads:
    """Real threads, and how many of them are at work."""

    def __init__(self):
        self.inner = LiveThreads()
        self.changed = threading.Condition()
        self.running = 0

    async def run_sync(self, fn, *args, **options):
        def work():
            self.change(1)
            try:
                return fn(*args)
            finally:
                self.change(-1)

        return await self.inner.run_sync(work, **options)

    def change(self, step):
        with self.changed:
            self.running += step
            self.changed.notify_all()

    def in_use(self):
        return self.inner.in_use()
