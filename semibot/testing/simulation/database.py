"""What the host of a simulation has stored, read beside it.

The host's own driver reads it: another copy of SQLite would undo its file locks.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# The driver's stubs name a type that Python 3.11 does not have.

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, cast

import apsw

Row: TypeAlias = tuple[int | float | str | None, ...]
"""What one row holds."""

Rows: TypeAlias = list[Row]
"""The answer to a question."""


def rows_of(directory: Path, sql: str, *values: str) -> Rows:
    """Return the answer to a question to the database on a host's disk."""
    path = directory / "data" / "semibot.db"
    flags = apsw.SQLITE_OPEN_READWRITE  # a reader of a write-ahead log writes its index
    with contextlib.closing(apsw.Connection(str(path), flags=flags)) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        return cast("Rows", list(connection.execute(sql, values)))


def stored_ends(directory: Path) -> tuple[Mapping[str, int], frozenset[str]]:
    """Return the last event of each session, and which sessions were deleted."""
    ends = rows_of(directory, "SELECT id, last_seq FROM sessions")
    gone = rows_of(directory, "SELECT session_id FROM tombstones")
    return (
        {str(name): int(str(seq)) for name, seq in ends},
        frozenset(str(row[0]) for row in gone),
    )


def undone(directory: Path, reports: set[str]) -> list[str]:
    """Return what a host has still to do.

    Args:
        directory: Its disk.
        reports: What VMs have reported; each has to be in the log.
    """
    runs = rows_of(directory, "SELECT id, session_id FROM runs WHERE outcome IS NULL")
    commands = rows_of(directory, "SELECT id, kind, session_id FROM commands WHERE is_done = 0")
    known = {event for (event,) in rows_of(directory, "SELECT event FROM audit_log")}
    return [
        *(f"run {str(run)[:6]} of {str(session)[:6]} is open" for run, session in runs),
        *(
            f"{kind} {str(name)[:6]} of {str(session)[:6]} is not done"
            for name, kind, session in commands
        ),
        *(f"{event} is missing" for event in sorted(reports - known)),
    ]
