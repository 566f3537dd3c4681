"""A recorded host of level 1, replayed over real sockets against a real VM.

The player says what the recorded host said, at the moments at which it said it, and answers
requests as it did. Ids and tokens are bound to those of this VM; pauses are left out.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio
import trio_websocket

from semibot.config import Deadlines
from semibot.config.settings import VmSettings
from semibot.live import live_ports
from semibot.secret import Secret
from semibot.security.envelope import seal_keys
from semibot.testing.model_answers import (
    Answer,
    Behaviour,
    Done,
    Finish,
    Gate,
    Text,
    Tokens,
    call_tools,
    say,
)
from semibot.testing.model_server import RecordedRequest, open_model_server
from semibot.vm import run_vm

TESTS = Path(__file__).parents[1]
RECORDINGS = TESTS / "fixtures" / "plane"
BRIDGE = TESTS / "adapters" / "programs" / "replay_bridge.py"
PATIENCE = 30.0
SESSION = "11111111-1111-4111-8111-111111111111"
KEY = "sk-of-the-host"
LOCAL = "127.0.0.1"
DEADLINES = Deadlines(link_heartbeat=0.1, bridge_snapshot=0.1)

OLD_FIELDS = {
    "heartbeat": {"active_sessions"},
    "request": {"id", "session_id", "method", "params"},
    "sse_event": {"session_id", "data"},
    "fire_and_forget": {"session_id", "method", "params"},
    "resume": {"pending_ids"},
}
OLD_SNAPSHOT = {"checkpoint", "short_term_memory", "conversation_state", "file_manifest"}

Frame = dict[str, Any]


def read_recording(name: str) -> list[Frame]:
    """Return the frames of a recording, with their direction."""
    lines = (RECORDINGS / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "type" in line["frame"]]


def said_by_host(lines: list[Frame], kind: str) -> list[Frame]:
    return [
        line["frame"] for line in lines if line["dir"] == "cp->ep" and line["frame"]["type"] == kind
    ]


def answers_of(lines: list[Frame]) -> dict[str, Frame]:
    """Return the recorded answer to each method."""
    asked = {
        line["frame"]["id"]: line["frame"]["method"]
        for line in lines
        if line["frame"]["type"] == "request"
    }
    return {asked[frame["id"]]: frame for frame in said_by_host(lines, "response")}


class Link:
    """The recorded host's end of one connection."""

    def __init__(
        self,
        socket: trio_websocket.WebSocketConnection,
        path: str,
        stream: trio.SocketStream,
        heard: list[Frame],
    ) -> None:
        self._socket = socket
        self.path = path
        self._stream = stream
        self._heard = heard
        self.answers: dict[str, Frame] = {}
        """What requests are answered with, by method; others wait."""

    async def receive(self) -> Frame:
        """Return the next frame; a request is answered if the answer is known."""
        frame: Frame = json.loads(await self._socket.get_message())
        self._heard.append(frame)
        if frame["type"] == "request" and frame["method"] in self.answers:
            answer = self.answers[frame["method"]]
            await self.send({**answer, "id": frame["id"]})
        return frame

    async def send(self, *frames: Frame) -> None:
        for frame in frames:
            await self._socket.send_message(json.dumps(frame))

    async def until(self, fits: Callable[[Frame], bool]) -> list[Frame]:
        """Return what comes, up to the first frame that fits."""
        frames: list[Frame] = []
        while True:
            frames.append(await self.receive())
            if fits(frames[-1]):
                return frames

    async def let_in(self, recorded_init: Frame) -> Frame:
        """Take ``auth`` and say ``init``; return ``auth``."""
        auth = await self.receive()
        assert auth["type"] == "auth"
        await self.let_in_with(auth, recorded_init)
        return auth

    async def let_in_with(self, auth: Frame, recorded_init: Frame) -> None:
        nonce = live_ports().random.randbytes
        keys = seal_keys({"openai": Secret(KEY)}, auth["token"], nonce)
        await self.send({"type": "init", "data": {**recorded_init["data"], "api_keys": keys}})

    async def drop(self) -> None:
        """Lose the connection without a word."""
        await trio.aclose_forcefully(self._stream)


