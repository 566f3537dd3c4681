"""Structured logging that stays out of the way of the program that uses semibot.

Loggers are structlog's, on top of the standard library's: an application that configures
nothing sees warnings on standard error and nothing else, and one that uses ``logging`` or
structlog decides by itself. Event names are constant phrases and data are keyword fields;
both are also on the record as the mapping ``record.semibot``, for other formatters.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import structlog


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module.

    Args:
        name: The module's ``__name__``.
    """
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _to_record,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger


def _to_record(
    _: object, method: str, fields: structlog.types.EventDict
) -> tuple[tuple[str], Mapping[str, object]]:
    """Turn fields into the arguments of a standard log call."""
    exc_info = fields.pop("exc_info", method == "exception")
    record = dict(fields)
    event = str(fields.pop("event"))
    text = " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])
    return (text,), {"extra": {"semibot": record}, "exc_info": exc_info}
