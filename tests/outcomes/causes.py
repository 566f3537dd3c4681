"""Every way a run can end, caused for real: real time, threads, children and sockets.

Each :class:`Cause` drives one session and says how its last run must end. What is left
afterwards is measured by :func:`run_cause`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

import semibot
from semibot.live import live_ports
from semibot.models import Call, Fail, Hang, Say, Script, scripted_model, tool_request
from semibot.models.base import ModelFactory
from semibot.ports import Ports
from semibot.session import ActiveRun, Adapter, AdapterContext, AdapterFactory, Run, Session
from semibot.testing import FunctionAdapter, adapter_from
from semibot.testing import model_answers as answers
from semibot.testing.model_server import open_model_server, say
from semibot.wire.events import ExecutionComplete, ExecutionError, TextChunk, ToolCallComplete
from semibot.wire.receipts import Receipt

PROGRAMS = Path(__file__).with_name("bridge.py")

DEADLINES = semibot.Deadlines(
    run_limit=20.0,
    run_cancel_grace=4.0,
    model_response=0.5,
    model_idle=0.5,
    tool_limit=10.0,
    bridge_ready=10.0,
    bridge_snapshot=0.5,
    child_eof_grace=0.2,
    child_term_grace=0.2,
)


@attrs.define
class Stage:
    """What a cause gets."""

    workspace: Path
    ports: Ports
    last: Run | None = None
    extra: str = ""
    reached: trio.Event = attrs.field(factory=trio.Event)

    def graph(self, model: str | ModelFactory, **settings: object) -> semibot.GraphAgent:
        tools = (*TOOLS, *waiting_tools(self.reached))
        return semibot.GraphAgent(model, tools=tools, **settings)  # type: ignore[arg-type]

    @asynccontextmanager
    async def session(
        self, adapter: AdapterFactory, deadlines: semibot.Deadlines = DEADLINES
    ) -> AsyncIterator[Session]:
        async with semibot.open_session(
            adapter, workspace=self.workspace, ports=self.ports, deadlines=deadlines
        ) as session:
            yield session

    async def ask(self, session: Session, message: str = "go") -> Run:
        async with session.run(message) as run:
            self.last = run
            await run.wait()
        return run


@attrs.frozen
class Cause:
    """One row of the table."""

    name: str
    outcome: str
    code: str
    drive: Callable[[Stage], Awaitable[None]]


CAUSES: list[Cause] = []


def cause(
    name: str, outcome: str, code: str = ""
) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    def enter(drive: Callable[[Stage], Awaitable[None]]) -> None:
        CAUSES.append(Cause(name, outcome, code, drive))

    return enter


# --- tools ----------------------------------------------------------------------------


def waiting_tools(reached: trio.Event) -> tuple[semibot.Tool, ...]:
    """Make tools that say when they have been reached."""

    @semibot.tool(is_parallel_safe=True)
    async def wait_async(seconds: float) -> str:
        """Wait on the loop."""
        reached.set()
        await trio.sleep(seconds)
        return "waited"

    @semibot.tool
    def wait_in_thread(seconds: float) -> str:
        """Wait in a thread, which nobody can stop."""
        trio.from_thread.run_sync(reached.set)
        time.sleep(seconds)
        return "waited"

    return wait_async, wait_in_thread


@semibot.tool
async def block_loop(seconds: float) -> str:
    """Hold the event loop, as careless code does."""
    time.sleep(seconds)  # noqa: ASYNC251 - the fault itself
    return "blocked"


@semibot.tool
async def raise_error() -> str:
    """Raise."""
    raise ValueError("no")


@semibot.tool
async def return_much() -> str:
    """Return 50 MB."""
    return "x" * 50_000_000


@semibot.tool
async def return_object() -> object:
    """Return what JSON cannot say."""
    return object()


@semibot.tool
async def ask_a_bridge(behaviour: str) -> str:
    """Run an agent inside an agent: a session of its own, over a bridge."""
    async with (
        semibot.open_session(bridge(behaviour), deadlines=DEADLINES) as session,
        session.run("nested") as run,
    ):
        await run.wait()
    return run.text


TOOLS = (
    block_loop,
    raise_error,
    return_much,
    return_object,
    ask_a_bridge,
)


def calling(tool: str, arguments: dict[str, object] | None = None) -> Script:
    """A model that makes one call and then answers."""
    return scripted_model([Call(tool_request("c", tool, arguments or {})), Say("done")])  # type: ignore[arg-type]


def bridge(behaviour: str) -> semibot.BridgeAgent:
    return semibot.BridgeAgent([sys.executable, "-I", "-S", str(PROGRAMS), behaviour])


async def call_result(stage: Stage, script: Script, **settings: object) -> ToolCallComplete:
    async with stage.session(stage.graph(script, **settings)) as session, session.run("go") as run:
        stage.last = run
        found = [event async for event in run.events if isinstance(event, ToolCallComplete)]
        stage.extra = f"call: {found[0].error or 'ok'}"[:60]
        if session.statistics().worst_block is not None:
            stage.extra += ", block reported"
    return found[0]


async def cancel_in_mid_stream(stage: Stage, adapter: AdapterFactory) -> Receipt:
    """Cancel a run as soon as it has said something."""
    async with stage.session(adapter) as session, session.run("go") as run:
        stage.last = run
        async for event in run.events:
            if isinstance(event, TextChunk):
                break
        return await cancel(stage, run)


async def cancel_in_tool(stage: Stage, script: Script) -> Receipt:
    """Cancel a run as soon as its tool runs."""
    async with stage.session(stage.graph(script)) as session, session.run("go") as run:
        stage.last = run
        await stage.reached.wait()
        return await cancel(stage, run)


async def cancel(stage: Stage, run: Run) -> Receipt:
    receipt = await run.cancel("enough")
    assert receipt is not None
    kinds = ", ".join(sorted(activity.kind for activity in receipt.stopped))
    stage.extra = f"stopped: {kinds or 'nothing'}"
    if receipt.abandoned:
        stage.extra += f"; abandoned: {', '.join(a.kind for a in receipt.abandoned)}"
    return receipt


def has_child(run: Run) -> bool:
    return any(activity.kind == "child" and activity.pid for activity in run.under_way())


# --- a model that works ---------------------------------------------------------------


@cause("the model answers", "completed")
async def _(stage: Stage) -> None:
    async with stage.session(stage.graph(scripted_model([Say("hello")]))) as session:
        await stage.ask(session)


@cause("a tool works", "completed")
async def _(stage: Stage) -> None:
    assert (await call_result(stage, calling("wait_async", {"seconds": 0}))).success


@cause("the caller leaves the block early", "cancelled")
async def _(stage: Stage) -> None:
    slow = stage.graph(scripted_model([Say("slow and steady", chunk=1, delay=0.05)]))
    async with stage.session(slow) as session, session.run("go") as run:
        stage.last = run
        async for event in run.events:
            if isinstance(event, TextChunk):
                break


@cause("a deadline of the caller passes", "cancelled")
async def _(stage: Stage) -> None:
    async with stage.session(stage.graph(scripted_model([Hang(after="a")]))) as session:
        with trio.move_on_after(0.2) as scope:
            await stage.ask(session)
        assert scope.cancelled_caught


@cause("run.cancel() in mid-stream", "cancelled")
async def _(stage: Stage) -> None:
    await cancel_in_mid_stream(stage, stage.graph(scripted_model([Hang(after="half")])))


@cause("run.cancel() during an async tool", "cancelled")
async def _(stage: Stage) -> None:
    receipt = await cancel_in_tool(stage, calling("wait_async", {"seconds": 60}))
    assert receipt.abandoned == ()


@cause("run.cancel() during a tool in a thread", "cancelled")
async def _(stage: Stage) -> None:
    receipt = await cancel_in_tool(stage, calling("wait_in_thread", {"seconds": 1}))
    assert [activity.kind for activity in receipt.abandoned] == ["thread"]


@cause("run.cancel() during a command that ignores SIGTERM", "cancelled")
async def _(stage: Stage) -> None:
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    script = calling("run_command", {"argv": [sys.executable, "-I", "-S", "-c", program]})
    async with (
        stage.session(stage.graph(script, grants=["run"])) as session,
        session.run("go") as run,
    ):
        stage.last = run
        while not has_child(run):  # noqa: ASYNC110 - the system's state: nobody tells us
            await trio.sleep(0.01)
        assert (await cancel(stage, run)).abandoned == ()


@cause("a new message interrupts", "cancelled")
async def _(stage: Stage) -> None:
    script = scripted_model([Hang(after="a"), Say("b")])
    async with stage.session(stage.graph(script)) as session, session.run("one") as first:
        stage.last = first
        async for event in first.events:
            if isinstance(event, TextChunk):
                break
        async with session.run("two") as second:
            assert await second.wait() == "completed"


@cause("run.limit passes", "timeout", "DEADLINE_EXCEEDED")
async def _(stage: Stage) -> None:
    limit = attrs.evolve(DEADLINES, run_limit=0.2)
    async with stage.session(stage.graph(calling("wait_async", {"seconds": 60})), limit) as session:
        await stage.ask(session)


@cause("the budget passes while a thread is busy", "timeout", "DEADLINE_EXCEEDED")
async def _(stage: Stage) -> None:
    script = calling("wait_in_thread", {"seconds": 1})
    async with stage.session(stage.graph(script)) as session, session.run("go", budget=0.2) as run:
        stage.last = run
        await run.wait()


@cause("the session closes", "interrupted", "INTERRUPTED")
async def _(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        async with stage.session(stage.graph(scripted_model([Hang(after="a")]))) as session:
            nursery.start_soon(stage.ask, session)
            async for entry in session.cursor(after=0):
                if isinstance(entry.event, TextChunk):
                    break


# --- tools that do not ----------------------------------------------------------------


@cause("a tool raises", "completed")
async def _(stage: Stage) -> None:
    assert not (await call_result(stage, calling("raise_error"))).success


@cause("a tool hangs past its limit", "completed")
async def _(stage: Stage) -> None:
    hanging = semibot.tool(name="hang", limit=0.2)(_hang)
    agent = semibot.GraphAgent(calling("hang"), tools=[hanging])
    async with stage.session(agent) as session, session.run("go") as run:
        stage.last = run
        found = [event async for event in run.events if isinstance(event, ToolCallComplete)]
    assert found[0].error == "timeout"
    stage.extra = "call: timeout"


async def _hang() -> str:
    """Hang."""
    await trio.sleep_forever()
    return ""


@cause("a tool blocks the event loop", "completed")
async def _(stage: Stage) -> None:
    await call_result(stage, calling("block_loop", {"seconds": 2}))
    assert "block reported" in stage.extra


@cause("a tool returns 50 MB", "completed")
async def _(stage: Stage) -> None:
    assert (await call_result(stage, calling("return_much"))).success


@cause("a tool returns what JSON cannot say", "completed")
async def _(stage: Stage) -> None:
    assert not (await call_result(stage, calling("return_object"))).success


@cause("a tool is denied", "completed")
async def _(stage: Stage) -> None:
    found = await call_result(stage, calling("run_command", {"argv": ["true"]}))
    assert found.error == "denied"


@cause("the model calls a tool with bad arguments", "completed")
async def _(stage: Stage) -> None:
    found = await call_result(stage, calling("wait_async", {"seconds": "long"}))
    assert not found.success


# --- model servers --------------------------------------------------------------------


async def against(stage: Stage, *behaviours: answers.Behaviour) -> None:
    async with open_model_server(behaviours) as server:
        stage.ports = attrs.evolve(
            stage.ports, environment={"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "k"}
        )
        async with stage.session(stage.graph("openai:test")) as session:
            await stage.ask(session)
        stage.extra = f"{len(server.requests)} request(s)"


@cause("a model server answers", "completed")
async def _(stage: Stage) -> None:
    await against(stage, say("hello"))


@cause("no model server is there", "failed", "MODEL_UNREACHABLE")
async def _(stage: Stage) -> None:
    url = "http://127.0.0.1:9/v1"
    stage.ports = attrs.evolve(stage.ports, environment={"OPENAI_BASE_URL": url})
    async with stage.session(stage.graph("openai:test")) as session:
        await stage.ask(session)


@cause("the model server hangs before its answer", "failed", "DEADLINE_EXCEEDED")
async def _(stage: Stage) -> None:
    hang = answers.Answer(before=(answers.Hang(),), steps=())
    await against(stage, hang, hang, hang)


@cause("the model server hangs in its answer", "failed", "DEADLINE_EXCEEDED")
async def _(stage: Stage) -> None:
    await against(stage, answers.Answer(steps=(answers.Text("half"), answers.Hang())))


@cause("the model server says 429, three times", "failed", "MODEL_RATE_LIMITED")
async def _(stage: Stage) -> None:
    await against(stage, *[answers.Refusal(status=429)] * 3)


@cause("the model server says 500, then answers", "completed")
async def _(stage: Stage) -> None:
    await against(stage, answers.Refusal(status=500), say("better"))


@cause("the model server cuts its answer", "failed", "MODEL_STREAM_BROKEN")
async def _(stage: Stage) -> None:
    await against(stage, answers.Answer(steps=(answers.Text("half"), answers.Cut(is_reset=True))))


@cause("the model server says malformed JSON", "failed", "MODEL_PROTOCOL")
async def _(stage: Stage) -> None:
    await against(stage, *[answers.Answer(steps=(answers.Raw(b"data: {oops\n\n"),))] * 3)


@cause("no key is set", "failed", "MODEL_NOT_CONFIGURED")
async def _(stage: Stage) -> None:
    stage.ports = attrs.evolve(stage.ports, environment={})
    async with stage.session(stage.graph("openai:test")) as session:
        await stage.ask(session)


@cause("the model's adapter code fails", "failed", "MODEL_REFUSED")
async def _(stage: Stage) -> None:
    error = semibot.errors.ModelError("no", code="MODEL_REFUSED")
    async with stage.session(stage.graph(scripted_model([Fail(error)]))) as session:
        await stage.ask(session)


# --- adapters -------------------------------------------------------------------------


@cause("an adapter raises", "failed", "ADAPTER_ERROR")
async def _(stage: Stage) -> None:
    async def handle(_: ActiveRun) -> None:
        raise RuntimeError("bug")

    async with stage.session(adapter_from(handle)) as session:
        await stage.ask(session)


@cause("an adapter says no end", "failed", "ADAPTER_NO_OUTCOME")
async def _(stage: Stage) -> None:
    async def handle(_: ActiveRun) -> None:
        return

    async with stage.session(adapter_from(handle)) as session:
        await stage.ask(session)


@cause("an adapter emits after its end", "completed")
async def _(stage: Stage) -> None:
    async def handle(run: ActiveRun) -> None:
        await run.complete("done")
        stage.extra = repr(await run.emit(TextChunk(content="late")))

    async with stage.session(adapter_from(handle)) as session:
        await stage.ask(session)


@cause("an adapter does not stop in its grace", "cancelled")
async def _(stage: Stage) -> None:
    release = trio.Event()

    async def handle(run: ActiveRun) -> None:
        await run.emit(TextChunk(content="a"))
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await release.wait()

    quick = attrs.evolve(DEADLINES, run_cancel_grace=0.2)
    async with stage.session(adapter_from(handle), quick) as session:
        async with session.run("go") as run:
            stage.last = run
            async for event in run.events:
                if isinstance(event, TextChunk):
                    break
            assert len((await cancel(stage, run)).abandoned) == 1
        release.set()


@cause("a background task of an adapter fails", "failed", "ADAPTER_FAILED")
async def _(stage: Stage) -> None:
    async def fail() -> None:
        raise OSError("background")

    async def handle(_: ActiveRun) -> None:
        await trio.sleep_forever()

    @asynccontextmanager
    async def factory(context: AdapterContext) -> AsyncIterator[Adapter]:
        async def handle_and_fail(run: ActiveRun) -> None:
            context.nursery.start_soon(fail)
            await handle(run)

        yield FunctionAdapter(handle_and_fail)

    try:
        async with stage.session(factory) as session:
            await stage.ask(session)
    except semibot.errors.AdapterError:
        return
    raise AssertionError("the session did not hear of it")


@cause("the answer cannot be saved", "failed", "STORE_FAILED")
async def _(stage: Stage) -> None:
    async def handle(run: ActiveRun) -> None:
        for directory in stage.workspace.glob(".semibot/sessions/*/checkpoints"):
            directory.rename(stage.workspace / "aside")
            directory.write_text("in the way")
        await run.complete("done")

    async with stage.session(adapter_from(handle)) as session:
        await stage.ask(session)


@cause("a decision cannot be recorded, so the tool does not run", "completed")
async def _(stage: Stage) -> None:
    script = calling("wait_async", {"seconds": 0})
    async with stage.session(stage.graph(script)) as session, session.run("go") as run:
        stage.last = run
        for directory in stage.workspace.glob(".semibot/sessions/*"):
            os.mkfifo(directory / "audit.jsonl")  # as a command of the agent might
        found = [event async for event in run.events if isinstance(event, ToolCallComplete)]
    assert not stage.reached.is_set()
    stage.extra = f"call: {found[0].error}"[:60]


# --- bridges --------------------------------------------------------------------------


async def over_bridge(stage: Stage, behaviour: str) -> None:
    async with stage.session(bridge(behaviour)) as session:
        await stage.ask(session)


@cause("a bridge answers", "completed")
async def _(stage: Stage) -> None:
    await over_bridge(stage, "answer")


@cause("the bridge's program is missing", "failed", "OPENCLAW_BRIDGE_START_FAILED")
async def _(stage: Stage) -> None:
    async with stage.session(semibot.BridgeAgent(["/no/such/program"])) as session:
        await stage.ask(session)


@cause("a bridge exits 0 in a run", "failed", "OPENCLAW_BRIDGE_EXITED")
async def _(stage: Stage) -> None:
    await over_bridge(stage, "exit-0")


@cause("a bridge exits 1 in a run", "failed", "OPENCLAW_BRIDGE_EXITED")
async def _(stage: Stage) -> None:
    await over_bridge(stage, "exit-1")


@cause("a bridge is killed in a run", "failed", "OPENCLAW_BRIDGE_EXITED")
async def _(stage: Stage) -> None:
    await over_bridge(stage, "killed")


@cause("a bridge says a line of 20 MB", "failed", "OPENCLAW_BRIDGE_PROTOCOL")
async def _(stage: Stage) -> None:
    await over_bridge(stage, "long-line")


@cause("a bridge says garbage, then answers", "completed")
async def _(stage: Stage) -> None:
    await over_bridge(stage, "garbage")


@cause("a bridge floods stderr, then answers", "completed")
async def _(stage: Stage) -> None:
    await over_bridge(stage, "flood")


@cause("a bridge says two ends", "completed")
async def _(stage: Stage) -> None:
    await over_bridge(stage, "two-ends")


@cause("a bridge that ignores EOF and SIGTERM is cancelled", "cancelled")
async def _(stage: Stage) -> None:
    await cancel_in_mid_stream(stage, bridge("rude"))


@cause("a bridge that forks twice is cancelled", "cancelled")
async def _(stage: Stage) -> None:
    await cancel_in_mid_stream(stage, bridge("forks"))


@cause("a deadline passes around an agent in an agent, with a bridge inside", "cancelled")
async def _(stage: Stage) -> None:
    script = calling("ask_a_bridge", {"behaviour": "rude"})
    async with stage.session(stage.graph(script)) as session:
        started = trio.current_time()
        with trio.move_on_after(1.5):
            await stage.ask(session)
        seconds = trio.current_time() - started
    assert seconds < 1.5 + DEADLINES.run_cancel_grace + 3 * DEADLINES.session_save
    stage.extra = f"left {seconds - 1.5:.1f} s after the deadline"


# --- measuring ------------------------------------------------------------------------


@attrs.frozen
class Row:
    """What came of a cause."""

    cause: Cause
    outcome: str
    code: str
    terminals: int
    left: str
    extra: str
    seconds: float

    @property
    def is_as_expected(self) -> bool:
        return (self.outcome, self.code, self.terminals, self.left) == (
            self.cause.outcome,
            self.cause.code,
            1,
            "",
        )


def run_cause(cause: Cause, workspace: Path) -> Row:
    """Run *cause* in a loop of its own and measure what is left of it."""
    ports = live_ports()
    descriptors = _descriptors()
    started = time.monotonic()
    stage = Stage(workspace, ports)

    async def main() -> tuple[int, str]:
        tasks = trio.lowlevel.current_statistics().tasks_living
        await cause.drive(stage)
        left = trio.lowlevel.current_statistics().tasks_living - tasks
        with trio.move_on_after(10):  # abandoned threads end by themselves, in at most 1 s
            while any(stage.ports.threads.in_use().values()):  # noqa: ASYNC110 - nor theirs
                await trio.sleep(0.01)
        assert stage.last is not None
        terminals = sum(
            isinstance(event, ExecutionComplete | ExecutionError)
            for event in [event async for event in stage.last.events]
        )
        return terminals, f"{left} tasks" if left else ""

    terminals, left = trio.run(main)
    assert stage.last is not None
    terminal = stage.last.terminal
    found = [left] if left else []
    if any(stage.ports.threads.in_use().values()):
        found.append(f"threads {dict(stage.ports.threads.in_use())}")
    if children := _children() | processes_in(workspace):
        found.append(f"children {sorted(children)}")
    if more := _descriptors() - descriptors:
        found.append(f"descriptors {sorted(more)}")
    return Row(
        cause,
        str(stage.last.outcome),
        terminal.code if isinstance(terminal, ExecutionError) else "",
        terminals,
        ", ".join(found),
        stage.extra,
        time.monotonic() - started,
    )


def _descriptors() -> set[str]:
    found: set[str] = set()
    for entry in Path("/dev/fd").iterdir():
        try:
            os.fstat(int(entry.name))
        except OSError:
            continue
        found.add(entry.name)
    return found


def _children() -> set[int]:
    """Find the children of this process, zombies included."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():  # not Linux: at least no zombie is left
        try:
            return {os.waitpid(-1, os.WNOHANG)[0]}
        except ChildProcessError:
            return set()
    return {int(pid) for file in tasks.glob("*/children") for pid in file.read_text().split()}


def processes_in(workspace: Path) -> set[int]:
    """Find whoever was started for *workspace*, however often it has forked since."""
    found: set[int] = set()
    for directory in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if directory.readlink().is_relative_to(workspace):
                found.add(int(directory.parent.name))
        except OSError:
            continue
    return found
