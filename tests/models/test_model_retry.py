from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from semibot.config import Deadlines
from semibot.errors import DeadlineExceeded, ModelError, ModelNotConfigured
from semibot.models import (
    Delta,
    Fail,
    Hang,
    ModelRequest,
    ModelStream,
    ReasoningDelta,
    Reply,
    Say,
    Script,
    StreamItem,
    TextDelta,
    backoff,
    scripted_model,
    stream_reply,
)
from semibot.models.retry import BACKOFF_BASE, BACKOFF_CAP, MAX_ATTEMPTS
from semibot.testing import simulated_ports
from semibot.tools.ledger import Ledger
from semibot.wire.chat import Message
from semibot.wire.events import Usage

BUSY = ModelError("busy", code="MODEL_RATE_LIMITED", is_retryable=True)
NO = ModelError("no", code="MODEL_REFUSED")
REQUEST = ModelRequest(messages=(Message(role="user", content="Hello"),))


@attrs.define(eq=False)
class Listener:
    heard: list[Delta] = attrs.field(factory=list[Delta])
    under_way: list[str] = attrs.field(factory=list[str])
    ledger: Ledger = attrs.field(factory=Ledger)
    error: Exception | None = None

    async def __call__(self, item: Delta) -> None:
        await trio.lowlevel.checkpoint()
        self.heard.append(item)
        self.under_way += [f"{a.kind} {a.id} {a.name}" for a in self.ledger.under_way()]
        if self.error is not None:
            raise self.error


async def ask(
    script: Script, listener: Listener | None = None, deadlines: Deadlines | None = None
) -> Reply:
    listener = listener or Listener()
    async with script(simulated_ports(), deadlines or Deadlines()) as model:
        return await stream_reply(
            model,
            REQUEST,
            listener,
            ledger=listener.ledger,
            call_id="m1",
            source=random.Random(5),
        )


@given(st.integers(1, 100), st.integers())
def test_pauses_grow_and_stay_within_their_cap(attempt: int, seed: int) -> None:
    pause = backoff(attempt, random.Random(seed))
    assert 0 <= pause <= min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** (attempt - 1))


def test_pauses_use_the_whole_range() -> None:
    source = random.Random(1)
    pauses = [backoff(10, source) for _ in range(200)]
    assert min(pauses) < 1
    assert max(pauses) > 9


async def test_a_reply_is_passed_on_piece_by_piece_and_returned_whole() -> None:
    listener = Listener()
    reply = await ask(scripted_model([Say("Hello", chunk=2, reasoning="hm")]), listener)
    assert reply.message.content == "Hello"
    assert listener.heard == [
        ReasoningDelta(text="hm"),
        TextDelta(text="He"),
        TextDelta(text="ll"),
        TextDelta(text="o"),
    ]


async def test_the_request_is_in_the_ledger_while_it_is_under_way() -> None:
    listener = Listener()
    await ask(scripted_model([Say("x")], name="openai:m"), listener)
    assert listener.under_way == ["model_call m1 openai:m"]
    assert listener.ledger.under_way() == ()


async def test_a_retryable_error_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    script = scripted_model([Fail(BUSY), Fail(BUSY), Say("at last")])
    assert (await ask(script)).message.content == "at last"
    assert len(script.requests) == MAX_ATTEMPTS
    assert 0 < trio.current_time() <= 0.5 + 1.0


async def test_the_third_error_goes_up(autojump_clock: trio.testing.MockClock) -> None:
    script = scripted_model([Fail(BUSY)] * 5)
    with pytest.raises(ModelError) as caught:
        await ask(script)
    assert caught.value is BUSY
    assert len(script.requests) == MAX_ATTEMPTS


@pytest.mark.parametrize("error", [NO, ModelNotConfigured("set it"), DeadlineExceeded("x.y", 1)])
async def test_other_errors_go_up_at_once(error: Exception) -> None:
    script = scripted_model([Fail(error), Say("never")])
    with pytest.raises(type(error)):
        await ask(script)
    assert len(script.requests) == 1


async def test_after_text_nothing_is_tried_again() -> None:
    listener = Listener()
    script = scripted_model([Fail(BUSY, after="Hi "), Say("Hello")])
    with pytest.raises(ModelError) as caught:
        await ask(script, listener)
    assert caught.value.is_retryable
    assert listener.heard == [TextDelta(text="Hi ")]
    assert len(script.requests) == 1


