"""A model that says what it was told to say: for tests, examples and simulations.

It does no I/O and sleeps with :func:`trio.sleep` only, so that a mock clock controls it.
It keeps the same deadlines as a real model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeAlias, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import ModelError
from semibot.lifetimes import deadline
from semibot.models.base import (
    Model,
    ModelRequest,
    ModelStream,
    ReasoningDelta,
    Reply,
    StreamItem,
    TextDelta,
)
from semibot.ports import Ports
from semibot.wire.chat import Message, ToolCallRequest
from semibot.wire.codec import JsonObject, dump_json
from semibot.wire.events import Usage


@attrs.frozen
class Say:
    """Answer in words."""

    text: str
    """The answer."""
    chunk: int = attrs.field(default=0, kw_only=True)
    """Length of the pieces that it comes in, in characters; 0 is one piece."""
    delay: float = attrs.field(default=0.0, kw_only=True)
    """Pause before each piece, in seconds."""
    reasoning: str = attrs.field(default="", kw_only=True)
    """What the model thinks first, in one piece."""
    usage: Usage | None = attrs.field(default=None, kw_only=True)
    """Tokens to report; None counts words."""
    finish_reason: str = attrs.field(default="stop", kw_only=True)
    """Why the model stops."""


def _as_tuple(
    requests: ToolCallRequest | Iterable[ToolCallRequest],
) -> tuple[ToolCallRequest, ...]:
    return (requests,) if isinstance(requests, ToolCallRequest) else tuple(requests)


@attrs.frozen
class Call:
    """Ask for tool calls, after some words if there are any."""

    requests: tuple[ToolCallRequest, ...] = attrs.field(converter=_as_tuple)
    """The calls, in order, one or several; :func:`tool_request` makes them."""
    text: str = attrs.field(default="", kw_only=True)
    """What is said beside them."""
    delay: float = attrs.field(default=0.0, kw_only=True)
    """Pause before the words and before the calls, in seconds."""


@attrs.frozen
class Fail:
    """Fail with an error."""

    error: Exception
    """What to raise: a :exc:`~semibot.errors.ModelError`, as a real model would."""
    after: str = attrs.field(default="", kw_only=True)
    """Text to stream first, in one piece."""


@attrs.frozen
class Hang:
    """Never answer, or never end the answer: the model's deadlines or the caller must."""

    after: str = attrs.field(default="", kw_only=True)
    """Text to stream first, in one piece."""


Turn: TypeAlias = Say | Call | Fail | Hang
"""What a scripted model does with one request."""

TurnSource: TypeAlias = Turn | Callable[[ModelRequest], Turn]
"""A turn, or a function that chooses one when the request is there."""


def tool_request(call_id: str, name: str, arguments: JsonObject | str = "{}") -> ToolCallRequest:
    """Return a tool call for :class:`Call`.

    Args:
        call_id: Identifier that the result will repeat.
        name: The tool.
        arguments: Its arguments; a string is passed as it is, malformed or not.
    """
    text = arguments if isinstance(arguments, str) else dump_json(arguments)
    return ToolCallRequest(id=call_id, name=name, arguments=text)


def scripted_model(turns: Iterable[TurnSource], *, name: str = "scripted") -> Script:
    """Return a model factory that plays *turns*, one a request.

    Args:
        turns: What to do, in order. A request after the last turn fails.
        name: The model's name.

    Returns:
        The factory; its :attr:`Script.requests` records what was asked.
    """
    return Script(deque(turns), name)


