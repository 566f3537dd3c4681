"""Turn exceptions into one line for people and an exit code for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from semibot.errors import ConfigError, HostRefused, HostUnreachable, SemibotError, UsageError

from . import exits


class OutputClosed(Exception):
    """Raised when nobody reads standard output any more."""


def explain(error: BaseException) -> tuple[list[str], int] | None:
    """Return what to say about *error*, and the exit code, or None for a bug.

    Args:
        error: What ended the command. A group is explained if all in it can be; then
            the gravest exit code counts.
    """
    lines: list[str] = []
    codes: list[int] = []
    for leaf in _leaves(error):
        match leaf:
            case SemibotError():
                lines.append(f"semibot: {leaf}")
                codes.append(_exit_code(leaf))
            case KeyboardInterrupt():
                codes.append(exits.INTERRUPTED)
            case OutputClosed():
                codes.append(exits.FAILED)
            case _:
                return None
    return lines, max(codes)


def is_configuration_code(code: str) -> bool:
    """Return whether an ``execution_error`` of this code is for the operator to mend."""
    return code.endswith("_NOT_CONFIGURED") or any(
        kind.code == code for kind in _kinds(ConfigError)
    )


def _exit_code(error: SemibotError) -> int:
    match error:
        case ConfigError() | HostUnreachable() | HostRefused(status=401 | 403):
            return exits.CONFIGURATION
        case HostRefused(status=400 | 404 | 413 | 422):
            return exits.USAGE
        case UsageError():
            return exits.USAGE
        case _:
            return exits.FAILED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for child in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(child)
    else:
        yield error


def _kinds(kind: type[SemibotError]) -> Iterator[type[SemibotError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)