class RecordedHost:
    """Takes connections on a real port."""

    def __init__(self) -> None:
        self.port = 0
        self.heard: list[Frame] = []
        """Everything that VMs have said."""
        self._put, self._links = trio.open_memory_channel[Link](1)

    async def accept(self) -> Link:
        return await self._links.receive()

    async def serve(self, stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            socket = await request.accept()
            await self._put.send(Link(socket, request.path, stream, self.heard))


@asynccontextmanager
async def open_exchange(
    directory: Path, **environment: str
) -> AsyncGenerator[tuple[RecordedHost, trio.CancelScope]]:
    """Run a host's player and a VM that dials it; the scope is that of the VM."""
    host, vm = RecordedHost(), trio.CancelScope()
    workspace = directory / "workspace"
    workspace.mkdir()
    known = live_ports()
    ports = attrs.evolve(known, environment={"PATH": known.environment["PATH"], **environment})

    async def run(url: str) -> None:
        settings = VmSettings(
            url=url,
            user_id="user-1",
            token=Secret("vm-token-1"),
            ticket=Secret("ticket-1"),
            workspace=workspace,
            state_dir=directory / "state",
            deadlines=DEADLINES,
        )
        with vm:
            await run_vm(settings, ports)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(trio.serve_tcp, host.serve, 0, host="127.0.0.1")
            )
            port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(run, f"ws://127.0.0.1:{port}/ws/vm")
            yield host, vm
            nursery.cancel_scope.cancel()


def events_of(frames: list[Frame]) -> list[Frame]:
    return [json.loads(frame["data"]) for frame in frames if frame["type"] == "sse_event"]


def reports_of(frames: list[Frame], method: str) -> list[Frame]:
    return [
        frame["params"]
        for frame in frames
        if frame["type"] == "fire_and_forget" and frame["method"] == method
    ]


def is_terminal(frame: Frame) -> bool:
    return frame["type"] == "sse_event" and "execution_" in json.loads(frame["data"])["type"]


def is_snapshot(status: str) -> Callable[[Frame], bool]:
    def fits(frame: Frame) -> bool:
        is_sync = frame["type"] == "fire_and_forget" and frame["method"] == "snapshot_sync"
        return is_sync and frame["params"]["checkpoint"].get("status") == status

    return fits


def text_of(events: list[Frame]) -> str:
    return "".join(event["content"] for event in events if event["type"] == "text_chunk")


def check_run(events: list[Frame]) -> None:
    """Check that a run has one end, that it is the last event, and nothing has an old name."""
    kinds = [event["type"] for event in events]
    assert [kind.startswith("execution_") for kind in kinds].count(True) == 1
    assert kinds[-1].startswith("execution_")
    assert not {"text", "tool_call", "tool_result", "done"} & {*kinds}


def check_level_1(frames: list[Frame]) -> None:
    """Check that a level 1 host hears only what it knows."""
    for frame in frames:
        fields = {*frame} - {"type"}
        if frame["type"] == "auth":  # the VM does not know yet who listens
            continue
        assert fields == OLD_FIELDS[frame["type"]]
        if frame.get("method") == "snapshot_sync":
            assert {*frame["params"]} <= OLD_SNAPSHOT


