from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys

import pytest
import trio

from semibot.config import Deadlines
from semibot.models import (
    Model,
    ModelRequest,
    Reply,
    openai_model,
    resolve_model,
    stream_reply,
    strict_problems,
)
from semibot.testing import simulated_ports
from semibot.testing.model_answers import (
    Answer,
    Cut,
    Finish,
    Gate,
    Hang,
    Pause,
    Refusal,
    Step,
    Text,
    encode_step,
    say,
)
from semibot.testing.model_server import (
    Behaviour,
    ModelServer,
    RecordedRequest,
    main,
    open_model_server,
    reading_behaviour,
)
from semibot.tools.ledger import Ledger
from semibot.wire.chat import Message, ToolSpec

READ_FILE = ToolSpec(name="read_file", description="", parameters={"type": "object"})
QUESTION = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}


async def connect(server: ModelServer) -> trio.SocketStream:
    port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
    return await trio.open_tcp_stream("127.0.0.1", port)


def encode(body: object, path: str = "/v1/chat/completions", method: str = "POST") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        + data
    )


async def read_until(stream: trio.SocketStream, mark: bytes) -> bytes:
    data = b""
    with trio.fail_after(5):
        while mark not in data:
            more = await stream.receive_some()
            assert more, data
            data += more
    return data


async def read_error(stream: trio.SocketStream) -> tuple[bytes, str]:
    """Read an error answer; return its first line and its message."""
    data = await read_until(stream, b"}}")
    head, _, body = data.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    return head.splitlines()[0], error.get("message") or error["type"]


async def test_an_answer_is_played_and_the_connection_kept() -> None:
    async with open_model_server(say("Hi ", "you")) as server:
        stream = await connect(server)
        async with stream:
            for _ in range(2):
                await stream.send_all(encode(QUESTION))
                data = await read_until(stream, b"[DONE]\n\n\r\n0\r\n\r\n")
                assert data.startswith(b"HTTP/1.1 200 OK\r\n")
                assert data.index(b'"content":"Hi "') < data.index(b'"content":"you"')
    assert len(server.connections) == 1
    assert [request.messages[0].content for request in server.requests] == ["Hello", "Hello"]


async def test_requests_may_come_in_pieces_and_together() -> None:
    async with open_model_server([say("one"), say("two")]) as server:
        stream = await connect(server)
        async with stream:
            both = encode(QUESTION) * 2
            await stream.send_all(both[:30])
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(both[30:])
            data = await read_until(stream, b'"content":"two"')
            assert b'"content":"one"' in data


async def test_a_list_is_played_in_order_and_then_refuses() -> None:
    async with open_model_server([Refusal(status=503, error={"type": "busy"})]) as server:
        stream = await connect(server)
        async with stream:
            await stream.send_all(encode(QUESTION))
            assert await read_error(stream) == (b"HTTP/1.1 503 Service Unavailable", "busy")
            await stream.send_all(encode(QUESTION))
            status, message = await read_error(stream)
            assert status == b"HTTP/1.1 400 Bad Request"
            assert "no behaviour" in message


async def test_a_gate_holds_the_answer() -> None:
    gate = trio.Event()
    answer = Answer(steps=(Text("one"), Gate(gate), Text("two"), Finish()))
    async with open_model_server(answer) as server:
        stream = await connect(server)
        async with stream:
            await stream.send_all(encode(QUESTION))
            assert b"two" not in await read_until(stream, b'"content":"one"')
            gate.set()
            await read_until(stream, b'"content":"two"')


@pytest.mark.parametrize("was_reset", [False, True])
async def test_a_close_of_the_peer_is_seen_at_once(was_reset: bool) -> None:
    async with open_model_server(Answer(steps=(Text("one"), Hang()))) as server:
        stream = await connect(server)
        await stream.send_all(encode(QUESTION))
        await read_until(stream, b'"content":"one"')
        (connection,) = server.connections
        assert connection.peer_closed_at is None
        closed_at = trio.current_time()
        if was_reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        with trio.fail_after(2):
            await connection.peer_closed.wait()
        assert connection.was_reset is was_reset
        assert connection.peer_closed_at is not None
        assert connection.peer_closed_at >= closed_at >= connection.opened_at


async def test_writing_to_a_peer_that_is_gone_is_no_error() -> None:
    gate = trio.Event()
    many = [Text("x" * 100_000) for _ in range(100)]
    async with open_model_server(Answer(steps=(Gate(gate), *many))) as server:
        stream = await connect(server)
        await stream.send_all(encode(QUESTION))
        await server.wait_requests(1)
        await stream.aclose()
        await server.connections[0].peer_closed.wait()
        gate.set()
        await trio.testing.wait_all_tasks_blocked(0.02)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{oops", "not valid JSON"),
        ({**QUESTION, "messages": []}, "no messages"),
        ({**QUESTION, "stream": False}, "only streams"),
        ({**QUESTION, "messages": QUESTION["messages"] * 2}, "follows a user"),
        ({**QUESTION, "messages": [{"role": "user"}, {"role": "oracle"}]}, "not the first"),
        ({**QUESTION, "messages": [{"role": "assistant", "tool_calls": [{"id": 5}]}]}, "malformed"),
        ({**QUESTION, "messages": "x"}, "no messages"),
        (5, "no messages"),
    ],
)
async def test_what_a_strict_provider_refuses_is_refused(body: object, problem: str) -> None:
    async with open_model_server(say("x")) as server:
        stream = await connect(server)
        async with stream:
            await stream.send_all(encode(body))
            status, message = await read_error(stream)
            assert status == b"HTTP/1.1 400 Bad Request"
            assert problem in message
    assert any(problem in text for text in server.problems)
    assert len(server.requests) == 1