@final
@attrs.define(eq=False)
class Script:
    """Turns to play, and the requests that were made: a model factory.

    All models that it opens play the same turns, each turn once.
    """

    _turns: deque[TurnSource]
    name: str
    """Name of the models."""
    requests: list[ModelRequest] = attrs.field(factory=list[ModelRequest], init=False)
    """Every request so far, in order."""

    @property
    def turns_left(self) -> int:
        """How many turns were not played yet."""
        return len(self._turns)

    @asynccontextmanager
    async def __call__(self, ports: Ports, deadlines: Deadlines) -> AsyncGenerator[Model]:
        """Open a model; see :data:`semibot.models.ModelFactory`."""
        yield ScriptedModel(self.name, self._play, deadlines)

    def _play(self, request: ModelRequest) -> Turn:
        self.requests.append(request)
        if not self._turns:
            return Fail(
                ModelError(
                    f"the script has no turn for request {len(self.requests)}",
                    code="MODEL_PROTOCOL",
                )
            )
        turn = self._turns.popleft()
        return turn(request) if callable(turn) else turn


@final
@attrs.define(eq=False)
class ScriptedModel:
    """An open model that asks a function what to say."""

    name: str
    """Name for people."""
    _choose: Callable[[ModelRequest], Turn]
    _deadlines: Deadlines

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelStream]:
        """Play the next turn; see :class:`semibot.models.Model`."""
        await trio.lowlevel.checkpoint()
        stream = _ScriptedStream(_steps(self._choose(request), request), self._deadlines)
        await stream.begin()
        yield stream


@attrs.frozen
class _Step:
    delay: float
    outcome: StreamItem | Exception


@attrs.define(eq=False)
class _ScriptedStream:
    _steps: deque[_Step]
    _deadlines: Deadlines
    _first: StreamItem | None = None

    async def begin(self) -> None:
        """Play the first step, as a request waits for the first byte of its answer."""
        with deadline("model.response", self._deadlines.model_response):
            self._first = await self._play()

    def __aiter__(self) -> ModelStream:
        return self

    async def __anext__(self) -> StreamItem:
        if self._first is not None:
            await trio.lowlevel.checkpoint()
            first, self._first = self._first, None
            return first
        if not self._steps:
            raise StopAsyncIteration
        with deadline("model.idle", self._deadlines.model_idle):
            return await self._play()

    async def _play(self) -> StreamItem:
        step = self._steps.popleft()
        await trio.sleep(step.delay)
        if isinstance(step.outcome, Exception):
            raise step.outcome
        return step.outcome


def _steps(turn: Turn, request: ModelRequest) -> deque[_Step]:
    match turn:
        case Fail(error=error):
            return deque([*_text_steps(turn.after, 0, 0.0), _Step(0.0, error)])
        case Hang():
            never = ModelError("a hanging model woke up", code="MODEL_PROTOCOL")
            return deque([*_text_steps(turn.after, 0, 0.0), _Step(float("inf"), never)])
        case Call():
            said = _text_steps(turn.text, 0, turn.delay)
            message = Message(role="assistant", content=turn.text, tool_calls=turn.requests)
            reply = Reply(message=message, usage=_usage(turn, request), finish_reason="tool_calls")
            return deque([*said, _Step(turn.delay, reply)])
        case _:
            thought = [_Step(turn.delay, ReasoningDelta(text=turn.reasoning))]
            reply = Reply(
                message=Message(role="assistant", content=turn.text),
                usage=turn.usage or _usage(turn, request),
                finish_reason=turn.finish_reason,
            )
            return deque(
                [
                    *(thought if turn.reasoning else ()),
                    *_text_steps(turn.text, turn.chunk, turn.delay),
                    _Step(0.0, reply),
                ]
            )


def _text_steps(text: str, chunk: int, delay: float) -> list[_Step]:
    size = chunk or len(text) or 1
    return [
        _Step(delay, TextDelta(text=text[start : start + size]))
        for start in range(0, len(text), size)
    ]


def _usage(turn: Say | Call, request: ModelRequest) -> Usage:
    """Count words: not what a tokenizer says, but the same in every run."""
    return Usage(
        tokens_in=sum(len(message.content.split()) for message in request.messages),
        tokens_out=len(turn.text.split()) + sum(len(c.arguments.split()) for c in _calls(turn)),
    )


def _calls(turn: Say | Call) -> tuple[ToolCallRequest, ...]:
    return turn.requests if isinstance(turn, Call) else ()