async def test_a_recorded_host_is_served_by_the_graph(tmp_path: Path) -> None:
    lines = read_recording("graph-exchange")
    (init,) = said_by_host(lines, "init")
    (start,) = said_by_host(lines, "start_session")
    first, second = said_by_host(lines, "user_message")
    (patch,) = said_by_host(lines, "config_update")
    (cancel,) = said_by_host(lines, "cancel")
    (stop,) = said_by_host(lines, "stop_session")
    tokens = [f"tok{n} " for n in range(20)]

    def behave(request: RecordedRequest) -> Behaviour:
        last = request.messages[-1]
        if last.role == "user" and last.content == "hello there":
            return call_tools(
                ("use_skill", {"skill_id": "pdf-kit"}), ("search_memory", {"query": "hello there"})
            )
        if last.role == "user" and last.content == "third":
            return call_tools(("search_memory", {"query": "third"}))
        return say(*tokens, delay=0.02 if last.content == "second" else 0)

    async with (
        open_model_server(behave) as model,
        open_exchange(tmp_path, OPENAI_BASE_URL=model.base_url) as (host, _),
    ):
        link = await host.accept()
        assert link.path == "/ws/vm?user_id=user-1&ticket=ticket-1"
        auth = await link.let_in(init)
        assert auth["token"] == "vm-token-1"
        link.answers = answers_of(lines)

        # --- a whole run, back to back
        await link.send(start, first)
        frames = await link.until(is_terminal)
        events = events_of(frames)
        check_run(events)
        assert [event["type"] for event in events][:3] == ["run_started", "thinking", "thinking"]
        *said, end = [event for event in events if event["type"] != "thinking"][-21:]
        assert [(event["type"], event["content"]) for event in said] == [
            ("text_chunk", token) for token in tokens
        ]
        assert end["type"] == "execution_complete"
        assert events[-1]["final_response"] == "".join(tokens)
        requests = [frame for frame in frames if frame["type"] == "request"]
        # Both at once, in any order.
        assert {each["method"]: each["params"] for each in requests} == {
            "get_skill_package": {"skill_id": "pdf-kit"},
            "memory_search": {"query": "hello there", "top_k": 5},
        }
        asked = model.requests[0]
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert asked.body["model"] == "gpt-4o"
        prompt = str(asked.body["messages"])
        assert "be brief" in prompt
        assert "pdf-kit" in prompt
        assert "needs-moon" not in prompt
        assert [message.content for message in model.requests[1].messages[-2:-1]] == ["# s"]
        assert "memo-hit" in model.requests[1].messages[-1].content
        frames += await link.until(is_snapshot("completed"))
        snapshot = reports_of(frames, "snapshot_sync")[-1]
        assert "tok19" in json.dumps(snapshot["checkpoint"])
        assert "hello there" in snapshot["short_term_memory"]["content"]

        # --- a cancel in the middle, after a change of model
        await link.send(patch, start, second)
        await link.until(lambda frame: "tok0" in frame.get("data", ""))
        await link.send(cancel)
        mark = len(host.heard)
        await link.until(is_snapshot("cancelled"))
        ended = events_of(host.heard[mark:])[-1]
        assert ended["type"] == "execution_complete"
        assert ended["cancelled"] is True
        assert model.requests[-1].body["model"] == "gpt-4o-mini"
        assert [message.content for message in model.requests[-1].messages][-1] == "second"

        # --- a connection that is lost while a request is under way
        del link.answers["memory_search"]
        await link.send(start, {**second, "data": {**second["data"], "message": "third"}})
        (request,) = (await link.until(lambda frame: frame["type"] == "request"))[-1:]
        await link.drop()
        link = await host.accept()
        assert link.path == "/ws/vm?user_id=user-1"  # the ticket is spent
        await link.let_in(init)
        while (resume := await link.receive())["type"] == "heartbeat":
            assert resume["active_sessions"] == [SESSION]
        assert resume == {"type": "resume", "pending_ids": [request["id"]]}
        result = {"status": "completed", "data": answers_of(lines)["memory_search"]["result"]}
        await link.send({"type": "resume_response", "results": {request["id"]: result}})
        mark = len(host.heard)
        await link.until(is_terminal)
        events = events_of(host.heard[mark:])
        check_run(events)
        assert text_of(events) == "".join(tokens)
        assert "memo-hit" in model.requests[-1].messages[-1].content

        # --- the end
        await link.until(lambda frame: frame.get("active_sessions") == [SESSION])
        await link.send(stop)
        await link.until(lambda frame: frame.get("active_sessions") == [])
    check_level_1(host.heard)
    assert model.problems == []
    usage = reports_of(host.heard, "usage_report")
    assert (usage[0]["tokens_in"], usage[0]["tokens_out"]) == (22, 27)  # of two requests
    assert [frame["type"] for frame in host.heard].count("resume") == 1  # not on the first link
    runs = [event for event in events_of(host.heard) if event["type"].startswith("execution_")]
    assert len({event["run_id"] for event in runs}) == len(runs) == 3


