"""The real SDK against the fake server, with a clock that only moves when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.errors import DeadlineExceeded
from semibot.models import Model, ModelRequest, Reply, StreamItem, TextDelta
from semibot.testing.model_answers import (
    Answer,
    Done,
    Finish,
    Gate,
    Hang,
    Raw,
    Step,
    Text,
    ToolPiece,
)
from semibot.testing.model_server import open_model_server
from semibot.wire.chat import Message

OpenModel = Callable[..., AbstractAsyncContextManager[Model]]

HELLO = ModelRequest(messages=(Message(role="user", content="Hello"),))
CUSHION = 0.02
"""How long real sockets must be quiet before the clock is moved, in real seconds."""


@attrs.define(eq=False)
class Reader:
    """Reads an answer in the background."""

    items: list[StreamItem] = attrs.field(factory=list[StreamItem])
    error: Exception | None = None

    async def read(self, model: Model) -> None:
        try:
            async with model.stream(HELLO) as stream:
                async for item in stream:
                    self.items.append(item)
        except DeadlineExceeded as exc:
            self.error = exc

    @property
    def text(self) -> str:
        return "".join(item.text for item in self.items if isinstance(item, TextDelta))


async def read(
    open_openai: OpenModel, clock: MockClock, answer: Answer, *moves: float | trio.Event
) -> Reader:
    """Read *answer*, and meanwhile move the clock and open gates, always when all is quiet."""
    reader = Reader()
    async with (
        open_model_server(answer) as server,
        open_openai(server.base_url) as model,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(reader.read, model)
        await server.wait_requests(1)
        for move in moves:
            await wait_all_tasks_blocked(CUSHION)
            if isinstance(move, trio.Event):
                move.set()
            else:
                clock.jump(move)
        await wait_all_tasks_blocked(CUSHION)
        assert reader.error is None or server.connections[0].peer_closed.is_set()
    return reader


def the_deadline(reader: Reader) -> tuple[str, float]:
    assert isinstance(reader.error, DeadlineExceeded)
    return reader.error.deadline, reader.error.seconds


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(before=(Hang(),), steps=()), id="no head"),
        pytest.param(Answer(steps=(Hang(),)), id="no chunk"),
        pytest.param(Answer(steps=(Raw(b": still here\n\n"), Hang())), id="only a comment"),
        pytest.param(Answer(steps=(Raw(b'data: {"choices": []}\n\n'), Hang())), id="empty chunk"),
    ],
)
async def test_a_server_that_never_begins_is_given_up(
    open_openai: OpenModel, mock_clock: MockClock, answer: Answer
) -> None:
    reader = await read(open_openai, mock_clock, answer, 59.9, 0.2)
    assert the_deadline(reader) == ("model.response", 60.0)


async def test_the_head_and_the_first_piece_share_one_deadline(
    open_openai: OpenModel, mock_clock: MockClock
) -> None:
    gate = trio.Event()
    answer = Answer(before=(Gate(gate),), steps=(Hang(),))
    reader = await read(open_openai, mock_clock, answer, 40.0, gate, 19.9, 0.2)
    assert the_deadline(reader) == ("model.response", 60.0)


async def test_a_server_that_stops_in_the_middle_is_given_up(
    open_openai: OpenModel, mock_clock: MockClock
) -> None:
    answer = Answer(steps=(Text("Hi "), Hang()))
    reader = await read(open_openai, mock_clock, answer, 59.9, 0.2)
    assert the_deadline(reader) == ("model.idle", 60.0)
    assert reader.text == "Hi "


async def test_a_keep_alive_is_no_answer(open_openai: OpenModel, mock_clock: MockClock) -> None:
    gate = trio.Event()
    answer = Answer(steps=(Text("Hi "), Gate(gate), Raw(b": still here\n\n"), Hang()))
    reader = await read(open_openai, mock_clock, answer, 40.0, gate, 19.9, 0.2)
    assert the_deadline(reader) == ("model.idle", 60.0)


async def test_every_piece_of_a_tool_call_is_progress(
    open_openai: OpenModel, mock_clock: MockClock
) -> None:
    gates = [trio.Event() for _ in range(4)]
    pieces: list[Step] = [step for gate in gates for step in (Gate(gate), ToolPiece(" "))]
    answer = Answer(
        steps=(ToolPiece("{", name="t", id="c"), *pieces, ToolPiece("}"), Finish(), Done())
    )
    moves = [move for gate in gates for move in (50.0, gate)]
    reader = await read(open_openai, mock_clock, answer, *moves)
    (reply,) = reader.items
    assert isinstance(reply, Reply)
    assert reply.message.tool_calls[0].arguments == "{    }"


async def test_the_time_that_the_caller_takes_is_not_the_models(
    open_openai: OpenModel, mock_clock: MockClock
) -> None:
    gate = trio.Event()
    answer = Answer(steps=(Text("one"), Gate(gate), Text("two"), Finish(), Done()))
    async with (
        open_model_server(answer) as server,
        open_openai(server.base_url) as model,
        model.stream(HELLO) as stream,
    ):
        mock_clock.jump(1000)
        assert await anext(stream) == TextDelta(text="one")
        mock_clock.jump(1000)
        gate.set()
        assert await anext(stream) == TextDelta(text="two")


async def test_a_complete_answer_does_not_wait_long_for_its_usage(
    open_openai: OpenModel, mock_clock: MockClock
) -> None:
    answer = Answer(steps=(Text("x"), Finish("length"), Hang()))
    reader = await read(open_openai, mock_clock, answer, 2.0, 0.1)
    assert isinstance(reader.items[-1], Reply)
    assert reader.items[-1].finish_reason == "length"