async def test_reasoning_does_not_keep_from_trying_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    listener = Listener()
    deadlines = Deadlines(model_idle=5)
    slow = Say("x", reasoning="hm", delay=4.0)

    def then_hang(request: ModelRequest) -> Say:
        return attrs.evolve(slow, delay=6.0)

    script = scripted_model([then_hang, slow])
    assert (await ask(script, listener, deadlines)).message.content == "x"
    assert listener.heard == [ReasoningDelta(text="hm")] * 2 + [TextDelta(text="x")]


async def test_a_silent_model_is_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    script = scripted_model([Hang(), Say("here")])
    reply = await ask(script, deadlines=Deadlines(model_response=7))
    assert reply.message.content == "here"
    assert 7 <= trio.current_time() <= 7.5


async def test_the_wait_that_the_server_asks_for_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    later = ModelError("busy", code="MODEL_RATE_LIMITED", is_retryable=True, retry_after=20)
    await ask(scripted_model([Fail(later), Say("x")]))
    assert trio.current_time() == 20


async def test_a_pause_that_outlasts_the_deadline_is_not_begun(
    autojump_clock: trio.testing.MockClock,
) -> None:
    later = ModelError("busy", code="MODEL_RATE_LIMITED", is_retryable=True, retry_after=20)
    script = scripted_model([Fail(later), Say("x")])
    with trio.move_on_after(19) as scope, pytest.raises(ModelError) as caught:
        await ask(script)
    assert caught.value is later
    assert not scope.cancelled_caught
    assert trio.current_time() == 0


async def test_a_cancel_ends_a_pause_at_once(autojump_clock: trio.testing.MockClock) -> None:
    later = ModelError("busy", code="MODEL_RATE_LIMITED", is_retryable=True, retry_after=50)
    script = scripted_model([Fail(later), Say("x")])
    listener = Listener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, script, listener)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 10
    assert len(script.requests) == 1
    assert listener.ledger.under_way() == ()


async def test_a_cancel_ends_a_stream_and_empties_the_ledger(
    autojump_clock: trio.testing.MockClock,
) -> None:
    listener = Listener()
    with trio.move_on_after(3):
        await ask(scripted_model([Hang(after="Hi "), Say("x")]), listener)
    assert listener.heard == [TextDelta(text="Hi ")]
    assert listener.ledger.under_way() == ()
    assert trio.current_time() == 3


@pytest.mark.parametrize("error", [BUSY, DeadlineExceeded("model.idle", 1), ValueError("mine")])
async def test_an_error_of_the_listener_goes_up_unchanged(error: Exception) -> None:
    script = scripted_model([Say("x", reasoning="hm"), Say("never")])
    with pytest.raises(type(error)) as caught:
        await ask(script, Listener(error=error))
    assert caught.value is error
    assert len(script.requests) == 1


@attrs.define(eq=False)
class FixedStream:
    items: list[StreamItem]

    def __aiter__(self) -> ModelStream:
        return self

    async def __anext__(self) -> StreamItem:
        await trio.lowlevel.checkpoint()
        if not self.items:
            raise StopAsyncIteration
        return self.items.pop(0)


@attrs.define(eq=False)
class FixedModel:
    items: Sequence[StreamItem]
    name: str = "fixed"

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelStream]:
        yield FixedStream(list(self.items))


async def test_a_stream_without_a_reply_is_a_protocol_error() -> None:
    with pytest.raises(ModelError) as caught:
        await stream_reply(
            FixedModel([ReasoningDelta(text="hm")]),
            REQUEST,
            Listener(),
            ledger=Ledger(),
            call_id="m1",
            source=random.Random(1),
        )
    assert caught.value.code == "MODEL_PROTOCOL"


async def test_nothing_is_read_after_the_reply() -> None:
    message = Message(role="assistant", content="x")
    first = Reply(message=message, usage=Usage())
    reply = await stream_reply(
        FixedModel([first, TextDelta(text="more")]),
        REQUEST,
        Listener(),
        ledger=Ledger(),
        call_id="m1",
        source=random.Random(1),
    )
    assert reply is first
