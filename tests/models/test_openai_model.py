"""The real SDK against the fake server, over a real loopback socket: what works."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import attrs
import pytest
import trio

from semibot.config import Deadlines
from semibot.errors import ModelNotConfigured
from semibot.models import (
    Model,
    ModelRequest,
    ReasoningDelta,
    Reply,
    StreamItem,
    TextDelta,
    openai_model,
    tool_request,
)
from semibot.testing import simulated_ports
from semibot.testing.model_answers import (
    Answer,
    Cut,
    Done,
    Finish,
    Gate,
    Hang,
    Raw,
    Reasoning,
    Step,
    Text,
    Tokens,
    ToolPiece,
    call_tools,
    say,
)
from semibot.testing.model_server import ModelServer, open_model_server
from semibot.wire.chat import Message, ToolSpec
from semibot.wire.events import Usage

OpenModel = Callable[..., AbstractAsyncContextManager[Model]]

HELLO = ModelRequest(messages=(Message(role="user", content="Hello"),))
READ_FILE = ToolSpec(
    name="read_file",
    description="Read a file.",
    parameters={"type": "object", "properties": {"path": {"type": "string"}}},
)


async def ask(model: Model, request: ModelRequest = HELLO) -> list[StreamItem]:
    async with model.stream(request) as stream:
        return [item async for item in stream]


def reply_of(items: list[StreamItem]) -> Reply:
    reply = items[-1]
    assert isinstance(reply, Reply)
    assert not any(isinstance(item, Reply) for item in items[:-1])
    return reply


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_an_answer_is_streamed_and_comes_whole(open_openai: OpenModel, framing: str) -> None:
    answer = attrs.evolve(say("Hi ", "you", reasoning="hm"), framing=framing)
    async with open_model_server(answer) as server, open_openai(server.base_url) as model:
        items = await ask(model)
    assert items[:3] == [ReasoningDelta(text="hm"), TextDelta(text="Hi "), TextDelta(text="you")]
    assert reply_of(items) == Reply(
        message=Message(role="assistant", content="Hi you"),
        usage=Usage(tokens_in=11, tokens_out=2),
        finish_reason="stop",
    )


async def test_a_piece_is_passed_on_before_the_next_is_sent(open_openai: OpenModel) -> None:
    gate = trio.Event()
    answer = Answer(steps=(Text("one"), Gate(gate), Text("two"), Finish(), Done()))
    async with (
        open_model_server(answer) as server,
        open_openai(server.base_url) as model,
        model.stream(HELLO) as stream,
    ):
        assert await anext(stream) == TextDelta(text="one")
        gate.set()
        assert await anext(stream) == TextDelta(text="two")
        assert isinstance(await anext(stream), Reply)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_tool_calls_come_whole(open_openai: OpenModel) -> None:
    answer = call_tools(("read_file", {"path": "a"}), ("read_file", "{oops"), text="I look.")
    async with open_model_server(answer) as server, open_openai(server.base_url) as model:
        reply = reply_of(await ask(model))
    assert reply.message == Message(
        role="assistant",
        content="I look.",
        tool_calls=(
            tool_request("call_0", "read_file", {"path": "a"}),
            tool_request("call_1", "read_file", "{oops"),
        ),
    )
    assert reply.finish_reason == "tool_calls"


async def test_calls_without_ids_get_fresh_ones(open_openai: OpenModel) -> None:
    steps = (ToolPiece("{}", name="a", index=None), ToolPiece("{}", name="b", index=1), Done())
    async with (
        open_model_server(Answer(steps=steps)) as server,
        open_openai(server.base_url) as model,
    ):
        one, two = reply_of(await ask(model)).message.tool_calls
    assert len(one.id) == len(two.id) == 32
    assert one.id != two.id


RUBBISH = Raw(b"data: {\n\n")


@pytest.mark.parametrize(
    ("steps", "usage"),
    [
        pytest.param((Finish(), Tokens(3, 4)), Usage(tokens_in=3, tokens_out=4), id="no mark"),
        pytest.param((Done(),), Usage(), id="no reason"),
        pytest.param((Finish(), Done()), Usage(), id="no usage"),
        pytest.param((Finish(),), Usage(), id="only a reason"),
        pytest.param((Finish(), Cut()), Usage(), id="cut after the reason"),
        pytest.param((Finish(), RUBBISH), Usage(), id="rubbish after the reason"),
        pytest.param((Done(), RUBBISH), Usage(), id="rubbish after the mark"),
        pytest.param((Raw(b"data: [DONE]\n\ndata: {\n\n"),), Usage(), id="rubbish with the mark"),
    ],
)
async def test_a_complete_answer_may_end_in_many_ways(
    open_openai: OpenModel, steps: tuple[Step, ...], usage: Usage
) -> None:
    async with (
        open_model_server(Answer(steps=(Text("x"), *steps))) as server,
        open_openai(server.base_url) as model,
    ):
        reply = reply_of(await ask(model))
    assert reply.message.content == "x"
    assert reply.usage == usage


async def test_an_answer_whose_body_does_not_end_is_returned_all_the_same(
    open_openai: OpenModel,
) -> None:
    answer = Answer(steps=(Text("x"), Finish(), Tokens(), Done(), Hang()))
    async with open_model_server(answer) as server, open_openai(server.base_url) as model:
        with trio.fail_after(2):
            assert reply_of(await ask(model)).message.content == "x"
            await server.connections[0].peer_closed.wait()


async def test_reasoning_comes_under_either_name(open_openai: OpenModel) -> None:
    answer = Answer(steps=(Reasoning("a"), Reasoning("b", "reasoning"), Text("x"), Done()))
    async with open_model_server(answer) as server, open_openai(server.base_url) as model:
        items = await ask(model)
    assert items[:2] == [ReasoningDelta(text="a"), ReasoningDelta(text="b")]


async def test_the_request_says_everything(open_openai: OpenModel) -> None:
    request = ModelRequest(
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content="Read a.", name="somebody"),
            Message(role="assistant", content="", tool_calls=(tool_request("c", "read_file"),)),
            Message(role="tool", content="A", tool_call_id="c", name="read_file"),
            Message(role="assistant", content="A."),
            Message(role="user", content="Thanks."),
        ),
        tools=(READ_FILE,),
        tool_choice="none",
        temperature=0.5,
        max_tokens=100,
    )
    async with open_model_server(say("x")) as server, open_openai(server.base_url) as model:
        await ask(model, request)
        await ask(model)
    full, bare = server.requests
    assert full.messages == tuple(attrs.evolve(m, name=None) for m in request.messages)
    assert full.tools == ("read_file",)
    assert {key: full.body[key] for key in full.body if key not in {"messages", "tools"}} == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "tool_choice": "none",
        "temperature": 0.5,
        "max_tokens": 100,
    }
    assert set(bare.body) == {"model", "stream", "stream_options", "messages"}
    assert full.headers["authorization"] == "Bearer sk-secret"


async def test_one_connection_serves_several_requests(open_openai: OpenModel) -> None:
    async with open_model_server(say("x")) as server, open_openai(server.base_url) as model:
        for _ in range(3):
            await ask(model)
        assert len(server.connections) == 1
        assert not server.connections[0].peer_closed.is_set()
    assert len(server.requests) == 3


async def test_streams_may_be_open_at_the_same_time(open_openai: OpenModel) -> None:
    async with open_model_server(say("x")) as server, open_openai(server.base_url) as model:
        async with model.stream(HELLO) as one, model.stream(HELLO) as two:
            assert await anext(one) == await anext(two) == TextDelta(text="x")
            assert isinstance(await anext(two), Reply)
            assert isinstance(await anext(one), Reply)
        assert len(server.connections) == 2


async def test_nothing_is_read_from_the_real_environment(
    open_openai: OpenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_API_KEY", "foreign")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "foreign")
    monkeypatch.setenv("OPENAI_ORG_ID", "foreign")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "foreign")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-mine: foreign\nAuthorization: foreign")
    monkeypatch.setenv("SSL_CERT_FILE", "/foreign")
    async with open_model_server(say("x")) as server, open_openai(server.base_url) as model:
        assert reply_of(await ask(model)).message.content == "x"
    headers = server.requests[0].headers
    assert "foreign" not in str(headers)
    assert headers["authorization"] == "Bearer sk-secret"


async def test_organization_and_project_are_sent_if_they_are_set(open_openai: OpenModel) -> None:
    async with (
        open_model_server(say("x")) as server,
        open_openai(server.base_url, OPENAI_ORG_ID="o1", OPENAI_PROJECT_ID="p1") as model,
    ):
        await ask(model)
    headers = server.requests[0].headers
    assert headers["openai-organization"] == "o1"
    assert headers["openai-project"] == "p1"


async def test_a_server_of_ones_own_needs_no_key(open_openai: OpenModel) -> None:
    async with (
        open_model_server(say("x")) as server,
        open_openai(server.base_url, OPENAI_API_KEY="") as model,
    ):
        assert reply_of(await ask(model)).message.content == "x"


async def test_without_a_key_the_first_request_says_what_to_set() -> None:
    async with openai_model()(simulated_ports(), Deadlines()) as model:
        assert model.name == "openai:gpt-5"
        with pytest.raises(ModelNotConfigured) as caught:
            await ask(model)
    assert "OPENAI_API_KEY" in str(caught.value)
    assert "OPENAI_BASE_URL" in str(caught.value)


async def test_a_closed_model_refuses_to_work(open_openai: OpenModel) -> None:
    async with open_model_server(say("x")) as server:
        async with open_openai(server.base_url) as model:
            await ask(model)
        await server.connections[0].peer_closed.wait()
        with pytest.raises(trio.ClosedResourceError):
            await ask(model)


async def test_a_proxy_is_used_if_the_environment_says_so(open_openai: OpenModel) -> None:
    # The fake server is the proxy: it is asked for the other host's whole address.
    async with open_model_server(say("x")) as proxy:
        url = proxy.base_url.removesuffix("/v1")
        async with open_openai("http://model.invalid/v1", HTTP_PROXY=url) as model:
            assert reply_of(await ask(model)).message.content == "x"
    assert proxy.requests[0].headers["host"] == "model.invalid"


async def count_leaks(open_openai: OpenModel, server: ModelServer) -> list[str]:
    """Read a whole answer, leave one early, cancel one; return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with open_openai(server.base_url) as model:
            await ask(model)
            async with model.stream(HELLO) as stream:
                await anext(stream)
            async with model.stream(HELLO):
                pass
            with trio.CancelScope() as scope:
                async with model.stream(HELLO) as stream:
                    await anext(stream)
                    scope.cancel()
                    await anext(stream)
                    await anext(stream)
        for _ in range(3):
            gc.collect()
            await trio.testing.wait_all_tasks_blocked()
    return [str(warning.message) for warning in caught]


async def test_no_generator_or_socket_is_left_to_the_garbage_collector(
    open_openai: OpenModel,
) -> None:
    unraisable: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        async with open_model_server(say("one ", "two ", "three")) as server:
            assert await count_leaks(open_openai, server) == []
    finally:
        sys.unraisablehook = hook
    assert unraisable == []
