"""What the store's SQL is written against: a transaction, and rows with typed columns.

The modules ``_vms``, ``_reports``, ``_sessions``, ``_intake`` and ``_reading`` hold plain
functions ``fn(db, ...)`` of the same name and arguments as the methods of
:class:`~semibot.store.base.Store`. Each runs in a worker thread inside one transaction (a
savepoint of it, when writers are grouped), never awaits, and knows no driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, final

from semibot.errors import StoreError
from semibot.wire.codec import JsonObject, JsonValue, load_json

SqlValue: TypeAlias = str | int | float | bytes | None
"""What a column holds."""


@final
class Row:
    """One row of an answer; columns are asked for by name and type.

    A column that is not of the type that is asked for is a mistake in the SQL or a damaged
    database, and raises :exc:`~semibot.errors.StoreError`.

    Args:
        positions: Index of each column by its name; shared by the rows of an answer.
        values: The columns.
    """

    __slots__ = ("_positions", "_values")

    def __init__(self, positions: Mapping[str, int], values: Sequence[SqlValue]) -> None:
        self._positions = positions
        self._values = values

    def text(self, name: str) -> str:
        """Return a TEXT column."""
        value = self._values[self._positions[name]]
        if isinstance(value, str):
            return value
        raise _wrong(name, "text")

    def integer(self, name: str) -> int:
        """Return an INTEGER column, also a boolean one."""
        value = self._values[self._positions[name]]
        if isinstance(value, int):
            return value
        raise _wrong(name, "an integer")

    def flag(self, name: str) -> bool:
        """Return an INTEGER column that holds 0 or 1."""
        return self.integer(name) != 0

    def number(self, name: str) -> float:
        """Return a REAL or INTEGER column."""
        value = self._values[self._positions[name]]
        if isinstance(value, int | float):
            return value
        raise _wrong(name, "a number")

    def text_or_none(self, name: str) -> str | None:
        """Return a TEXT column that may be NULL."""
        return None if self.is_null(name) else self.text(name)

    def integer_or_none(self, name: str) -> int | None:
        """Return an INTEGER column that may be NULL."""
        return None if self.is_null(name) else self.integer(name)

    def number_or_none(self, name: str) -> float | None:
        """Return a REAL column that may be NULL."""
        return None if self.is_null(name) else self.number(name)

    def json(self, name: str) -> JsonValue:
        """Return the value of a column that holds JSON text; NULL is None."""
        return None if self.is_null(name) else load_json(self.text(name))

    def object(self, name: str) -> JsonObject:
        """Return the JSON object of a column that holds its text."""
        value = self.json(name)
        if isinstance(value, Mapping):
            return value
        raise _wrong(name, "a JSON object")

    def object_or_none(self, name: str) -> JsonObject | None:
        """Return the JSON object of a column that may be NULL."""
        return None if self.is_null(name) else self.object(name)

    def is_null(self, name: str) -> bool:
        """Return whether the column is NULL."""
        return self._values[self._positions[name]] is None


def _wrong(name: str, wanted: str) -> StoreError:
    return StoreError(f"column {name} of the database does not hold {wanted}")


class Database(Protocol):
    """One open transaction.

    SQL is one statement with ``?`` for every value. For a list of values, pass one JSON text
    and write ``IN (SELECT value FROM json_each(?))``. An exception of your own (``NotFound``,
    ``SessionBusy``, ...) undoes all that your function did; the driver's exceptions are not
    yours to catch.
    """

    def execute(self, sql: str, params: Sequence[SqlValue] = ()) -> list[Row]:
        """Run one statement and return all its rows (also those of ``RETURNING``)."""
        ...

    def one(self, sql: str, params: Sequence[SqlValue] = ()) -> Row | None:
        """Run one statement and return its first row, if it has one."""
        ...

    def change(self, sql: str, params: Sequence[SqlValue] = ()) -> int:
        """Run one INSERT, UPDATE or DELETE and return how many rows it touched itself."""
        ...

    def change_many(self, sql: str, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run one INSERT, UPDATE or DELETE for each row of values."""
        ...

    def now(self) -> int:
        """Return when the transaction began, in milliseconds since 1970.

        Never less than what an earlier transaction of this store saw, even if the system's
        clock was set back.
        """
        ...
