"""The simulated disk loses what a real one loses, and the store loses nothing on it."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import attrs
import pytest
import trio

from semibot.channel.outbox_file import OutboxFile
from semibot.config import Deadlines
from semibot.errors import ConfigError, StoreError
from semibot.ports import Ports
from semibot.store import sqlite
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports
from semibot.testing.simulation.disk import SimulatedDisk
from semibot.workspace.files import append_text, make_directory, sync_directory, write_atomically

CRASH_POINTS = 100


class Place:
    """A directory with disks in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []
        self.disks: list[SimulatedDisk] = []
        self.now = 0.0

    def disk(self, seed: object = 0) -> SimulatedDisk:
        directory = self.path / f"disk{len(self.disks)}"
        directory.mkdir()
        return self.kept(
            SimulatedDisk(
                directory,
                random.Random(str(seed)),
                now=lambda: self.now,
                on_fault=lambda kind, name: self.faults.append(f"{kind} {name}"),
            )
        )

    def kept(self, disk: SimulatedDisk) -> SimulatedDisk:
        self.disks.append(disk)
        return disk

    def cut(self, disk: SimulatedDisk) -> SimulatedDisk:
        return self.kept(disk.cut_power(self.path / f"disk{len(self.disks)}"))

    def kill(self, disk: SimulatedDisk) -> SimulatedDisk:
        return self.kept(disk.kill(self.path / f"disk{len(self.disks)}"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for disk in made.disks:
        disk.close()


def write(path: Path, data: bytes, disk: SimulatedDisk | None = None) -> None:
    """Write a file in place, and sync it if a disk is given."""
    with path.open("r+b" if path.exists() else "w+b", buffering=0) as file:
        file.write(data)
        if disk is not None:
            disk.sync(file.fileno())


def outcomes(place: Place, disk: SimulatedDisk, name: str, times: int = 60) -> set[bytes | None]:
    """Return what is in a file after each of many losses of power; None if it is not there."""
    found = set[bytes | None]()
    for _ in range(times):
        path = place.cut(disk).directory / name
        found.add(path.read_bytes() if path.exists() else None)
    return found


# --- plain files ----------------------------------------------------------------------


def test_what_was_there_at_the_beginning_stays(place: Place) -> None:
    (place.path / "disk0").mkdir()
    (place.path / "disk0" / "old").write_bytes(b"old")
    disk = place.kept(SimulatedDisk(place.path / "disk0", random.Random(1)))
    assert outcomes(place, disk, "old") == {b"old"}


def test_a_file_without_sync_is_there_or_empty_or_gone(place: Place) -> None:
    disk = place.disk()
    write(disk.directory / "new", b"new")
    assert outcomes(place, disk, "new") == {None, b"", b"new", b"\0\0\0"}


def test_a_synced_file_lasts_once_its_directory_is_synced(place: Place) -> None:
    disk = place.disk()
    write(disk.directory / "new", b"new", disk)
    assert outcomes(place, disk, "new") == {None, b"new"}
    sync_directory(disk.directory, sync=disk.sync)
    assert outcomes(place, disk, "new", 20) == {b"new"}


def test_a_kill_loses_nothing_and_syncs_nothing(place: Place) -> None:
    disk = place.disk()
    write(disk.directory / "new", b"new")
    killed = place.kill(place.kill(disk))
    assert (killed.directory / "new").read_bytes() == b"new"
    assert len(outcomes(place, killed, "new")) > 1


def test_a_deleted_file_comes_back_unless_the_directory_was_synced(place: Place) -> None:
    disk = place.disk()
    path = disk.directory / "it"
    write_atomically(path, b"here", sync=disk.sync)
    path.unlink()
    assert outcomes(place, disk, "it") == {None, b"here"}
    assert outcomes(place, place.kill(disk), "it") == {None, b"here"}
    sync_directory(disk.directory, sync=disk.sync)
    assert outcomes(place, disk, "it", 20) == {None}


def test_sectors_are_torn_from_each_other_and_never_in_themselves(place: Place) -> None:
    disk = place.disk()
    path = disk.directory / "it"
    write_atomically(path, b"o" * 2048, sync=disk.sync)
    write(path, b"n" * 2048)
    found = outcomes(place, disk, "it", 200)
    pieces = {
        data[at : at + 512] for data in found if data is not None for at in range(0, 2048, 512)
    }
    assert pieces == {b"o" * 512, b"n" * 512}
    assert len(found) > 8
    assert any(data and data.startswith(b"o" * 512 + b"n" * 512) for data in found)


def test_after_a_failed_sync_the_next_one_writes_nothing_again(place: Place) -> None:
    found = set[bytes | None]()
    for seed in range(20):
        disk = place.disk(seed)
        path = disk.directory / "it"
        write_atomically(path, b"old", sync=disk.sync)
        disk.fail_syncs(1)
        with pytest.raises(OSError, match=r"\[Errno 5\]"):
            write(path, b"new", disk)
        write(path, b"", disk)  # which says that all is well
        found |= outcomes(place, disk, "it", 3)
    assert found == {b"old", b"new"}
    assert place.faults == ["fsync_error a file"] * 20


def test_syncs_fail_and_room_is_missing_for_as_long_as_they_are_told_to(place: Place) -> None:
    disk = place.disk()
    path = disk.directory / "it"
    disk.fail_syncs(until=5.0)
    for _ in range(2):
        with pytest.raises(OSError, match=r"\[Errno 5\]"):
            append_text(path, "a", sync=disk.sync)
    place.now = 5.0
    disk.fill(until=9.0)
    with pytest.raises(OSError, match="No space left"):
        append_text(path, "a", sync=disk.sync)
    disk.heal()
    append_text(path, "a", sync=disk.sync)


# --- files of a VM --------------------------------------------------------------------


def test_directories_that_were_made_durably_last(place: Place) -> None:
    disk = place.disk()
    make_directory(disk.directory / "a" / "b", sync=disk.sync)
    (disk.directory / "c").mkdir()
    found = [place.cut(disk).directory for _ in range(20)]
    assert all((each / "a" / "b").is_dir() for each in found)
    assert len({(each / "c").is_dir() for each in found}) == 2


def test_a_file_is_replaced_whole_or_not_at_all(place: Place) -> None:
    disk = place.disk()
    path = disk.directory / "it"
    write_atomically(path, b"old" * 500, sync=disk.sync)
    seen = set[bytes]()

    def look(_: str) -> None:
        seen.update(data for data in outcomes(place, disk, "it", 10) if data is not None)

    disk.before_operation = look
    write_atomically(path, b"new" * 500, sync=disk.sync)
    assert seen == {b"old" * 500, b"new" * 500}
    disk.before_operation = None
    assert outcomes(place, disk, "it", 20) == {b"new" * 500}


def test_what_an_outbox_has_taken_outlives_every_loss_of_power(place: Place) -> None:
    disk = place.disk()
    state = disk.directory / "vm" / "state"
    outbox = OutboxFile(state, disk.sync)
    outbox.open()
    try:
        kept: list[bytes] = []
        for number in range(30):
            line = _report(number)
            outbox.append(line)
            kept.append(line)
            after = place.cut(disk).directory / "vm" / "state" / "outbox.jsonl"
            assert after.read_bytes() == b"".join(kept)
    finally:
        outbox.close()


def _report(number: int) -> bytes:
    return f'{{"type":"fire_and_forget","id":"{number}"}}\n'.encode()


# --- databases ------------------------------------------------------------------------


def connect(disk: SimulatedDisk, synchronous: str) -> apsw.Connection:
    connection = apsw.Connection(str(disk.directory / "x.db"), vfs=disk.sqlite_vfs)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
    return connection


def rows(disk: SimulatedDisk) -> int:
    path = disk.directory / "x.db"
    if not path.exists():
        return 0
    with contextlib.closing(apsw.Connection(str(path), vfs=disk.sqlite_vfs)) as connection:
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:  # type: ignore[index]
            return 0
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])  # type: ignore[index]


