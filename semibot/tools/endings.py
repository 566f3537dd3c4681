"""Put into words how a tool call ended."""

from __future__ import annotations

import traceback
from pathlib import PurePath
from typing import Final, cast

import attrs
import trio

from semibot.errors import SemibotError
from semibot.logs import get_logger
from semibot.wire.codec import JsonValue

from .calls import CallOutcome, CallRequest, CallResult, CreatedFile
from .paths import ConfinedDirectory
from .results import shorten_error
from .threads import BlockingCall

log: Final = get_logger(__name__)

_MAX_FILES: Final = 100
_MAX_FRAMES: Final = 5


@attrs.frozen
class Ending:
    """How a decided call ended."""

    outcome: CallOutcome
    """How."""
    content: str
    """What the model reads."""
    error: str | None = None
    """What went wrong, in words."""
    result: JsonValue = None
    """What the tool returned, for events."""
    files: tuple[CreatedFile, ...] = ()
    """Files that it wrote."""


def senseless(request: CallRequest, error: str) -> CallResult:
    """Return the result of a call that makes no sense, so that nothing was decided."""
    shown = shorten_error(error)
    return CallResult(
        call_id=request.id,
        tool_name=request.name,
        outcome="error",
        content=f"Error: {shown}",
        error=shown,
        duration_ms=0,
    )


def failed(error: str) -> Ending:
    """Return the ending of a call that did not work."""
    shown = shorten_error(error)
    return Ending("error", f"Error: {shown}", shown)


def timed_out(name: str, seconds: float, thread: BlockingCall | None) -> Ending:
    """Return the ending of a call whose deadline passed.

    Args:
        name: The tool.
        seconds: The deadline, in seconds.
        thread: The worker thread of a sync tool.
    """
    if thread is not None and not thread.has_started:
        return failed(
            f"tool capacity: no worker thread became free for {name} within {seconds:g} s; "
            "it was not run"
        )
    error = f"{name} gave no result within {seconds:g} s"
    if thread is not None and thread.activity.is_open:
        error += "; it cannot be stopped and may still be at work"
    return Ending("timeout", f"Timeout: {error}", error)


def say(exc: Exception, name: str, call_id: str) -> str:
    """Return what a model reads about an exception; log those that nobody meant for it.

    Args:
        exc: What the tool raised.
        name: The tool.
        call_id: The call.
    """
    if isinstance(exc, SemibotError):
        return str(exc)
    leaves = _leaves(exc)
    kind = type(leaves[0]).__name__
    log.warning("tool raised", tool=name, call_id=call_id, kind=kind, where=_where(leaves[0]))
    if leaves != [exc]:
        kinds = ", ".join(type(leaf).__name__ for leaf in leaves)
        return f"{name} failed in several ways: {kinds}"
    return f"{type(exc).__name__}: {_text_of(exc)}"


def is_cancellation(exc: BaseException) -> bool:
    """Return whether *exc* is a cancellation, or a group with one in it."""
    return any(isinstance(leaf, trio.Cancelled) for leaf in _leaves(exc))


def _where(exc: BaseException) -> str:
    """Return the innermost places, without the values in them: those may be secrets."""
    frames = list(traceback.walk_tb(exc.__traceback__))[-_MAX_FRAMES:]
    return " > ".join(
        f"{PurePath(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
        for frame, line in frames
    )


def _text_of(exc: Exception) -> str:
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - a tool's own exception class, with a bug in __str__
        return "(no text)"


def _leaves(exc: BaseException) -> list[BaseException]:
    if not isinstance(exc, BaseExceptionGroup):
        return [exc]
    group = cast("BaseExceptionGroup[BaseException]", exc)
    return [leaf for each in group.exceptions for leaf in _leaves(each)]


def describe_files(files: ConfinedDirectory, paths: tuple[str, ...]) -> tuple[CreatedFile, ...]:
    """Return the facts about the files that a tool has reported; blocks.

    Args:
        files: The workspace.
        paths: Their paths; those that are no files in the workspace are left out.
    """
    found: list[CreatedFile] = []
    for path in paths[:_MAX_FILES]:
        try:
            facts = files.describe(path)
        except SemibotError as exc:
            log.warning("reported file not found", path=path[:200], error=str(exc))
        else:
            found.append(CreatedFile(path=facts.path, size=facts.size, mime_type=facts.mime_type))
    return tuple(found)
