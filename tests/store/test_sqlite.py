from __future__ import annotations

import fcntl
import os
import stat
import threading
from contextlib import closing
from pathlib import Path

import apsw
import attrs
import pytest
import trio
import trio.testing

from semibot.config.deadlines import Deadlines
from semibot.errors import ConfigError, DataDirectoryInUse, NotFound, StoreError
from semibot.live import live_ports
from semibot.store._migrations import read_migrations
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import capture_logs, simulated_ports


def open_store(path: Path, *, ports=None, **deadlines):
    return open_sqlite_store(
        path, ports=ports or simulated_ports(), deadlines=Deadlines(**deadlines)
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "semibot.db"


# --- what is on disk ------------------------------------------------------------------


async def test_what_was_stored_is_there_after_a_restart(path):
    async with open_store(path) as store:
        await store.ensure_user("ada", "acme", vm_mode="local")
    async with open_store(path) as store:
        user = await store.get_user("ada")
    assert user is not None
    assert (user.org_id, user.vm_mode) == ("acme", "local")


async def test_real_threads_leave_nothing_but_the_database_and_its_lock(path):
    ports = live_ports()
    async with open_store(path, ports=ports) as store:
        await store.ensure_user("ada", "acme", vm_mode=None)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(store.get_user, "ada")
                nursery.start_soon(store.check)
        assert store.failure is None
    assert sorted(each.name for each in path.parent.iterdir()) == ["lock", "semibot.db"]
    assert dict(ports.threads.in_use()) == {"store": 0, "store.read": 0}


async def test_only_the_owner_may_read_what_is_stored(path):
    path.parent.mkdir(mode=0o755)
    async with open_store(path) as store:
        await store.check()
        modes = {
            each.name: stat.S_IMODE(each.stat().st_mode)
            for each in (path.parent, *path.parent.iterdir())
        }
    assert modes == {
        "data": 0o700,
        "lock": 0o600,
        "semibot.db": 0o600,
        "semibot.db-wal": 0o600,
        "semibot.db-shm": 0o600,
    }


async def test_somebody_elses_directory_keeps_its_mode(path):
    path.parent.mkdir(mode=0o755)
    (path.parent / "thesis.txt").write_text("")
    async with open_store(path):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


async def test_a_directory_in_which_others_may_write_is_refused(path):
    path.parent.mkdir()
    (path.parent / "thesis.txt").write_text("")
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write there; pass another --data-dir"):
        async with open_store(path):
            pass


async def test_a_relative_path_is_meant_from_where_the_program_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with open_store(Path("data/semibot.db")) as store:
        monkeypatch.chdir(elsewhere)
        assert await store.get_user("ada") is None
    assert (tmp_path / "data" / "semibot.db").exists()


# --- one host at a time ---------------------------------------------------------------


async def test_a_second_host_on_the_directory_is_told_who_has_it(path):
    async with open_store(path) as store:
        with pytest.raises(DataDirectoryInUse) as caught:
            async with open_store(path):
                pass
        await store.check()
    assert caught.value.pid == os.getpid()
    async with open_store(path) as store:
        await store.check()


async def test_a_lock_without_a_process_id_is_a_lock(path):
    path.parent.mkdir()
    with closing((path.parent / "lock").open("w")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataDirectoryInUse, match="another host"):
            async with open_store(path):
                pass


@pytest.mark.parametrize("name", ["lock", "semibot.db"])
async def test_a_link_in_the_place_of_a_file_is_refused(path, tmp_path, name):
    path.parent.mkdir()
    (path.parent / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot keep data in"):
        async with open_store(path):
            pass
    assert not (tmp_path / "elsewhere").exists()


async def test_a_pipe_in_the_place_of_the_lock_is_refused(path):
    path.parent.mkdir()
    os.mkfifo(path.parent / "lock")
    with pytest.raises(ConfigError, match="lock is not a regular file"):
        async with open_store(path):
            pass


async def test_a_directory_that_cannot_be_made_is_named(path):
    path.parent.write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot keep data in .*data"):
        async with open_store(path):
            pass


# --- schema ---------------------------------------------------------------------------


async def test_a_database_of_a_newer_semibot_is_left_alone(path):
    async with open_store(path):
        pass
    with closing(apsw.Connection(str(path))) as connection:
        connection.pragma("user_version", 999)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"newer semibot \(schema 999"):
        async with open_store(path):
            pass
    assert path.read_bytes()[100:] == before[100:]  # the head counts openings


def test_migrations_count_from_one():
    steps = read_migrations()
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))