def write_bridge(lines: list[Frame], path: Path) -> None:
    """Write down what the recorded VM's bridge heard and said, as ``replay_bridge.py`` reads it."""
    said: list[tuple[str, Frame]] = []
    for line in lines:
        frame = line["frame"]
        match frame["type"]:
            case "start_session":
                said.append(("adapter->bridge", {"type": "start"}))
            case "user_message" | "cancel":
                said.append(("adapter->bridge", {"type": frame["type"]}))
            case "response":
                said.append(("adapter->bridge", {"type": "cp_response"}))
            case "sse_event":
                said.append(("bridge->adapter", json.loads(frame["data"])))
            case "request":
                said.append(("bridge->adapter", {**frame, "type": "cp_request"}))
            case "fire_and_forget":
                said.append(("bridge->adapter", {**frame, "type": "cp_fire_and_forget"}))
    assert said[1][1]["params"] == {"skill_id": "pdf-kit"}
    del said[1:3]  # the VM asked for this package itself
    rows = [json.dumps({"dir": way, "msg": message}) for way, message in said]
    path.write_text("\n".join(rows))


async def test_a_recorded_host_is_served_by_a_bridge(tmp_path: Path) -> None:
    lines = read_recording("openclaw-exchange")
    (init,) = said_by_host(lines, "init")
    (start,) = said_by_host(lines, "start_session")
    first, second = said_by_host(lines, "user_message")
    (patch,) = said_by_host(lines, "config_update")
    (cancel,) = said_by_host(lines, "cancel")
    (stop,) = said_by_host(lines, "stop_session")
    write_bridge(lines, tmp_path / "bridge.jsonl")
    command = shlex.join([sys.executable, "-S", str(BRIDGE), str(tmp_path / "bridge.jsonl")])
    answer = "OpenClaw mock response: memo-hit (skills:1)"
    async with open_exchange(tmp_path, OPENCLAW_BRIDGE_CMD=command) as (host, vm):
        link = await host.accept()
        await link.let_in(init)
        link.answers = answers_of(lines)
        await link.send(start, first)
        frames = await link.until(is_terminal)
        events = events_of(frames)
        check_run(events)
        assert text_of(events) == answer == events[-1]["final_response"]
        requests = [frame for frame in frames if frame["type"] == "request"]
        assert [(each["method"], each["params"]) for each in requests] == [
            ("get_skill_package", {"skill_id": "pdf-kit", "version": "current"}),
            ("memory_search", {"query": "hello there", "top_k": 3}),
        ]

        await link.until(is_snapshot("completed"))
        await link.send(patch, start, second)
        mark = len(host.heard)
        await link.until(lambda frame: answer in frame.get("data", ""))
        await link.send(cancel)
        await link.until(is_snapshot("cancelled"))
        events = events_of(host.heard[mark:])
        check_run(events)  # what the bridge says late is dropped
        assert text_of(events) == answer
        assert events[-1]["cancelled"] is True

        # The next message is answered by a new bridge.
        await link.send(start, {**second, "data": {**second["data"], "message": "third"}})
        mark = len(host.heard)
        await link.until(is_terminal)
        events = events_of(host.heard[mark:])
        check_run(events)
        assert text_of(events) == answer

        await link.send(stop)
        await link.until(lambda frame: frame.get("active_sessions") == [])
        vm.cancel()
    check_level_1(host.heard)
    audit = reports_of(host.heard, "audit_log")
    assert audit[0] == {
        "event": "openclaw_mock_response",
        "details": {"memory_hit": "memo-hit", "loaded_skills": 1},
    }
    usage = reports_of(host.heard, "usage_report")
    assert {"model": "openclaw-mock", "tokens_in": 11, "tokens_out": 8} in usage


