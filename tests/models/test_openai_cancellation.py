"""Cancel the real SDK at every place it can wait, and look at the server's end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from semibot.models import Model, ModelRequest, Reply, TextDelta
from semibot.testing.model_answers import Answer, Done, Finish, Hang, Step, Text, say
from semibot.testing.model_server import ModelServer, open_model_server
from semibot.wire.chat import Message

OpenModel = Callable[..., AbstractAsyncContextManager[Model]]

HELLO = ModelRequest(messages=(Message(role="user", content="Hello"),))
BOUND = 2.0


async def wait_closed(server: ModelServer, since: float) -> float:
    """Wait until the server has seen the first connection close; return how long it took."""
    with trio.fail_after(BOUND):
        await server.connections[0].peer_closed.wait()
    closed_at = server.connections[0].peer_closed_at
    assert closed_at is not None
    return closed_at - since


async def test_a_cancel_in_the_middle_closes_the_connection_at_once(
    open_openai: OpenModel,
) -> None:
    behaviour = Answer(steps=(Text("Hi "), Hang()))
    async with open_model_server([behaviour, say("x")]) as server:
        async with open_openai(server.base_url) as model:
            with trio.CancelScope() as scope:
                async with model.stream(HELLO) as stream:
                    assert await anext(stream) == TextDelta(text="Hi ")
                    cancelled_at = trio.current_time()
                    scope.cancel()
                    await anext(stream)
            assert scope.cancelled_caught
            assert await wait_closed(server, cancelled_at) < BOUND
            # The model works on, with a connection of its own.
            async with model.stream(HELLO) as stream:
                items = [item async for item in stream]
            assert isinstance(items[-1], Reply)
        assert len(server.connections) == 2


@pytest.mark.parametrize("before", [(), (Hang(),)])
async def test_a_cancel_before_the_answer_closes_the_connection_at_once(
    open_openai: OpenModel, before: tuple[Step, ...]
) -> None:
    async with open_model_server(Answer(before=before, steps=(Hang(),))) as server:
        async with open_openai(server.base_url) as model:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def cancel_when_asked() -> None:
                        await server.wait_requests(1)
                        scope.cancel()

                    nursery.start_soon(cancel_when_asked)
                    async with model.stream(HELLO) as stream:
                        await anext(stream)
            cancelled_at = trio.current_time()
            assert scope.cancelled_caught
            assert await wait_closed(server, cancelled_at) < BOUND


async def test_leaving_early_closes_the_connection_at_once(open_openai: OpenModel) -> None:
    behaviour = Answer(steps=(Text("Hi "), Hang()))
    async with (
        open_model_server(behaviour) as server,
        open_openai(server.base_url) as model,
    ):
        async with model.stream(HELLO) as stream:
            await anext(stream)
        left_at = trio.current_time()
        assert await wait_closed(server, left_at) < BOUND


async def test_an_error_of_the_caller_closes_the_connection_and_goes_up(
    open_openai: OpenModel,
) -> None:
    async with (
        open_model_server(Answer(steps=(Text("Hi "), Hang()))) as server,
        open_openai(server.base_url) as model,
    ):
        with pytest.raises(ZeroDivisionError):
            async with model.stream(HELLO) as stream:
                await anext(stream)
                raise ZeroDivisionError
        await wait_closed(server, trio.current_time())


async def test_a_cancel_between_two_pieces_drops_what_is_buffered(
    open_openai: OpenModel,
) -> None:
    many = tuple(Text(f"{number} ") for number in range(2000))
    async with (
        open_model_server(Answer(steps=(*many, Finish(), Done(), Hang()))) as server,
        open_openai(server.base_url) as model,
    ):
        with trio.CancelScope() as scope:
            async with model.stream(HELLO) as stream:
                await anext(stream)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        await wait_closed(server, trio.current_time())


async def test_leaving_the_model_closes_what_is_kept_alive(open_openai: OpenModel) -> None:
    async with open_model_server(say("x")) as server:
        async with open_openai(server.base_url) as model, model.stream(HELLO) as stream:
            assert len([item async for item in stream]) == 2
        await wait_closed(server, trio.current_time())


async def test_a_cancelled_scope_still_closes_the_model(open_openai: OpenModel) -> None:
    async with open_model_server(say("x")) as server:
        with trio.CancelScope() as scope:
            async with open_openai(server.base_url) as model:
                async with model.stream(HELLO) as stream:
                    assert len([item async for item in stream]) == 2
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        await wait_closed(server, trio.current_time())
