"""What a host's database has to say of itself after any cancel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import apsw
import trio
import trio.testing

from semibot.config import Deadlines
from semibot.errors import SemibotError
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports

TERMINAL: Final = ("execution_complete", "execution_error")

LOG: Final = {"semibot.db-wal", "semibot.db-shm"}
"""What a store that is closed does not leave beside its database."""


def check_database(
    path: Path, *, users: Iterable[str] = (), events: Iterable[tuple[str, int]] = ()
) -> str | None:
    """Open the database as the next host would, and find what is wrong with it.

    Args:
        path: The database; one that was never made is fine if nothing was acknowledged.
        users: Users that were acknowledged.
        events: Sessions, and the number up to which each was acknowledged.
    """
    users, events = list(users), list(events)
    if not path.exists():
        return f"acknowledged and gone: {users} {events}" if users or events else None
    left = {each.name for each in path.parent.iterdir()}
    if left & LOG:
        return f"beside the database is {left}"
    if path.stat().st_size == 0:  # cancelled before it was migrated
        return f"acknowledged and gone: {users} {events}" if users or events else None
    try:
        trio.run(_open_again, path, clock=trio.testing.MockClock(autojump_threshold=0))
    except SemibotError as exc:
        return f"the database does not open again: {exc}"
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        return next(_problems(connection, users, events), None)


async def _open_again(path: Path) -> None:
    ports = simulated_ports()
    async with open_sqlite_store(path, ports=ports, deadlines=Deadlines()) as store:
        await store.check()


def _problems(
    connection: apsw.Connection, users: list[str], events: list[tuple[str, int]]
) -> Iterable[str]:
    said = connection.execute("PRAGMA integrity_check").fetchall()
    if said != [("ok",)]:
        yield f"integrity: {said}"
    known = {row[0] for row in connection.execute("SELECT id FROM users")}
    if missing := set(users) - known:
        yield f"acknowledged and gone: {missing}"
    last = dict(connection.execute("SELECT id, last_seq FROM sessions").fetchall())
    gone = {row[0] for row in connection.execute("SELECT session_id FROM tombstones")}
    for session_id, seq in events:
        if session_id not in gone and last.get(session_id, -1) < seq:
            yield f"{session_id}: {seq} was acknowledged, {last.get(session_id)} is stored"
    ends: dict[str, int] = {}
    for session_id, last_seq in last.items():
        rows = connection.execute(
            "SELECT seq, run_id, type FROM events WHERE session_id = ? ORDER BY seq", (session_id,)
        ).fetchall()
        if [row[0] for row in rows] != list(range(1, int(last_seq) + 1)):
            yield f"{session_id} has a gap: {rows}, last is {last_seq}"
        for seq, run_id, kind in rows:
            if run_id in ends:
                yield f"{run_id} has ended at {ends[run_id]} and says {kind} at {seq}"
            if kind in TERMINAL:
                ends[str(run_id)] = int(seq)
    for run_id, outcome in connection.execute("SELECT id, outcome FROM runs"):
        if run_id in ends and outcome is None:
            yield f"{run_id} has an end and no outcome"
