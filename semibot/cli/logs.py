"""Send what semibot logs to standard error, one plain line each.

A run's end is said on the screen. What is logged about the same end, for programs that
have no screen, would say it twice, and is left out unless the user asks for it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Final, final

from .clean import clean

_SAID_ELSEWHERE: Final = (
    "semibot.adapters.",
    "semibot.session.conductor",
    "semibot.session.execution",
    "semibot.session.hosting",
    "semibot.tools.endings",
)
"""Whose warnings tell how a run or one of its calls ended, which its events tell as well."""


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING or not record.name.startswith(_SAID_ELSEWHERE)


@final
class _PlainFormatter(logging.Formatter):
    def __init__(self, take_line: Callable[[], str]) -> None:
        super().__init__()
        self._take_line = take_line

    def format(self, record: logging.LogRecord) -> str:
        # Asked for last, because the line is written right after.
        line = clean(f"{record.levelname.lower()}: {super().format(record)}")
        return self._take_line() + line


def configure_logs(*, is_verbose: bool, take_line: Callable[[], str] = str) -> None:
    """Show warnings and errors, and with *is_verbose* also what is merely of interest.

    Args:
        is_verbose: Whether to show the level INFO, and what the screen says as well.
        take_line: Called for each line, in any thread; returns what ends the line that
            the screen has open, if there is one.
    """
    logger = logging.getLogger("semibot")
    logger.setLevel(logging.INFO if is_verbose else logging.WARNING)
    logger.propagate = False
    handler = logging.NullHandler() if sys.stderr is None else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter(take_line))
    if not is_verbose:
        handler.addFilter(_is_news)
    logger.handlers = [handler]  # so that a second call does not say everything twice


def hush_logs() -> None:
    """Say no more: the user does not want to wait, so clean-up is cut short on purpose.

    Has no effect if what is merely of interest is shown.
    """
    logger = logging.getLogger("semibot")
    if logger.level > logging.INFO:
        logger.setLevel(logging.CRITICAL)
