"""The store, to be cancelled at every step: with threads of this test's making, and real ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import attrs
import pytest
import trials
import trio
import trio.testing
from databases import check_database
from slow_threads import SlowThreads
from trials import Case, Trial

from semibot.config import Deadlines
from semibot.errors import DataDirectoryInUse, StoreError
from semibot.live import live_ports
from semibot.ports import Ports
from semibot.store.sqlite import SqliteStore, open_sqlite_store
from semibot.testing import simulated_ports
from semibot.testing.store_user import StoreUser, completed, started
from semibot.wire.events import TextChunk

BOUNDS: Final = Deadlines()

BIG: Final = "x" * 100_000


def open_store(
    trial: Trial, ports: Ports | None = None, deadlines: Deadlines = BOUNDS
) -> AbstractAsyncContextManager[SqliteStore]:
    if ports is None:
        threads = trial.parts["threads"] = SlowThreads()
        ports = attrs.evolve(simulated_ports(), threads=threads)
    return open_sqlite_store(trial.database, ports=ports, deadlines=deadlines)


def add_user(db: Any, name: str) -> str:
    db.change("INSERT INTO organizations VALUES (?, 'local', 0) ON CONFLICT DO NOTHING", ("acme",))
    db.change("INSERT INTO users (id, org_id, created_at) VALUES (?, 'acme', 0)", (name,))
    return name


async def add(trial: Trial, store: SqliteStore, name: str) -> None:
    """Store a user, and note that it was acknowledged."""
    trial.kept.append(await store._writer.write(add_user, name))


def the_store_is_whole(trial: Trial) -> str | None:
    """Let threads that were left behind end, and open the database again."""
    threads = trial.parts.get("threads")
    if isinstance(threads, SlowThreads):
        threads.come_back()
    events: Any = trial.parts.get("events", ())
    return check_database(trial.database, users=trial.kept, events=events)


# --- with threads that take a moment ------------------------------------------------------


async def open_and_close(trial: Trial) -> None:
    """Make the database, and find a second host refused while it is open."""
    async with open_store(trial) as store:
        await store.check()
        with pytest.raises(DataDirectoryInUse):
            async with open_store(trial, simulated_ports()):
                raise AssertionError


async def write_in_groups(trial: Trial) -> None:
    """Write while a group is committed, so that the others wait for the next one."""
    async with open_store(trial) as store, trio.open_nursery() as nursery:
        for group in range(2):
            for number in range(2):
                nursery.start_soon(add, trial, store, f"user {group}.{number}")
            await trio.sleep(0.01)  # the thread is at it


async def write_and_read(trial: Trial) -> None:
    """Read what is being written, and leave with a write under way."""
    async with trio.open_nursery() as nursery:
        async with open_store(trial) as store:
            await add(trial, store, "ada")
            nursery.start_soon(add, trial, store, "eve")
            assert await store.get_user("ada") is not None
            await trio.lowlevel.checkpoint()


async def fill_the_disk(trial: Trial) -> None:
    """Have a group refused by a full disk, and the next one stored when there is room."""
    async with open_store(trial) as store:
        await add(trial, store, "ada")
        await store._writer.write(lambda db: db.execute("PRAGMA max_page_count = 60"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refused, store._writer.write, add_big)
            nursery.start_soon(refused, add, trial, store, "eve")
        assert store.failure == "the disk is full"
        trial.parts["is_mended"] = True
        await store._writer.write(lambda db: db.execute("PRAGMA max_page_count = 100000"))
        await add(trial, store, "bob")
        assert store.failure is None


async def refused(fn: Callable[..., Awaitable[object]], *args: object) -> None:
    with pytest.raises(StoreError):
        await fn(*args)


def add_big(db: Any) -> object:
    return db.change("INSERT INTO reports_seen VALUES ('big', ?)", (BIG,))


async def hang(trial: Trial) -> None:
    """Have the disk hang under a commit, and leave with it."""
    async with open_store(trial) as store:
        await add(trial, store, "ada")
        threads = trial.parts["threads"]
        assert isinstance(threads, SlowThreads)
        threads.hang("store")
        with pytest.raises(StoreError, match=r"broken off|takes more than"):
            await add(trial, store, "eve")


async def hang_at_the_start(trial: Trial) -> None:
    """Have the disk hang while the database is opened again."""
    threads = trial.parts["threads"] = SlowThreads()
    ports = attrs.evolve(simulated_ports(), threads=threads)
    async with open_store(trial, ports) as store:
        await store.check()
    threads.hang("store")
    with pytest.raises(StoreError, match="to open"):
        async with open_store(trial, ports):
            raise AssertionError


async def converse(trial: Trial) -> None:
    """Take messages, commit what a VM says, cancel, lose the VM, and delete a session."""
    acknowledged = trial.parts["events"] = list[tuple[str, int]]()
    async with open_store(trial) as store:
        ada = await StoreUser.join(store)
        first = await ada.open_session()
        await ada.write(first.session_id)
        for said in ((started(first), TextChunk(content="hi")), (completed(first),)):
            result = await ada.say(first, *said)
            acknowledged += result.committed.items()
        second = await ada.open_session()
        await ada.write(second.session_id)
        await ada.say(second, started(second))
        acknowledged.append((second.session_id, 1))
        await ada.cancel(second.session_id)
        await store.lose_vm(
            "ada-vm", status="disconnected", last_error=None, code="INTERRUPTED", message="gone"
        )
        acknowledged.append((second.session_id, 2))
        await store.delete_session("ada", first.session_id, "delete-1")


# --- with real threads --------------------------------------------------------------------


async def write_in_threads(trial: Trial) -> None:
    """Write and read in real threads."""
    ports = live_ports()
    async with open_store(trial, ports) as store, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(add, trial, store, f"user {number}")
        nursery.start_soon(store.get_user, "ada")
        nursery.start_soon(store.check)


async def interrupt_a_read(trial: Trial) -> None:
    """Give up a read that would take for ever, while others write."""
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    )
    async with open_store(trial, live_ports()) as store:
        with trio.move_on_after(0.01):
            await store._readers.read(lambda db: db.one(endless))
        await add(trial, store, "ada")
        assert await store.get_user("ada") is not None


HANGS: Final = 3 * BOUNDS.store_commit
TO_THE_DISK: Final = "store.commit: to open, for the commit under way, and to close"
QUICK: Final = "store.commit, of which threads here take 0.01 s a job"
REAL: Final = "store.commit, of which a disk that works takes little"

CASES: Final = tuple(
    Case(
        name=f"store: {name}",
        act=act,
        look=the_store_is_whole,
        within=within,
        because=because,
        is_real=because is REAL,
        has_database=act is not open_and_close,
    )
    for name, act, within, because in (
        ("is made, and refuses a second host", open_and_close, 0.2, QUICK),
        ("a write waits behind a group commit", write_in_groups, 0.2, QUICK),
        ("is left while somebody reads and writes", write_and_read, 0.2, QUICK),
        ("the disk is full, and has room again", fill_the_disk, 0.2, QUICK),
        ("messages, events, a cancel, a loss and a deletion", converse, 0.2, QUICK),
        ("the disk hangs under a commit", hang, HANGS, TO_THE_DISK),
        ("the disk hangs when it is opened again", hang_at_the_start, HANGS, TO_THE_DISK),
        ("writes and reads in real threads", write_in_threads, 5, REAL),
        ("a read in a real thread is given up", interrupt_a_read, 5, REAL),
    )
)

__all__ = ["CASES", "trials"]