async def test_a_step_that_fails_changes_nothing(path):
    path.parent.mkdir()
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE memories (something TEXT)")
    with pytest.raises(StoreError, match="cannot open"):
        async with open_store(path):
            pass
    with closing(apsw.Connection(str(path))) as connection:
        assert connection.pragma("user_version") == 0
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("memories",)]


async def test_a_file_that_is_no_database_is_left_alone(path):
    path.parent.mkdir()
    path.write_bytes(b"my diary " * 1000)
    with pytest.raises(ConfigError, match="not a database of semibot"):
        async with open_store(path):
            pass
    assert path.read_bytes() == b"my diary " * 1000


async def test_a_database_that_another_program_writes_to_is_not_opened(path):
    async with open_store(path):
        pass
    with closing(apsw.Connection(str(path))) as other:
        other.execute("PRAGMA user_version = 0")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigError, match="locked"):
            async with open_store(path, store_commit=0.02):
                pass


async def test_a_database_that_may_not_be_written_is_refused(path, add_hook):
    add_hook(lambda connection: connection.execute("PRAGMA query_only = on"))
    with pytest.raises(ConfigError, match=r"cannot write .*semibot.db"):
        async with open_store(path):
            pass


@pytest.fixture
def add_hook():
    """Do something to every connection that is opened."""
    before = list(apsw.connection_hooks)
    yield apsw.connection_hooks.append
    apsw.connection_hooks[:] = before


# --- closing --------------------------------------------------------------------------


async def test_after_the_block_nothing_is_taken_any_more(path):
    async with open_store(path) as store:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await store.check()
    with pytest.raises(trio.ClosedResourceError):
        await store.get_user("ada")


async def test_what_waits_to_be_written_when_the_block_is_left_is_written(path, autojump_clock):
    async with trio.open_nursery() as nursery:
        async with open_store(path) as store:
            for name in ("ada", "bob", "eve"):
                nursery.start_soon(lambda name=name: store.ensure_user(name, "acme", vm_mode=None))
            await trio.testing.wait_all_tasks_blocked()
    async with open_store(path) as store:
        assert None not in [await store.get_user(name) for name in ("ada", "bob", "eve")]


async def test_the_exception_of_the_block_comes_out_as_it_is(path):
    with pytest.raises(NotFound, match="nobody"):
        async with open_store(path):
            raise NotFound("nobody")


async def test_a_log_that_cannot_be_moved_stays_for_the_next_opening(path):
    async with open_store(path):
        pass
    with closing(apsw.Connection(str(path))) as other, capture_logs() as logs:
        async with open_store(path, store_commit=0.02) as store:
            other.execute("BEGIN").execute("SELECT * FROM users")
            await store.ensure_user("ada", "acme", vm_mode=None)
    assert [entry["event"] for entry in logs] == ["the log stays beside the database"]
    async with open_store(path) as store:
        assert await store.get_user("ada") is not None


# --- threads that hang ----------------------------------------------------------------


@attrs.define(eq=False)
class Tap:
    """A connection hook whose SQL function ``tap()`` blocks until it is opened."""

    arrived: threading.Event = attrs.field(factory=threading.Event)
    opened: threading.Event = attrs.field(factory=threading.Event)

    def __call__(self, connection):
        connection.create_scalar_function("tap", self.wait, 0)

    def wait(self):
        self.arrived.set()
        assert self.opened.wait(10)


@pytest.fixture
def tap(add_hook):
    tap = Tap()
    add_hook(tap)
    yield tap
    tap.opened.set()


async def wait_threads(ports):
    with trio.fail_after(5):
        while any(ports.threads.in_use().values()):  # noqa: ASYNC110 - a thread tells nobody
            await trio.sleep(0.001)


async def test_a_read_that_nobody_waits_for_is_interrupted(path):
    ports = live_ports()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    async with open_store(path, ports=ports) as store:
        for _ in range(6):  # more than there are threads
            with trio.move_on_after(0.02) as scope:
                await store._readers.read(lambda db: db.execute(endless))
            assert scope.cancelled_caught
        assert await store.get_user("ada") is None
        await wait_threads(ports)


async def test_a_read_takes_no_longer_than_a_commit_may(path):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    async with open_store(path, ports=live_ports(), store_commit=0.1) as store:
        with pytest.raises(StoreError, match="reading takes too long"):
            await store._readers.read(lambda db: db.execute(endless))


async def test_an_interrupt_between_two_statements_stops_a_read(path, tap):
    ports = live_ports()
    seen = []

    def two_statements(db):
        db.one("SELECT tap()")
        seen.append("first")
        db.one("SELECT 1")
        seen.append("second")

    async with open_store(path, ports=ports) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._readers.read, two_statements)
            await trio.to_thread.run_sync(tap.arrived.wait, 5)
            nursery.cancel_scope.cancel()
        tap.opened.set()
        await wait_threads(ports)
        assert "second" not in seen


