"""Send what semibot logs to standard error, one plain line each."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

import structlog

from .clean import clean

if TYPE_CHECKING:
    from structlog.typing import WrappedLogger


def configure_logs(*, is_verbose: bool) -> None:
    """Show warnings and errors, and with *is_verbose* also what is merely of interest.

    Args:
        is_verbose: Whether to show the level INFO.
    """
    level = logging.INFO if is_verbose else logging.WARNING
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


def _render(_: WrappedLogger, __: str, entry: MutableMapping[str, object]) -> str:
    level, event = entry.pop("level"), entry.pop("event")
    traceback = entry.pop("exception", None)
    fields = ", ".join(f"{name}={value}" for name, value in entry.items())
    line = f"{level}: {event} ({fields})" if fields else f"{level}: {event}"
    return clean(line if traceback is None else f"{line}\n{traceback}")