@pytest.mark.parametrize("synchronous", ["full", "off"])
def test_a_commit_lasts_if_it_was_synced_and_only_then(place: Place, synchronous: str) -> None:
    disk = place.disk()
    with contextlib.closing(connect(disk, synchronous)) as connection:
        for _ in range(5):
            connection.execute("INSERT INTO t VALUES (?)", (os.urandom(2000),))
        found = {rows(place.cut(disk)) for _ in range(30)}
        killed = rows(place.kill(disk))
    assert killed == 5
    if synchronous == "full":
        assert found == {5}
    else:
        assert min(found) < 5


def test_readers_beside_the_writer_share_its_memory(place: Place) -> None:
    disk = place.disk()
    with (
        contextlib.closing(connect(disk, "full")) as writer,
        contextlib.closing(connect(disk, "full")) as reader,
    ):
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
        writer.execute("INSERT INTO t VALUES (1)")
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM t").fetchall() == [(1,)]


# --- the store ------------------------------------------------------------------------


def ports_on(disk: SimulatedDisk) -> Ports:
    return attrs.evolve(simulated_ports(1), disk=disk)


def database(disk: SimulatedDisk) -> Path:
    return disk.directory / "data" / "semibot.db"


async def acknowledge(
    disk: SimulatedDisk, acknowledged: list[str], goes_on: Callable[[], bool]
) -> None:
    """Open a store again and again, and note what it says is stored."""
    names = iter(ALL_NAMES)
    for commits in (1, 14, 5):
        # An error may keep it from opening, or a commit from happening.
        with contextlib.suppress(StoreError, ConfigError):
            async with open_sqlite_store(
                database(disk), ports=ports_on(disk), deadlines=Deadlines()
            ) as store:
                for name in itertools.islice(names, commits):
                    if not goes_on():
                        return
                    size = 20_000 if name == "user7" else 9
                    with contextlib.suppress(StoreError):
                        await store.ensure_user(name, "o" * size, vm_mode="local")
                        if goes_on():
                            acknowledged.append(name)


