"""Make a model request again when that may help and cannot double anything.

What is made again: errors of the model that are marked retryable, and the deadlines
``model.response`` and ``model.idle``. What resets nothing and ends it: the third attempt,
text that was already passed on, and a pause that would outlast the caller's deadline.
Reasoning that was passed on is no obstacle, because it is never part of the answer.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

import attrs
import trio

from semibot.errors import DeadlineExceeded, ModelError
from semibot.logs import get_logger
from semibot.models.base import Delta, Model, ModelRequest, Reply, TextDelta
from semibot.wire.receipts import ActivityKind

log: Final = get_logger(__name__)

MAX_ATTEMPTS: Final = 3
"""How often one request is made at most."""

BACKOFF_BASE: Final = 0.5
"""Longest pause after the first attempt, in seconds; it doubles with each attempt."""

BACKOFF_CAP: Final = 10.0
"""Longest pause of all, in seconds, unless the server asks for more."""


class ActivityLog(Protocol):
    """What a run has under way; :class:`semibot.tools.Ledger` is one."""

    def open(self, kind: ActivityKind, id: str, name: str) -> AbstractContextManager[object]:
        """Enter something for the length of a block."""
        ...


def backoff(attempt: int, source: random.Random) -> float:
    """Return how long to pause after a failed attempt, in seconds.

    Args:
        attempt: Number of the attempt that failed, from 1.
        source: Where the jitter comes from. The pause is drawn from the whole range, so
            that many clients which failed together do not come back together.
    """
    return source.uniform(0.0, min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** (attempt - 1)))


async def stream_reply(
    model: Model,
    request: ModelRequest,
    on_delta: Callable[[Delta], Awaitable[None]],
    *,
    ledger: ActivityLog,
    call_id: str,
    source: random.Random,
) -> Reply:
    """Ask *model*, pass on every piece as it comes, and return the reply as a whole.

    Each attempt is in *ledger* while it is under way. Pauses end with the caller's
    scopes; a pause that would end after the caller's deadline is not begun.

    Args:
        model: An open model.
        request: What to ask.
        on_delta: Called with each piece, in order. Its exceptions are raised unchanged.
        ledger: What the run has under way.
        call_id: Identifier of this request within the run.
        source: Where the jitter of the pauses comes from.

    Returns:
        The reply of the first attempt that was complete.

    Raises:
        ModelNotConfigured: If a key or name is missing.
        ModelError: If the last attempt failed, or one that must not be made again.
        DeadlineExceeded: Likewise, for ``model.response`` and ``model.idle``.
    """
    attempt = 1
    while True:
        progress = _Progress()
        try:
            with ledger.open("model_call", call_id, model.name):
                return await _ask(model, request, on_delta, progress)
        except (ModelError, DeadlineExceeded) as exc:
            if attempt == MAX_ATTEMPTS or not _may_repeat(exc, progress):
                raise
            pause = backoff(attempt, source)
            if isinstance(exc, ModelError) and exc.retry_after is not None:
                pause = max(pause, exc.retry_after)
            # Whoever is cancelled meanwhile has no deadline left, and is to hear of that.
            await trio.lowlevel.checkpoint_if_cancelled()
            if trio.current_time() + pause >= trio.current_effective_deadline():
                raise
            log.info(
                "model request will be made again",
                model=model.name,
                attempt=attempt,
                code=exc.code,
                seconds=round(pause, 3),
            )
        await trio.sleep(pause)
        attempt += 1


@attrs.define(eq=False)
class _Progress:
    has_text: bool = False
    is_delivering: bool = False


async def _ask(
    model: Model,
    request: ModelRequest,
    on_delta: Callable[[Delta], Awaitable[None]],
    progress: _Progress,
) -> Reply:
    async with model.stream(request) as stream:
        async for item in stream:
            if isinstance(item, Reply):
                return item
            progress.has_text |= isinstance(item, TextDelta)
            progress.is_delivering = True
            await on_delta(item)
            progress.is_delivering = False
    raise ModelError("the model's stream ended without a reply", code="MODEL_PROTOCOL")


def _may_repeat(error: ModelError | DeadlineExceeded, progress: _Progress) -> bool:
    if progress.has_text or progress.is_delivering:
        return False
    if isinstance(error, DeadlineExceeded):
        return error.deadline.startswith("model.")
    return error.is_retryable
