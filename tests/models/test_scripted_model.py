from __future__ import annotations

import math

import pytest
import trio

from semibot.config import Deadlines
from semibot.errors import DeadlineExceeded, ModelError
from semibot.models import (
    Call,
    Fail,
    Hang,
    ModelRequest,
    ReasoningDelta,
    Reply,
    Say,
    StreamItem,
    TextDelta,
    TurnSource,
    scripted_model,
    tool_request,
)
from semibot.testing import simulated_ports
from semibot.wire.chat import Message
from semibot.wire.events import Usage


def request(text: str = "two words") -> ModelRequest:
    return ModelRequest(messages=(Message(role="user", content=text),))


async def play(
    *turns: TurnSource, deadlines: Deadlines | None = None
) -> list[tuple[float, StreamItem]]:
    """Play all turns and return what came out, with the times."""
    items: list[tuple[float, StreamItem]] = []
    script = scripted_model(turns)
    async with script(simulated_ports(), deadlines or Deadlines()) as model:
        while script.turns_left:
            async with model.stream(request()) as stream:
                async for item in stream:
                    items.append((trio.current_time(), item))  # noqa: PERF401 - the time of each counts
    return items


async def test_text_comes_in_pieces_with_pauses(autojump_clock: trio.testing.MockClock) -> None:
    items = await play(Say("Hello", chunk=2, delay=1.5))
    assert items[:3] == [
        (1.5, TextDelta(text="He")),
        (3.0, TextDelta(text="ll")),
        (4.5, TextDelta(text="o")),
    ]
    at, reply = items[3]
    assert at == 4.5
    assert reply == Reply(
        message=Message(role="assistant", content="Hello"),
        usage=Usage(tokens_in=2, tokens_out=1),
        finish_reason="stop",
    )


async def test_reasoning_comes_first() -> None:
    items = [item for _, item in await play(Say("x", reasoning="hm"))]
    assert items[:2] == [ReasoningDelta(text="hm"), TextDelta(text="x")]


async def test_an_empty_answer_is_just_a_reply() -> None:
    ((_, reply),) = await play(Say("", usage=Usage(tokens_in=9), finish_reason="length"))
    assert isinstance(reply, Reply)
    assert reply.usage == Usage(tokens_in=9)
    assert reply.finish_reason == "length"


async def test_one_call_and_several_are_asked_for() -> None:
    one = tool_request("c1", "read_file", {"path": "a.txt"})
    two = tool_request("c2", "read_file", "{oops")
    items = [item for _, item in await play(Call(one), Call([one, two], text="Let me see."))]
    assert [i.message.tool_calls for i in items if isinstance(i, Reply)] == [(one,), (one, two)]
    assert one.arguments == '{"path":"a.txt"}'
    assert two.arguments == "{oops"
    assert items[1] == TextDelta(text="Let me see.")


async def test_a_function_chooses_its_turn_by_the_request() -> None:
    ((_, text), _) = await play(lambda r: Say(r.messages[-1].content.upper()))
    assert text == TextDelta(text="TWO WORDS")


async def test_a_failure_before_text_fails_the_request() -> None:
    error = ModelError("no", code="MODEL_REFUSED")
    script = scripted_model([Fail(error)])
    async with script(simulated_ports(), Deadlines()) as model:
        with pytest.raises(ModelError) as caught:
            async with model.stream(request()):
                raise AssertionError("the block must not begin")
    assert caught.value is error


async def test_a_failure_after_text_breaks_the_stream() -> None:
    script = scripted_model([Fail(ModelError("no"), after="Hi ")])
    async with (
        script(simulated_ports(), Deadlines()) as model,
        model.stream(request()) as stream,
    ):
        assert await anext(stream) == TextDelta(text="Hi ")
        with pytest.raises(ModelError):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@pytest.mark.parametrize(
    ("turn", "name"),
    [
        (Hang(), "model.response"),
        (Hang(after="x"), "model.idle"),
        (Say("x", delay=9), "model.response"),
        (Say("xy", chunk=1, reasoning="hm", delay=9), "model.response"),
        (Call(tool_request("c", "t"), text="x", delay=9), "model.response"),
    ],
)
async def test_slowness_ends_at_the_same_deadlines_as_with_a_real_model(
    turn: TurnSource, name: str, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        await play(turn, deadlines=Deadlines(model_response=8, model_idle=5))
    assert caught.value.deadline == name
    assert trio.current_time() == (8 if name == "model.response" else 5)


async def test_without_deadlines_a_hanging_model_hangs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    endless = Deadlines(model_response=math.inf, model_idle=math.inf)
    with trio.move_on_after(100_000) as scope:
        await play(Hang(after="x"), deadlines=endless)
    assert scope.cancelled_caught


async def test_a_request_after_the_last_turn_fails() -> None:
    script = scripted_model([])
    async with script(simulated_ports(), Deadlines()) as model:
        with pytest.raises(ModelError, match="no turn for request 1"):
            async with model.stream(request()):
                raise AssertionError("the block must not begin")
        assert model.name == "scripted"


async def test_requests_are_recorded_over_several_sessions() -> None:
    script = scripted_model([Say("a"), Say("b")], name="mine")
    for text in ("one", "two"):
        async with script(simulated_ports(), Deadlines()) as model:
            assert model.name == "mine"
            async with model.stream(request(text)) as stream:
                assert len([item async for item in stream]) == 2
    assert [r.messages[0].content for r in script.requests] == ["one", "two"]
    assert script.turns_left == 0