async def test_a_lenient_server_answers_and_notes_the_problems() -> None:
    body = {**QUESTION, "messages": [{"role": "assistant", "content": "x"}]}
    async with open_model_server(say("x"), is_strict=False) as server:
        stream = await connect(server)
        async with stream:
            await stream.send_all(encode(body))
            await read_until(stream, b"[DONE]")
    assert server.problems


async def test_other_addresses_are_answered_too() -> None:
    async with open_model_server(say("x")) as server:
        stream = await connect(server)
        async with stream:
            await stream.send_all(encode(b"", "/v1/models", "GET"))
            assert b'"object":"list"' in await read_until(stream, b"}]}")
            await stream.send_all(encode(b"", "/v1/other"))
            assert (await read_error(stream))[0] == b"HTTP/1.1 404 Not Found"
    assert server.requests == []


@pytest.mark.parametrize(
    "data",
    [
        b"not http\r\n\r\n",
        b"x" * 70_000,
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused(data: bytes) -> None:
    async with open_model_server(say("x")) as server:
        stream = await connect(server)
        async with stream:
            await stream.send_all(data)
            assert (await read_error(stream))[0] == b"HTTP/1.1 400 Bad Request"


async def test_a_request_that_is_cut_off_is_refused() -> None:
    async with open_model_server(say("x")) as server:
        stream = await connect(server)
        async with stream:
            await stream.send_all(encode(QUESTION)[:-5])
            await stream.send_eof()
            assert "cut off" in (await read_error(stream))[1]


async def test_a_chooser_that_fails_ends_the_block() -> None:
    def choose(request: RecordedRequest) -> Behaviour:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_model_server(choose) as server:
            stream = await connect(server)
            async with stream:
                await stream.send_all(encode(QUESTION))
                await trio.sleep_forever()


async def test_leaving_the_block_cuts_what_is_under_way() -> None:
    async with open_model_server(Answer(steps=(Text("one"), Hang()))) as server:
        stream = await connect(server)
        await stream.send_all(encode(QUESTION))
        await read_until(stream, b'"content":"one"')
    with trio.fail_after(2):
        assert await stream.receive_some() == b""
    await stream.aclose()


async def ask(model: Model, *messages: Message) -> Reply:
    async def ignore(_: object) -> None:
        await trio.lowlevel.checkpoint()

    return await stream_reply(
        model,
        ModelRequest(messages=messages, tools=(READ_FILE,)),
        ignore,
        ledger=Ledger(),
        call_id="m",
        source=simulated_ports().random,
    )


async def test_by_hand_it_reads_the_named_file_and_answers_from_it() -> None:
    async with open_model_server(reading_behaviour(0.001)) as server:
        ports = simulated_ports(environment={"OPENAI_BASE_URL": server.base_url})
        async with openai_model()(ports, Deadlines()) as model:
            history = [Message(role="user", content="What does notes.txt say?")]
            for _ in range(2):
                asked = await ask(model, *history)
                (call,) = asked.message.tool_calls
                assert (call.name, call.arguments) == ("read_file", '{"path":"notes.txt"}')
                result = Message(role="tool", content="buy milk\nand tea", tool_call_id=call.id)
                history += [asked.message, result]
                answered = await ask(model, *history)
                assert "notes.txt is: buy milk" in answered.message.content
                history += [answered.message, Message(role="user", content="Again: notes.txt?")]
            talked = await ask(model, Message(role="user", content="Hello"))
            assert talked.message.tool_calls == ()
            assert talked.message.content.startswith("I am a fake model.")
    assert strict_problems(history) == []
    assert server.problems == []
    assert server.requests[0].tools == ("read_file",)


async def test_an_empty_file_has_no_first_line() -> None:
    choose = reading_behaviour(0.0)
    async with open_model_server(choose) as server:
        ports = simulated_ports(environment={"OPENAI_BASE_URL": server.base_url})
        async with resolve_model(None)(ports, Deadlines()) as model:
            asked = await ask(model, Message(role="user", content="Read a.txt"))
            reply = await ask(
                model,
                Message(role="user", content="Read a.txt"),
                asked.message,
                Message(role="tool", content="", tool_call_id=asked.message.tool_calls[0].id),
            )
    assert "(it is empty)" in reply.message.content


def test_the_command_prints_where_it_listens_and_ends_with_ctrl_c() -> None:
    command = [sys.executable, "-m", "semibot.testing.model_server", "--delay", "0"]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().strip()
            assert base_url.startswith("http://127.0.0.1:")
            port = int(base_url.rpartition(":")[2].removesuffix("/v1"))
            with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
                peer.sendall(encode(QUESTION))
                assert peer.recv(100).startswith(b"HTTP/1.1 200 OK")
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=5)
        finally:
            process.kill()
    assert process.returncode == 0
    assert complaints == "stopped\n"


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--nonsense"])
    assert "usage: python -m semibot.testing.model_server" in capsys.readouterr().err


@pytest.mark.parametrize("step", [Pause(1.0), Gate(trio.Event()), Hang(), Cut()])
def test_waits_and_cuts_put_nothing_into_the_stream(step: Step) -> None:
    assert encode_step(step, "m") == b""
