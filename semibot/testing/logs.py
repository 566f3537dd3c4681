"""See what semibot logged."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import cast, final


@final
class _Collector(logging.Handler):
    def __init__(self, entries: list[Mapping[str, object]]) -> None:
        super().__init__(logging.DEBUG)
        self._entries = entries

    def emit(self, record: logging.LogRecord) -> None:
        fields = cast("Mapping[str, object]", record.__dict__.get("semibot", {}))
        self._entries.append({**fields, "log_level": record.levelname.lower()})


@contextmanager
def capture_logs() -> Generator[list[Mapping[str, object]]]:
    """Collect what semibot logs while the block runs, at every level.

    Yields:
        The entries so far: ``event``, ``log_level`` and the fields of each.
    """
    logger = logging.getLogger("semibot")
    entries: list[Mapping[str, object]] = []
    collector = _Collector(entries)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield entries
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagates
