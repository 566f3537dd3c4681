"""Send what semibot logs to standard error, one plain line each."""

from __future__ import annotations

import logging
import sys
from typing import final

from .clean import clean


@final
class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return clean(f"{record.levelname.lower()}: {super().format(record)}")


def configure_logs(*, is_verbose: bool) -> None:
    """Show warnings and errors, and with *is_verbose* also what is merely of interest.

    Args:
        is_verbose: Whether to show the level INFO.
    """
    logger = logging.getLogger("semibot")
    logger.setLevel(logging.INFO if is_verbose else logging.WARNING)
    logger.propagate = False
    handler = logging.NullHandler() if sys.stderr is None else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter())
    logger.handlers = [handler]  # so that a second call does not say everything twice


def hush_logs() -> None:
    """Say no more: the user does not want to wait, so clean-up is cut short on purpose.

    Has no effect if what is merely of interest is shown.
    """
    logger = logging.getLogger("semibot")
    if logger.level > logging.INFO:
        logger.setLevel(logging.CRITICAL)
