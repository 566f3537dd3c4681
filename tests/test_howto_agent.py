"""Tests of an agent, as the guide "Test your agent" shows them; they are quoted from here."""

from __future__ import annotations

from contextlib import aclosing, suppress
from pathlib import Path

import attrs
import trio
from trio.testing import MockClock, memory_stream_pair

import semibot
from semibot.live import live_ports
from semibot.models import Call, Hang, Say, scripted_model, tool_request
from semibot.ports import ByteStream, Ports
from semibot.testing import adapter_from, faulty_ports, simulated_ports
from semibot.testing.model_answers import call_tools, say
from semibot.testing.model_server import open_model_server
from semibot.testing.sweep import cancel_everywhere, cut_here, fail_everywhere
from semibot.tools import CallEnded, CallRequest, Decision, Gate, Ledger, Policy
from semibot.wire.events import TextChunk, ToolCallComplete


@semibot.tool(is_parallel_safe=True, limit=30)
async def weather(city: str) -> str:
    """Tell the weather of today.

    Args:
        city: Name of the city.
    """
    await trio.sleep(10)
    return f"rain in {city}"


# --- agent ----------------------------------------------------------------------------


async def test_the_agent_answers_from_the_weather(autojump_clock: MockClock) -> None:
    model = scripted_model(
        [Call(tool_request("1", "weather", {"city": "Bergen"})), Say("Take an umbrella.")]
    )
    agent = semibot.GraphAgent(model, tools=[weather])
    async with semibot.open_session(agent, ports=simulated_ports()) as session:
        async with session.run("Umbrella?") as run:
            events = [event async for event in run.events]

    assert (run.outcome, run.text) == ("completed", "Take an umbrella.")
    calls = [event for event in events if isinstance(event, ToolCallComplete)]
    assert [(call.result, call.duration) for call in calls] == [("rain in Bergen", 10_000)]
    assert "rain in Bergen" in model.requests[1].messages[-1].content  # what the model was told


# --- cancel ---------------------------------------------------------------------------


async def test_a_hanging_model_is_stopped_by_your_scope(autojump_clock: MockClock) -> None:
    agent = semibot.GraphAgent(scripted_model([Hang(after="Well, ")]))
    async with semibot.open_session(agent, ports=simulated_ports()) as session:
        with trio.move_on_after(30):
            async with session.run("Umbrella?") as run:
                await run.wait()

    assert run.outcome == "cancelled"
    assert run.receipt is not None
    assert [activity.kind for activity in run.receipt.stopped] == ["model_call"]


# --- adapter --------------------------------------------------------------------------


async def test_a_reader_sees_what_an_adapter_says(autojump_clock: MockClock) -> None:
    async def handle(run: semibot.ActiveRun) -> None:
        await run.emit(TextChunk(content="hello"))
        await run.complete()

    async with semibot.open_session(adapter_from(handle), ports=simulated_ports()) as session:
        async with session.run("hi") as run:
            await run.wait()

    assert run.text == "hello"


# --- gate -----------------------------------------------------------------------------


async def test_a_call_has_a_decision_and_an_end(autojump_clock: MockClock) -> None:
    record: list[Decision | CallEnded] = []

    async def recorder(entry: Decision | CallEnded) -> None:
        record.append(entry)

    gate = Gate(
        tools=[weather],
        policy=Policy(),
        recorder=recorder,
        ports=simulated_ports(),
        deadlines=semibot.Deadlines(),
        files=None,
        session_id="test",
    )
    request = CallRequest(id="1", name="weather", arguments='{"city": "Oslo"}')
    result = await gate.call(request, run_id="test", ledger=Ledger())

    assert (result.outcome, result.content) == ("ok", "rain in Oslo")
    assert [type(entry) for entry in record] == [Decision, CallEnded]


# --- everywhere -----------------------------------------------------------------------


def test_the_agent_can_be_cancelled_at_every_step() -> None:
    runs: list[semibot.Run] = []

    async def scenario() -> None:
        runs.clear()
        model = scripted_model(
            [Call(tool_request("1", "weather", {"city": "Bergen"})), Say("Take an umbrella.")]
        )
        agent = semibot.GraphAgent(model, tools=[weather])
        async with semibot.open_session(agent, ports=simulated_ports()) as session:
            async with session.run("Umbrella?") as run:
                runs.append(run)
                await run.wait()

    def audit() -> str | None:
        unfinished = [run for run in runs if run.text and run.terminal is None]
        return f"{len(unfinished)} run(s) without an end" if unfinished else None

    report = cancel_everywhere(scenario, audit=audit)

    assert report.problems == ()
    assert report.longest < 1  # seconds that an ending took, on the mock clock


# --- a part ---------------------------------------------------------------------------


def test_a_cancelled_run_does_not_harm_the_next_one() -> None:
    texts: list[str] = []

    async def scenario() -> None:
        texts.clear()
        agent = semibot.GraphAgent(scripted_model([Say("Rain."), Say("Rain.")]))
        async with semibot.open_session(agent, ports=simulated_ports()) as session:
            with cut_here():
                async with session.run("Oslo?") as run:
                    await run.wait()
            async with session.run("Bergen?") as run:  # whatever became of the first
                await run.wait()
            texts.append(run.text)

    report = cancel_everywhere(scenario, audit=lambda: None if texts == ["Rain."] else "no answer")

    assert report.problems == ()


# --- broken streams -------------------------------------------------------------------


async def look_up(ports: Ports, city: str) -> str:
    """Ask a service for the weather, and once more if the connection breaks."""
    for _ in range(2):
        with suppress(OSError, trio.BrokenResourceError):
            stream = await ports.dial("weather.example", 80, use_tls=False)
            async with aclosing(stream):
                await stream.send_all(city.encode())
                return bytes(await stream.receive_some()).decode()
    raise ConnectionError("the weather service cannot be reached")


async def dial(host: str, port: int, *, use_tls: bool) -> ByteStream:
    ours, service = memory_stream_pair()
    await service.send_all(b"rain")
    return ours


def test_the_lookup_gets_over_a_connection_that_breaks() -> None:
    answers: list[str] = []

    async def scenario() -> None:
        answers.clear()
        ports = faulty_ports(attrs.evolve(simulated_ports(), dial=dial))
        answers.append(await look_up(ports, "Bergen"))

    report = fail_everywhere(scenario, audit=lambda: None if answers == ["rain"] else "no answer")

    assert report.problems == ()
    assert report.outcomes == {"done": 3}  # dial, write and read, each broken once


# --- server ---------------------------------------------------------------------------


async def test_the_agent_speaks_to_a_real_server(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("buy milk")
    behaviours = [call_tools(("read_file", {"path": "notes.txt"})), say("Buy ", "milk.")]
    async with open_model_server(behaviours) as server:
        ports = attrs.evolve(live_ports(), environment={"OPENAI_BASE_URL": server.base_url})
        agent = semibot.GraphAgent("openai:test")
        async with semibot.open_session(agent, workspace=tmp_path, ports=ports) as session:
            async with session.run("What is in notes.txt?") as run:
                await run.wait()

    assert run.text == "Buy milk."
    assert server.requests[1].messages[-1].content == "buy milk"
    assert server.problems == []