async def test_a_cancel_right_behind_its_message_is_not_lost(tmp_path: Path) -> None:
    lines = read_recording("graph-exchange")
    (init,) = said_by_host(lines, "init")
    (start,) = said_by_host(lines, "start_session")
    first, _ = said_by_host(lines, "user_message")
    cancel = {"type": "cancel", "session_id": SESSION, "reason": "user_cancelled"}

    async with (
        open_model_server(say("never", delay=60)) as model,
        open_exchange(tmp_path, OPENAI_BASE_URL=model.base_url) as (host, _),
    ):
        link = await host.accept()
        await link.let_in(init)
        for burst in ([cancel, start, cancel, first, cancel], [start, first, cancel, cancel]):
            await link.send(*burst)
            mark = len(host.heard)
            await link.until(is_terminal)
            events = events_of(host.heard[mark:])
            check_run(events)
            assert events[-1]["cancelled"] is True
        # What makes no sense is answered, and nothing else suffers.
        await link.send(
            {"type": "from_tomorrow", "session_id": SESSION},
            {"type": "stop_session", "data": {"session_id": "nobody"}},
            {**start, "data": {**start["data"], "session_id": "odd", "runtime_type": "cobol"}},
            {**first, "session_id": "odd"},
        )
        frames = await link.until(is_terminal)
        assert [frame["code"] for frame in frames if frame["type"] == "error"] == [
            "REMOTE_PROTOCOL"
        ]
        assert frames[-1]["session_id"] == "odd"
        assert events_of(frames)[-1]["code"] == "UNKNOWN_RUNTIME"
        await link.until(lambda frame: SESSION in frame.get("active_sessions", ()))
    ends = [event for event in events_of(host.heard) if "execution_" in event["type"]]
    assert len(ends) == 3


async def wait_filled(path: trio.Path) -> None:
    while True:
        if (await path.stat()).st_size:
            return
        await trio.sleep(0.01)


async def test_what_is_said_while_the_link_is_down_follows_in_order(tmp_path: Path) -> None:
    lines = read_recording("graph-exchange")
    (init,) = said_by_host(lines, "init")
    (start,) = said_by_host(lines, "start_session")
    first, _ = said_by_host(lines, "user_message")
    may_go_on = trio.Event()
    tokens = [f"tok{n} " for n in range(20)]
    steps = [Text(token) for token in tokens]
    answer = Answer(steps=(steps[0], Gate(may_go_on), *steps[1:], Finish(), Tokens(), Done()))

    async with (
        open_model_server(answer) as model,
        open_exchange(tmp_path, OPENAI_BASE_URL=model.base_url) as (host, _),
    ):
        link = await host.accept()
        await link.let_in(init)
        await link.send(start, first)
        await link.until(lambda frame: "tok0" in frame.get("data", ""))
        await link.drop()
        link = await host.accept()
        auth = await link.receive()
        assert "ticket" not in link.path
        may_go_on.set()  # the VM is not let in yet: it says all this to nobody
        await wait_filled(
            trio.Path(tmp_path / "state" / "outbox.jsonl")
        )  # with the usage of the run
        await link.let_in_with(auth, init)
        resume = await link.receive()
        assert resume == {"type": "resume", "pending_ids": []}
        await link.send({"type": "resume_response", "results": {}})
        await link.until(is_terminal)
    events = events_of(host.heard)
    check_run(events)
    assert text_of(events) == "".join(tokens) == events[-1]["final_response"]