async def test_a_read_that_was_cancelled_before_its_thread_began_does_nothing(path):
    ports = live_ports()
    async with open_store(path, ports=ports) as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.get_user("ada")
        assert scope.cancelled_caught


async def test_a_read_fails_with_the_database(path, monkeypatch):
    async with open_store(path) as store:
        with pytest.raises(StoreError, match="cannot read: no such table"):
            await store._readers.read(lambda db: db.one("SELECT * FROM nowhere"))
        with pytest.raises(StoreError, match="cannot read: attempt to write"):
            await store._readers.read(lambda db: db.change("DELETE FROM users"))
        assert await store.get_user("ada") is None
        assert store.failure is None


async def test_a_reader_that_cannot_be_opened_is_a_failure(path, add_hook):
    problems = [apsw.CantOpenError("too many open files")]

    def refuse(connection):
        if problems:
            raise problems.pop()

    async with open_store(path) as store:
        add_hook(refuse)
        with pytest.raises(StoreError, match="cannot read: too many open files"):
            await store.get_user("ada")
        assert await store.get_user("ada") is None


async def test_a_reader_that_hangs_holds_up_closing_for_a_while_only(path, tap):
    ports = live_ports()
    async with open_store(path, ports=ports, store_commit=0.2) as store:
        with trio.move_on_after(0.05):
            await store._readers.read(lambda db: db.one("SELECT tap()"))
        await store.check()
    tap.opened.set()
    await wait_threads(ports)
    async with open_store(path):
        pass


async def test_a_commit_that_hangs_is_left_to_its_thread(path, tap):
    ports = live_ports()
    before = trio.current_time()
    async with open_store(path, ports=ports, store_commit=0.2) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, StoreError, "may still be stored", hang, store)
            await trio.to_thread.run_sync(tap.arrived.wait, 5)
            nursery.start_soon(expect, StoreError, "an earlier commit has not ended", store.check)
        assert store.failure == "a commit takes more than 0.2 s"
    assert trio.current_time() - before < 5
    with pytest.raises(DataDirectoryInUse):  # the thread still has the file
        async with open_store(path):
            pass
    tap.opened.set()
    await wait_threads(ports)
    async with open_store(path) as store:
        await store.check()


async def test_a_slow_commit_that_ends_well_is_no_failure_any_more(path, tap):
    async with open_store(path, ports=live_ports(), store_commit=0.2) as store:
        with pytest.raises(StoreError, match="may still be stored"):
            await hang(store)
        assert store.failure is not None
        tap.opened.set()
        await store.check()
        assert store.failure is None
        with trio.fail_after(5):
            assert await store.late_commits(0) == 1


async def test_opening_that_hangs_is_given_up(path, tap, add_hook):
    add_hook(lambda connection: tap.wait())
    ports = live_ports()
    with pytest.raises(StoreError, match=r"the database takes more than 0\.1 s to open"):
        async with open_store(path, ports=ports, store_commit=0.1):
            pass
    tap.opened.set()
    await wait_threads(ports)
    async with open_store(path):
        pass


async def hang(store):
    await store._writer.write(lambda db: db.one("SELECT tap()"))


async def expect(error, match, fn, *args):
    with pytest.raises(error, match=match):
        await fn(*args)


# --- beside a host that runs ----------------------------------------------------------


def open_guest(path):
    return open_sqlite_store(path, ports=simulated_ports(), deadlines=Deadlines(), takes_lock=False)


async def test_a_guest_changes_what_a_running_host_sees(path):
    async with open_store(path) as host:
        await host.ensure_user("ada", "acme", vm_mode="local")
        async with open_guest(path) as guest:
            await guest.ensure_vm("ada", "vm", "external")
        assert (await host.newest_vm("ada")).mode == "external"
        assert path.with_name(path.name + "-wal").stat().st_size > 0  # the log is the host's
        await host.set_vm_status("vm", "ready")
    async with open_store(path) as host:
        assert (await host.newest_vm("ada")).status == "ready"


async def test_a_guest_makes_no_database(path):
    path.parent.mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        async with open_guest(path):
            raise AssertionError
    assert list(path.parent.iterdir()) == []


async def test_a_guest_of_another_version_stays_out(path):
    async with open_store(path):
        with closing(apsw.Connection(str(path))) as other:
            other.execute("PRAGMA user_version = 99")
        with pytest.raises(ConfigError, match="another version of semibot"):
            async with open_guest(path):
                raise AssertionError
