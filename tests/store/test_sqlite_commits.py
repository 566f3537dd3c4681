from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import apsw
import attrs
import pytest
import trio
import trio.testing

from semibot.config.deadlines import Deadlines
from semibot.errors import LocalProtocolError, NotFound, StoreError
from semibot.live import live_ports
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import capture_logs, simulated_ports

BIG = "x" * 100_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "semibot.db"


@pytest.fixture
def add_hook():
    """Do something to every connection that is opened."""
    before = list(apsw.connection_hooks)
    yield apsw.connection_hooks.append
    apsw.connection_hooks[:] = before


def open_store(path, *, ports=None, **deadlines):
    return open_sqlite_store(
        path, ports=ports or simulated_ports(), deadlines=Deadlines(**deadlines)
    )


def add_user(db, name, *, fail=None):
    db.change("INSERT INTO organizations VALUES (?, 'local', 0) ON CONFLICT DO NOTHING", ("acme",))
    db.change("INSERT INTO users (id, org_id, created_at) VALUES (?, 'acme', 0)", (name,))
    if fail is not None:
        raise fail
    return name


class Results:
    """What became of calls that were made at the same time."""

    def __init__(self, store):
        self.store = store
        self.values = {}

    async def write(self, fn, *args):
        try:
            self.values[args[0]] = await self.store._writer.write(fn, *args)
        except Exception as exc:  # noqa: BLE001 - it is looked at later
            self.values[args[0]] = exc


# --- groups ---------------------------------------------------------------------------


async def test_what_waits_is_committed_at_once(path, add_hook):
    commits = []
    add_hook(lambda connection: connection.set_commit_hook(lambda: bool(commits.append(1))))
    async with open_store(path) as store:
        commits.clear()
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(store._writer.write, add_user, f"user {number}")
        assert len(commits) == 1
        assert await store.get_user("user 499") is not None


async def test_the_next_group_gathers_while_one_is_committed(path, add_hook):
    commits = []
    add_hook(lambda connection: connection.set_commit_hook(lambda: bool(commits.append(1))))
    begun, go_on = threading.Event(), threading.Event()

    def wait(db):
        begun.set()
        assert go_on.wait(5)
        add_user(db, "first")

    async with open_store(path, ports=live_ports()) as store:
        commits.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._writer.write, wait)
            await trio.to_thread.run_sync(begun.wait, 5)
            for number in range(99):
                nursery.start_soon(store._writer.write, add_user, f"user {number}")
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert len(commits) == 2


async def test_results_go_to_those_who_asked(path):
    async with open_store(path) as store:
        results = Results(store)
        async with trio.open_nursery() as nursery:
            for name in ("ada", "bob", "eve"):
                nursery.start_soon(results.write, add_user, name)
    assert results.values == {"ada": "ada", "bob": "bob", "eve": "eve"}


