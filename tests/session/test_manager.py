"""A VM carries out its host's commands: sessions start, messages become runs, in order."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from manager_kit import (
    config,
    echo,
    hang,
    message,
    opened,
    start,
    start_1,
    stop,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.config import Deadlines
from semibot.errors import AdapterError, WorkspaceUnusable
from semibot.secret import Secret
from semibot.session import ActiveRun, Adapter, AdapterContext, open_session_manager
from semibot.testing import MemoryPlane, adapter_from, simulated_ports
from semibot.wire.codec import JsonObject
from semibot.wire.events import ExecutionComplete, ExecutionError, RunStarted, TextChunk, Thinking
from semibot.wire.frames import CommandAck, FireAndForget
from semibot.wire.plane import PlaneSettings


async def test_a_message_becomes_a_run_with_the_hosts_ids(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(term=3, next_seq=8, command_id="c1"))
        vm.plane.say(message("hi", "r1", command_id="c2", message_id="m1"))
        lane = vm.plane.lane("s1")
        await lane.wait(FireAndForget)
        assert (lane.term, lane.next_seq) == (3, 11)
        assert lane.events == [
            RunStarted(run_id="r1", message_id="m1", message="hi"),
            TextChunk(content="re hi"),
            lane.events[-1],
        ]
        assert lane.events[-1].final_response == "re hi"  # type: ignore[union-attr]
        assert vm.plane.active_sessions() == ("s1",)
        assert vm.manager.statistics().held == 1
        assert vm.manager.statistics().open == 1
        assert vm.manager.statistics().running == 0


async def test_a_command_is_acknowledged_right_behind_what_it_caused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(command_id="c1"), message("hi", "r1", command_id="c2"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete)
        kinds = [getattr(item, "event", item) for item in lane.items[:4]]
        assert kinds[0] == CommandAck(commands=("c1",))
        assert isinstance(kinds[1], RunStarted)
        assert kinds[2] == CommandAck(commands=("c2",))
        assert isinstance(kinds[3], TextChunk)


async def test_a_repeated_command_takes_effect_once_and_is_answered_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        first = (start(command_id="c1"), message("hi", "r1", command_id="c2"))
        vm.plane.say(*first, first[1])
        lane = vm.plane.lane("s1")
        await lane.wait(FireAndForget)
        vm.plane.say(*first)
        assert lane.notes.count(CommandAck(commands=("c1",))) == 2
        assert lane.notes.count(CommandAck(commands=("c2",))) == 2
        assert len([e for e in lane.events if isinstance(e, RunStarted)]) == 1


async def test_another_command_with_the_same_run_starts_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("hi", "r1", command_id="c2"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete)
        vm.plane.say(message("hi", "r1", command_id="c3"))
        await wait_all_tasks_blocked()
        assert lane.notes[-1] == CommandAck(commands=("c3",))
        assert len([e for e in lane.events if isinstance(e, RunStarted)]) == 1


async def test_messages_wait_while_the_session_opens(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def slow(context: AdapterContext) -> AsyncGenerator[Adapter]:
        await trio.sleep(5)
        async with adapter_from(echo)(context) as adapter:
            yield adapter

    async with opened(tmp_path, adapters={"graph": slow}) as vm:
        vm.plane.say(start(), message("hi", "r1"))
        await trio.sleep(4)
        assert vm.plane.lane("s1").events == []
        assert vm.manager.statistics().running == 1
        await vm.plane.lane("s1").wait(ExecutionComplete)
        assert trio.current_time() >= 5


async def test_commands_that_came_before_the_manager_are_carried_out(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    plane = MemoryPlane()
    plane.say(start(), message("hi", "r1"))
    async with opened(tmp_path, plane=plane):
        await plane.lane("s1").wait(ExecutionComplete)


async def test_history_of_the_host_is_the_truth(autojump_clock: MockClock, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    async def handle(run: ActiveRun) -> None:
        seen.append([each.content for each in run.history])
        await echo(run)

    history: tuple[JsonObject, ...] = (
        {"role": "user", "content": "old", "created_at": "whenever"},
        {"role": "narrator", "content": "is no message"},
        {"role": "assistant", "content": "old answer"},
        {"role": "user", "content": "two"},
    )
    async with opened(tmp_path, handle) as vm:
        lane_of = vm.plane.lane
        vm.plane.say(start(), message("one", "r1"))
        await lane_of("s1").wait(ExecutionComplete)
        vm.plane.say(message("two", "r2", history=history))
        await lane_of("s1").wait(ExecutionComplete, 2)
        vm.plane.say(message("three", "r3"))
        await lane_of("s1").wait(ExecutionComplete, 3)
    assert seen == [[], ["old", "old answer"], ["old", "old answer", "two", "re two"]]


async def test_what_is_left_of_the_budget_bounds_the_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("hang", "r1", deadline_ms=1500))
        await vm.plane.lane("s1").wait(ExecutionError)
        assert trio.current_time() == pytest.approx(1.5, abs=0.1)
        (error,) = vm.plane.lane("s1").events[-1:]
        assert isinstance(error, ExecutionError)
        assert error.code == "DEADLINE_EXCEEDED"


async def test_a_blank_message_fails_its_run_only(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("  ", "r1", command_id="c1"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionError)
        assert lane.said("r1")[-1].code == "USAGE"  # type: ignore[union-attr]
        assert CommandAck(commands=("c1",)) in lane.notes
        vm.plane.say(message("hi", "r2"))
        await lane.wait(ExecutionComplete)


@pytest.mark.parametrize("name", [None, "semigraph", "graph"])
async def test_graph_has_three_names(
    name: str | None, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(runtime_type=name), message("hi", "r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)


async def test_other_runtimes_go_by_their_names(autojump_clock: MockClock, tmp_path: Path) -> None:
    payloads: list[JsonObject] = []

    @asynccontextmanager
    async def mine(context: AdapterContext) -> AsyncGenerator[Adapter]:
        payloads.append(context.payload)
        async with adapter_from(echo)(context) as adapter:
            yield adapter

    async with opened(tmp_path, hang, adapters={"mine": mine}) as vm:
        vm.plane.say(start(runtime_type="mine", agent_id="a1"), message("hi", "r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
    assert payloads[0]["agent_id"] == "a1"
    assert "session_id" not in payloads[0]
    assert "openclaw_config" not in payloads[0]


async def test_an_unknown_runtime_fails_the_run_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(runtime_type="nonsense"), message("hi", "r1", command_id="c1"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionError)
        started, error = lane.events
        assert isinstance(started, RunStarted)
        assert isinstance(error, ExecutionError)
        assert error.code == "UNKNOWN_RUNTIME"
        assert "graph" in error.error
        assert CommandAck(commands=("c1",)) in lane.notes
        assert vm.plane.active_sessions() == ("s1",)


async def test_a_session_that_did_not_open_is_tried_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    attempts: list[int] = []

    @asynccontextmanager
    async def moody(context: AdapterContext) -> AsyncGenerator[Adapter]:
        attempts.append(1)
        if len(attempts) < 4:
            raise AdapterError("not today", code="MOODY", is_retryable=True)
        async with adapter_from(echo)(context) as adapter:
            yield adapter

    async with opened(tmp_path, adapters={"graph": moody}) as vm:
        vm.plane.say(start(next_seq=5), message("one", "r1"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionError)
        (error,) = lane.said("r1")[-1:]
        assert isinstance(error, ExecutionError)
        assert (error.code, error.retryable) == ("MOODY", True)
        vm.plane.say(message("two", "r2"))
        await lane.wait(ExecutionError, 2)
        vm.plane.say(start())  # tries again by itself
        await wait_all_tasks_blocked()
        assert len(attempts) == 3
        vm.plane.say(message("three", "r3"))
        await lane.wait(ExecutionComplete)
        assert lane.next_seq == 5 + 2 + 2 + 3


async def test_a_session_that_breaks_down_goes_on_at_the_next_message(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def fragile(context: AdapterContext) -> AsyncGenerator[Adapter]:
        async def background() -> None:
            await broken.wait()
            raise ValueError

        context.nursery.start_soon(background)

        async def handle(run: ActiveRun) -> None:
            history.append([each.content for each in run.history])
            if run.message == "break":
                broken.set()
                await trio.sleep_forever()
            await echo(run)

        async with adapter_from(handle)(context) as adapter:
            yield adapter

    history: list[list[str]] = []
    broken = trio.Event()
    async with opened(tmp_path, adapters={"graph": fragile}) as vm:
        vm.plane.say(start(), message("break", "r1"), start("s2"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionError)
        assert lane.said("r1")[-1].code == "ADAPTER_FAILED"  # type: ignore[union-attr]
        broken = trio.Event()
        vm.plane.say(message("again", "r2"), message("hi", "r3", session_id="s2"))
        await lane.wait(ExecutionComplete)
        await vm.plane.lane("s2").wait(ExecutionComplete)
    assert ["break"] in history


async def test_a_bug_in_one_adapter_does_not_end_the_others(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    def buggy(_: AdapterContext) -> AsyncGenerator[Adapter]:
        raise ExceptionGroup("secret prompts", [ValueError("more of them")])

    adapters = {"graph": adapter_from(echo), "buggy": buggy}
    async with opened(tmp_path, adapters=adapters) as vm:  # type: ignore[arg-type]
        vm.plane.say(start(runtime_type="buggy"), message("hi", "r1"))
        vm.plane.say(start("s2"), message("hi", "r2", session_id="s2"))
        await vm.plane.lane("s1").wait(ExecutionError)
        await vm.plane.lane("s2").wait(ExecutionComplete)
        error = vm.plane.lane("s1").events[-1]
        assert isinstance(error, ExecutionError)
        assert error.code == "ADAPTER_ERROR"
        assert "secret" not in error.error


async def test_a_lane_that_breaks_ends_its_own_session_only(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), start("s2"))
        vm.plane.lane("s1").next_seq = 77  # a bug: no number fits any more
        vm.plane.say(message("hi", "r1"), message("hi", "r2", session_id="s2"))
        await vm.plane.lane("s2").wait(ExecutionComplete)
        vm.plane.say(stop("c1"))
        await trio.sleep(200)  # clean-up of what is broken takes its whole grace
        assert vm.manager.statistics().ending == 0
        assert vm.plane.active_sessions() == ("s2",)


async def test_level_1_starts_a_session_before_every_message(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start_1(), message("one"), start_1(), message("two"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete, 2)
        await lane.wait(FireAndForget)
        ends = [e for e in lane.events if isinstance(e, ExecutionComplete)]
        assert [end.cancelled for end in ends] == [True, None]  # the second interrupts the first
        assert [type(e) for e in lane.events].count(RunStarted) == 2
        assert lane.notes == []
        assert "term" not in lane.snapshots[-1].params
        assert len(vm.plane.lanes) == 1


async def test_level_1_continues_what_is_on_disk(autojump_clock: MockClock, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    async def handle(run: ActiveRun) -> None:
        seen.append([each.content for each in run.history])
        await echo(run)

    for text in ("one", "two"):
        async with opened(tmp_path, handle) as vm:
            vm.plane.say(start_1(), message(text))
            await vm.plane.lane("s1").wait(ExecutionComplete)
    assert seen == [[], ["one", "re one"]]


async def test_level_1_may_leave_start_session_out(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(message("one"))
        await vm.plane.lane("s1").wait(ExecutionComplete)


async def test_a_change_of_configuration_waits_for_the_next_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    patches: list[JsonObject] = []

    class Configurable(Adapter):
        async def handle(self, run: ActiveRun) -> None:
            await echo(run)

        async def update_config(self, patch: JsonObject) -> None:
            patches.append(patch)

    @asynccontextmanager
    async def configurable(_: AdapterContext) -> AsyncGenerator[Adapter]:
        yield Configurable()

    async with opened(tmp_path, adapters={"graph": configurable}) as vm:
        vm.plane.say(start(), config({"a": 1}, "c1"))
        await wait_all_tasks_blocked()
        vm.plane.say(config({"b": 2, "session_id": "s1"}, "c2"))
        await wait_all_tasks_blocked()
        assert patches == []
        assert [n.commands for n in vm.plane.lane("s1").notes] == [("c1",), ("c2",)]  # type: ignore[union-attr]
        vm.plane.say(message("hi", "r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
    assert patches == [{"a": 1}, {"b": 2}]


async def test_a_run_waits_while_the_lane_is_full_but_its_end_does_not(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def talk(run: ActiveRun) -> None:
        for number in range(3):
            await run.emit(Thinking(content=str(number), stage="reasoning"))
        await run.complete("done")

    async with opened(tmp_path, talk) as vm:
        vm.plane.say(start())
        lane = vm.plane.lane("s1")
        lane.fill()
        vm.plane.say(message("hi", "r1"))
        await trio.sleep(60)
        assert [type(e) for e in lane.events] == [RunStarted]
        lane.drain()
        await lane.wait(ExecutionComplete)
        lane.fill()
        vm.plane.say(message("hi", "r2", deadline_ms=1000))
        await lane.wait(ExecutionError)
        assert [type(e) for e in lane.said("r2")] == [RunStarted, ExecutionError]


async def test_an_event_that_is_too_large_for_a_host_is_refused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def talk(run: ActiveRun) -> None:
        await run.emit(Thinking(content="x" * 1024 * 1024, stage="reasoning"))

    async with opened(tmp_path, talk) as vm:
        vm.plane.say(start(), message("\x01" * 300_000, "r1"))
        await vm.plane.lane("s1").wait(ExecutionError)
        started, error = vm.plane.lane("s1").events
        assert isinstance(started, RunStarted)
        assert 100_000 < len(started.message) < 300_000
        assert isinstance(error, ExecutionError)
        assert "write a file instead" in error.error


async def test_a_session_id_that_is_no_name_fails_its_runs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start("../x"), message("hi", "r1", session_id="../x"))
        await vm.plane.lane("../x").wait(ExecutionError)
        assert vm.plane.lane("../x").events[-1].code == "USAGE"  # type: ignore[union-attr]


async def test_what_init_says_is_passed_on(autojump_clock: MockClock, tmp_path: Path) -> None:
    told: list[PlaneSettings] = []
    settings = PlaneSettings(user_id="u", org_id="o", api_keys={"openai": Secret("k")})
    plane = MemoryPlane()
    async with open_session_manager(
        plane,
        adapters={},
        workspace=tmp_path,
        on_configure=told.append,
        ports=simulated_ports(),
    ) as manager:
        assert manager.settings is None
        plane.configure(settings)
        assert manager.settings is settings
        assert told == [settings]
        plane.say(start(), message("hi", "r1"))
        await plane.lane("s1").wait(ExecutionError)
    async with opened(tmp_path) as vm:
        vm.plane.configure(settings)
        assert vm.manager.settings is settings


async def test_without_a_state_directory_sessions_are_in_the_workspace(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    plane = MemoryPlane()
    async with open_session_manager(
        plane, adapters={"graph": adapter_from(echo)}, workspace=tmp_path, ports=simulated_ports()
    ):
        plane.say(start(), message("hi", "r1"))
        await plane.lane("s1").wait(ExecutionComplete)
    assert list((tmp_path / ".semibot" / "sessions" / "s1" / "checkpoints").iterdir())


async def test_a_missing_workspace_is_said_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    with pytest.raises(WorkspaceUnusable):
        async with open_session_manager(
            MemoryPlane(),
            adapters={},
            workspace=tmp_path / "none",
            deadlines=Deadlines(),
            ports=simulated_ports(),
        ):
            raise AssertionError


async def test_requests_of_an_adapter_go_to_the_host(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def asking(context: AdapterContext) -> AsyncGenerator[Adapter]:
        async def handle(run: ActiveRun) -> None:
            found = await context.control_plane.request("s1", "memory_search", {"query": "q"})
            await run.complete(str(found))

        async with adapter_from(handle)(context) as adapter:
            yield adapter

    async def respond(session_id: str, method: str, params: JsonObject) -> str:
        await trio.lowlevel.checkpoint()
        return f"{session_id} {method} {params['query']}"

    async with opened(tmp_path, plane=MemoryPlane(respond), adapters={"graph": asking}) as vm:
        vm.plane.say(start(), message("hi", "r1"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete)
        assert lane.events[-1].final_response == "s1 memory_search q"  # type: ignore[union-attr]