ALL_NAMES = [f"user{number}" for number in range(20)]


async def crash(place: Place, seed: int, *, errors: bool) -> set[str]:
    """Let a store crash somewhere, then again; return what was acknowledged and is lost."""
    draw = random.Random(f"crash {seed}")
    disk = place.disk(seed)
    left = draw.randrange(1, 400)
    successors: list[SimulatedDisk] = []
    acknowledged: list[str] = []

    def count_down(_: str) -> None:
        nonlocal left
        left -= 1
        if errors and acknowledged and draw.random() < 0.05:
            disk.fail_syncs(1)
        if left == 0:
            successors.append(draw.choice([place.cut, place.kill])(disk))

    disk.before_operation = count_down
    await acknowledge(disk, acknowledged, lambda: not successors)
    disk.before_operation = None
    after = successors[0] if successors else place.cut(disk)
    # What somebody is shown after the crash has to outlive the next one as well.
    async with open_sqlite_store(
        database(after), ports=ports_on(after), deadlines=Deadlines()
    ) as store:
        shown = {name for name in ALL_NAMES if await store.get_user(name) is not None}
        last = draw.choice([place.cut, lambda killed: place.cut(place.kill(killed))])(after)
    async with open_sqlite_store(
        database(last), ports=ports_on(last), deadlines=Deadlines()
    ) as store:
        again = {name for name in ALL_NAMES if await store.get_user(name) is not None}
    return (set(acknowledged) - shown) | (shown - again)


