"""The steps that make the database what this version of semibot expects."""

from __future__ import annotations

import importlib.resources

import attrs


@attrs.frozen(kw_only=True)
class Migration:
    """One step; all of it happens in one transaction."""

    version: int
    """``PRAGMA user_version`` afterwards; the steps count from 1 without a gap."""
    sql: str = attrs.field(repr=False)
    """Its statements."""


def read_migrations() -> tuple[Migration, ...]:
    """Return every step, in order; the files are called ``<version>_<what>.sql``."""
    directory = importlib.resources.files("semibot.store").joinpath("migrations")
    names = sorted(entry.name for entry in directory.iterdir() if entry.name.endswith(".sql"))
    return tuple(
        Migration(
            version=int(name.partition("_")[0]),
            sql=directory.joinpath(name).read_text(encoding="utf-8"),
        )
        for name in names
    )