async def test_a_job_that_fails_undoes_its_own_writes_only(path):
    async with open_store(path) as store:
        results = Results(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(results.write, add_user, "ada")
            nursery.start_soon(
                results.write, lambda db, name: add_user(db, name, fail=NotFound("no")), "bob"
            )
            nursery.start_soon(results.write, add_user, "eve")
        found = [await store.get_user(name) for name in ("ada", "bob", "eve")]
        assert [user and user.id for user in found] == ["ada", None, "eve"]
        assert str(results.values["bob"]) == "no"
        assert type(results.values["bob"]) is NotFound
        assert store.failure is None


@pytest.mark.parametrize(
    ("sql", "params", "problem"),
    [
        ("INSERT INTO users (id, org_id, created_at) VALUES ('eve', 'nobody', 0)", (), "FOREIGN"),
        ("INSERT INTO users VALUES ('eve', NULL, NULL, 0)", (), "NOT NULL"),
        ("SELECT * FROM nowhere", (), "no such table"),
        ("SELECT ?, ?", (1,), "Incorrect number of bindings"),
        ("INSERT INTO organizations VALUES ('x', 'local', 'noon')", (), "cannot store TEXT"),
    ],
)
async def test_a_statement_that_is_refused_fails_its_own_job(path, sql, params, problem):
    async with open_store(path) as store:
        results = Results(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(results.write, add_user, "ada")
            nursery.start_soon(results.write, lambda db, name: db.execute(sql, params), "bad")
        assert await store.get_user("ada") is not None
        assert store.failure is None
    assert type(results.values["bad"]) is StoreError
    assert problem in str(results.values["bad"])


@pytest.mark.parametrize("value", [2**70, "\ud800"], ids=["integer", "surrogate"])
async def test_a_value_that_no_database_takes_fails_its_own_job(path, value):
    async with open_store(path) as store:
        with pytest.raises((OverflowError, UnicodeEncodeError)):
            await store._writer.write(lambda db: db.execute("SELECT ?", (value,)))
        await store.check()


async def test_a_write_that_fails_in_the_method_stores_nothing(path):
    async with open_store(path) as store:
        with pytest.raises(LocalProtocolError):
            await store.remember_answer("ada", "key", "hash", float("nan"))
        assert await store.remember_answer("ada", "key", "hash", "answer") == "answer"


async def test_a_column_of_another_type_is_said_to_be_wrong(path):
    async with open_store(path) as store:
        row = await store._readers.read(lambda db: db.one("SELECT 1 AS n, 'x' AS t, NULL AS z"))
    assert row is not None
    for ask, name in [
        (row.text, "n"),
        (row.integer, "t"),
        (row.number, "t"),
        (row.object, "z"),
        (row.object, "n"),
        (row.flag, "z"),
    ]:
        with pytest.raises(StoreError, match=f"column {name} of the database does not hold"):
            ask(name)
    assert (row.json("z"), row.number_or_none("n"), row.number_or_none("z")) == (None, 1, None)


# --- time -----------------------------------------------------------------------------


@attrs.define
class Clock:
    time: datetime = datetime(2026, 3, 1, tzinfo=UTC)

    def now(self):
        return self.time


async def test_the_time_of_a_transaction_never_goes_back(path):
    clock = Clock()
    async with open_store(path, ports=attrs.evolve(simulated_ports(), wall_clock=clock)) as store:
        first = await store._writer.write(lambda db: db.now())
        clock.time -= timedelta(days=1)
        assert await store._writer.write(lambda db: db.now()) == first
        assert await store._readers.read(lambda db: db.now()) == first
        clock.time += timedelta(days=1, milliseconds=5)
        assert await store._readers.read(lambda db: db.now()) == first + 5


# --- a database that does not work ----------------------------------------------------


async def test_a_full_disk_acknowledges_nothing_and_room_mends_it(path, add_hook):
    limits = [60, 100_000]
    add_hook(lambda connection: connection.pragma("max_page_count", limits[0]))
    async with open_store(path) as store:
        results = Results(store)
        with capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(results.write, add_user, "ada")
                nursery.start_soon(
                    results.write,
                    lambda db, name: db.change(
                        "INSERT INTO reports_seen VALUES (?, ?)", (name, BIG)
                    ),
                    "big",
                )
                nursery.start_soon(results.write, add_user, "eve")
            with pytest.raises(StoreError, match="nothing was stored: the disk is full"):
                await store._writer.write(lambda db: results.write and add_big(db))
        assert {str(each) for each in results.values.values()} == {
            "nothing was stored: the disk is full"
        }
        assert {type(each) for each in results.values.values()} == {StoreError}
        assert store.failure == "the disk is full"
        assert [entry["event"] for entry in logs] == ["store cannot write"]
        assert await store.get_user("ada") is None

        del limits[0]
        with pytest.raises(NotFound):  # nothing is written, so nothing is known
            await store.begin_attempt("vm", "ticket", 0)
        assert store.failure == "the disk is full"
        with capture_logs() as logs:
            await store.check()
        assert [entry["event"] for entry in logs] == ["store writes again"]
        assert store.failure is None
        await store._writer.write(add_big)
        await results.write(add_user, "ada")
        assert results.values["ada"] == "ada"


def add_big(db):
    return db.change("INSERT INTO reports_seen VALUES ('big', ?)", (BIG,))


@pytest.fixture
def disk():
    """Every file is opened through this; :attr:`Disk.broken` names the calls that fail."""
    disk = Disk()
    yield disk
    disk.unregister()


class Disk(apsw.VFS):
    def __init__(self):
        self.broken = {}
        self.opened = []
        super().__init__("broken disk", "unix", makedefault=True)

    def xOpen(self, name, flags):  # noqa: N802 - the driver calls it so
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.opened.append(path)
        return File(self, name, flags, path)

    def fail(self, call, path):
        kind = "log" if (path or "").endswith("-wal") else "database"
        if (call, kind) in self.broken:
            raise self.broken[call, kind]


class File(apsw.VFSFile):
    def __init__(self, disk, name, flags, path):
        self.disk = disk
        self.path = path
        super().__init__("unix", name, flags)

    def xSync(self, flags):  # noqa: N802 - the driver calls it so
        self.disk.fail("sync", self.path)
        super().xSync(flags)

    def xWrite(self, data, offset):  # noqa: N802 - the driver calls it so
        self.disk.fail("write", self.path)
        super().xWrite(data, offset)


@pytest.mark.parametrize("call", ["sync", "write"])
async def test_a_commit_that_does_not_reach_the_disk_acknowledges_nothing(path, disk, call):
    async with open_store(path) as store:
        await store._writer.write(add_user, "before")
        disk.broken[call, "log"] = apsw.IOError("the cable is out")
        disk.opened.clear()
        results = Results(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(results.write, add_user, "ada")
            nursery.start_soon(results.write, add_user, "eve")
        assert {type(each) for each in results.values.values()} == {StoreError}
        assert "nothing was stored: the disk failed" in str(results.values["ada"])
        assert store.failure is not None
        assert await store.get_user("ada") is None
        with pytest.raises(StoreError):
            await store.check()

        disk.broken.clear()
        disk.opened.clear()
        await results.write(add_user, "ada")
        assert results.values["ada"] == "ada"
        assert store.failure is None
        assert str(path) in disk.opened  # a connection that failed is not used again
    async with open_store(path) as store:
        found = [await store.get_user(name) for name in ("before", "ada", "eve")]
        assert [user and user.id for user in found] == ["before", "ada", None]


async def test_a_connection_that_cannot_be_opened_again_is_tried_at_the_next_commit(
    path, disk, add_hook
):
    problems = []

    def refuse(connection):
        if problems:
            raise problems.pop()

    async with open_store(path) as store:
        add_hook(refuse)
        disk.broken["sync", "log"] = apsw.IOError("the cable is out")
        with pytest.raises(StoreError, match="the disk failed"):
            await store.check()
        disk.broken.clear()
        problems.append(apsw.CantOpenError("too many open files"))
        with pytest.raises(StoreError, match="nothing was stored: too many open files"):
            await store.check()
        await store.check()
        assert store.failure is None


async def test_a_disk_that_fails_for_good_does_not_keep_the_store_open(path, disk):
    async with open_store(path) as store:
        await store._writer.write(add_user, "before")
        for call in ("sync", "write"):
            for kind in ("log", "database"):
                disk.broken[call, kind] = apsw.IOError("the cable is out")
        with pytest.raises(StoreError):
            await store._writer.write(add_user, "ada")
    disk.broken.clear()
    async with open_store(path) as store:
        assert await store.get_user("before") is not None
        assert await store.get_user("ada") is None


async def test_a_damaged_database_is_a_failure(path):
    def damage(db):
        raise apsw.CorruptError("database disk image is malformed")

    async with open_store(path) as store:
        with pytest.raises(StoreError, match="nothing was stored: the database is damaged"):
            await store._writer.write(damage)
        assert store.failure is not None


async def test_a_database_that_another_program_has_locked_is_a_failure(path):
    async with open_store(path, store_commit=0.02) as store:
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program has the database locked"):
            await store.check()
        other.close()
        await store.check()
        assert store.failure is None


async def test_a_mistake_in_the_writer_ends_the_store_and_not_only_the_caller(path):
    class Mistake(BaseException):
        pass

    def fail(db):
        add_user(db, "ada")
        raise Mistake

    problems = []

    async def ask(store):
        try:
            await store._writer.write(fail)
        except StoreError as exc:
            problems.append(str(exc))

    with pytest.RaisesGroup(Mistake, flatten_subgroups=True):
        async with trio.open_nursery() as nursery, open_store(path) as store:
            nursery.start_soon(ask, store)
            await trio.sleep_forever()
    assert problems == ["a commit was broken off; what it was to store may be stored"]
    async with open_store(path) as store:
        assert await store.get_user("ada") is None