@pytest.mark.parametrize("errors", [False, True], ids=["crashes", "crashes and errors"])
def test_no_acknowledged_commit_is_lost_wherever_it_crashes(place: Place, errors: bool) -> None:
    lost = {
        seed: found
        for seed in range(CRASH_POINTS)
        if (found := trio.run(lambda seed=seed: crash(place, seed, errors=errors)))
    }
    assert lost == {}
    assert sum(disk.lost > 0 for disk in place.disks) > CRASH_POINTS // 4
    assert bool(place.faults) == errors


async def reopen_badly(place: Place, seed: int) -> str:
    """Kill a host in a commit, let its successor fail as it opens; return how the next one is."""
    draw = random.Random(f"reopening {seed}")
    disk = place.disk(seed)
    left = draw.randrange(40, 200)
    successors: list[SimulatedDisk] = []

    def count_down(name: str) -> None:
        nonlocal left
        left -= 1
        if left <= 0 and not successors and name.endswith("-wal"):
            successors.append(place.kill(disk))

    disk.before_operation = count_down
    async with open_sqlite_store(
        database(disk), ports=ports_on(disk), deadlines=Deadlines()
    ) as store:
        for name in ALL_NAMES:
            await store.ensure_user(name, "o" * draw.choice([9, 9000]), vm_mode="local")
    disk.before_operation = None
    if not successors:
        return "ok"
    after = successors[0]

    def fail_once(name: str) -> None:
        if name.endswith("-wal"):  # which is written again
            after.before_operation = None
            after.fail_syncs(1)

    after.before_operation = fail_once
    with contextlib.suppress(StoreError, ConfigError):
        async with open_sqlite_store(
            database(after), ports=ports_on(after), deadlines=Deadlines()
        ) as store:
            await store.check()
    after.heal()
    with contextlib.closing(apsw.Connection(str(database(after)), vfs=after.sqlite_vfs)) as found:
        return str(found.execute("PRAGMA integrity_check").fetchone()[0])


def test_a_database_is_whole_after_a_host_that_could_not_open_it(place: Place) -> None:
    found = {trio.run(reopen_badly, place, seed) for seed in range(CRASH_POINTS)}
    assert found == {"ok"}
    assert place.faults


async def test_a_failed_sync_and_a_full_disk_are_told_and_nothing_of_it_is_stored(
    place: Place,
) -> None:
    disk = place.disk()
    async with open_sqlite_store(
        database(disk), ports=ports_on(disk), deadlines=Deadlines()
    ) as store:
        await store.ensure_user("ann", "org", vm_mode="local")
        disk.fail_syncs(1)
        with pytest.raises(StoreError, match="the disk failed") as caught:
            await store.ensure_user("bob", "org", vm_mode="local")
        assert caught.value.code == "STORE_FAILED"
        assert await store.get_user("bob") is None
        disk.fill(until=1.0)
        with pytest.raises(StoreError, match="the disk is full"):
            await store.ensure_user("bob", "o" * 200_000, vm_mode="local")
        assert await store.get_user("bob") is None
        place.now = 1.0
        await store.ensure_user("eve", "org", vm_mode="local")
        after = place.cut(disk)
    assert place.faults == ["fsync_error semibot.db-wal", "disk_full semibot.db-wal"]
    async with open_sqlite_store(
        database(after), ports=ports_on(after), deadlines=Deadlines()
    ) as store:
        found = {name for name in ("ann", "bob", "eve") if await store.get_user(name) is not None}
    assert found == {"ann", "eve"}


async def test_a_store_that_does_not_sync_is_found_out(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite._Engine._connect

    def careless(engine: sqlite._Engine) -> apsw.Connection:
        connection = connect(engine)
        connection.execute("PRAGMA synchronous = off")
        return connection

    monkeypatch.setattr(sqlite._Engine, "_connect", careless)
    found = 0
    for seed in range(20):
        try:
            found += bool(await crash(place, seed, errors=False))
        except StoreError:  # the database is damaged
            found += 1
    assert found > 5
