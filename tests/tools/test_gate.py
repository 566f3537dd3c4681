from __future__ import annotations

import inspect
import math
import threading
import types

import attrs
import pytest
import trio
import trio.testing
from gate_kit import make_kit, wait_until

from semibot.config import Deadlines
from semibot.errors import DeadlineExceeded, ToolError, UsageError
from semibot.live import LiveThreads, live_ports
from semibot.tools import Grant, ToolContext, UnderPath, tool
from semibot.wire.codec import JsonValue, dump_json, load_json, unstructure


@tool
async def double(number: int, times: int = 2) -> int:
    """Multiply a number."""
    return number * times


@tool(is_allowed=False)
async def launch(where: str) -> str:
    """Launch something."""
    return f"launched to {where}"


# --- outcomes -------------------------------------------------------------------------


async def test_a_call_that_works_is_ok_and_on_record():
    kit = make_kit(double)
    result = await kit.call("double", number=4)
    assert (result.outcome, result.result, result.content, result.error) == ("ok", 8, "8", None)
    assert (result.call_id, result.tool_name, result.event_error) == ("call-1", "double", None)
    [decision, ended] = kit.records
    assert (decision.action, decision.rule) == ("allow", "tool_allowed")
    assert decision.arguments == {"number": 4, "times": 2}
    assert (decision.call_id, decision.run_id, decision.session_id) == (
        "call-1",
        "run-1",
        "session-1",
    )
    assert (ended.decision_id, ended.outcome) == (decision.id, "ok")
    assert result.decision_id == decision.id
    assert kit.ledger.under_way() == ()


async def test_records_can_be_written_as_json():
    kit = make_kit(double)
    await kit.call("double", number=4)
    for record in kit.records:
        assert load_json(dump_json(unstructure(record)))


async def test_a_tool_without_a_grant_is_denied_and_does_not_run():
    ran = []

    @tool(is_allowed=False)
    async def effect() -> None:
        ran.append(1)

    kit = make_kit(effect)
    result = await kit.call("effect")
    assert result.outcome == result.event_error == "denied"
    assert ran == []
    assert 'GraphAgent(grants=["effect"])' in result.error
    assert result.content == f"Denied: {result.error}"
    assert [type(record).__name__ for record in kit.records] == ["Decision", "CallEnded"]
    assert kit.ends[0].outcome == "denied"


async def test_a_grant_lets_it_run():
    kit = make_kit(launch, grants=["launch"])
    result = await kit.call("launch", where="Mars")
    assert result.result == "launched to Mars"
    assert kit.decisions[0].grant_id == "grant-1"


async def test_a_call_that_takes_too_long_is_a_timeout(autojump_clock):
    @tool
    async def hang() -> None:
        await trio.sleep_forever()

    kit = make_kit(hang)
    result = await kit.call("hang")
    assert trio.current_time() == pytest.approx(Deadlines().tool_limit)
    assert result.outcome == result.event_error == kit.ends[0].outcome == "timeout"
    assert result.error == "hang gave no result within 120 s"
    assert result.content == f"Timeout: {result.error}"
    assert result.duration_ms == kit.ends[0].duration_ms == 120_000
    assert kit.ledger.under_way() == ()


async def test_a_tool_that_raises_is_an_error_with_its_words():
    @tool
    async def fail() -> None:
        raise ValueError("no such city")

    kit = make_kit(fail)
    result = await kit.call("fail")
    assert result.outcome == kit.ends[0].outcome == "error"
    assert result.error == result.event_error == kit.ends[0].error == "ValueError: no such city"
    assert result.content == "Error: ValueError: no such city"


async def test_a_tool_error_is_its_text_alone():
    @tool
    async def fail() -> None:
        raise ToolError("the sky is closed")

    result = await make_kit(fail).call("fail")
    assert result.error == "the sky is closed"


async def test_a_deadline_of_somebody_else_is_an_error_and_no_timeout():
    @tool
    async def fail() -> None:
        raise DeadlineExceeded("model.response", 60)

    result = await make_kit(fail).call("fail")
    assert (result.outcome, result.error) == ("error", "model.response (60 s) exceeded")


async def test_a_group_of_exceptions_is_an_error_that_lists_its_leaves():
    @tool
    async def fail() -> None:
        raise ExceptionGroup("x", [ValueError("a"), ExceptionGroup("y", [KeyError("b")])])

    result = await make_kit(fail).call("fail")
    assert result.outcome == "error"
    assert result.error == "fail failed in several ways: ValueError, KeyError"


async def test_an_exception_that_cannot_even_be_shown_is_an_error():
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    @tool
    async def fail() -> None:
        raise Broken

    result = await make_kit(fail).call("fail")
    assert result.error == "Broken: (no text)"


async def test_an_error_text_is_bounded_and_valid():
    @tool
    async def fail() -> None:
        raise ToolError("x\ud800" * 1_000_000)

    result = await make_kit(fail).call("fail")
    assert len(result.error) == 4_000
    dump_json(result.content)


async def test_exceptions_of_other_libraries_that_look_like_cancellation_are_errors():
    class Cancelled(Exception):
        pass

    @tool
    async def fail() -> None:
        raise Cancelled("not Trio's")

    result = await make_kit(fail).call("fail")
    assert (result.outcome, result.error) == ("error", "Cancelled: not Trio's")


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_comes_out_and_is_on_record(kind, is_async):
    if is_async:

        @tool
        async def fail() -> None:
            raise kind

    else:

        @tool
        def fail() -> None:
            raise kind

    kit = make_kit(fail)
    with pytest.raises(kind):
        await kit.call("fail")
    assert kit.ends[0].outcome == "error"
    assert kit.ends[0].error == kind.__name__
    assert kit.ledger.under_way() == ()


# --- calls that make no sense ---------------------------------------------------------


async def test_an_unknown_tool_is_an_error_that_names_the_known_ones():
    kit = make_kit(double, launch)
    result = await kit.call("dubble", number=1)
    assert result.outcome == "error"
    assert result.error == "there is no tool 'dubble'; there are: double, launch"
    assert (result.tool_name, result.decision_id, kit.records) == ("dubble", None, [])


async def test_a_gate_without_tools_says_so():
    result = await make_kit().call("double")
    assert result.error == "there is no tool 'double'; there are: none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected one JSON object"),
        ("{}", "required argument 'number' is missing"),
        ('{"number": "4"}', "expected an integer @ $.number"),
        ('{"number": 4, "colour": "red"}', "unknown argument 'colour'; known: number, times"),
    ],
)
async def test_arguments_that_do_not_fit_are_an_error_and_nothing_is_decided(text, message):
    kit = make_kit(double)
    result = await kit.call_text("double", text)
    assert result.outcome == "error"
    assert result.error.startswith("the arguments of double do not fit: ")
    assert message in result.error
    assert kit.records == []


async def test_two_tools_of_one_name_are_refused():
    with pytest.raises(UsageError, match="two tools are called 'double'"):
        make_kit(double, double)


async def test_a_grant_for_an_unknown_tool_is_refused():
    with pytest.raises(UsageError, match=r"'luanch'.*double, launch"):
        make_kit(double, launch, grants=["luanch"])


async def test_a_grant_on_an_unknown_parameter_is_refused():
    with pytest.raises(UsageError, match="it has: where"):
        make_kit(launch, grants=[Grant(tool="launch", where={"when": None})])


async def test_the_gate_tells_models_about_every_tool():
    kit = make_kit(double, launch)
    assert [spec.name for spec in kit.gate.specs()] == ["double", "launch"]
    assert kit.gate.get("double") is double
    assert kit.gate.get("dubble") is None


# --- decisions and effects ------------------------------------------------------------


async def test_effects_equal_allow_records_and_every_record_comes_first():
    story = []

    @tool(is_allowed=False)
    async def effect(path: str) -> str:
        story.append(("effect", path))
        return path

    async def recorder(entry):
        await trio.lowlevel.checkpoint()
        story.append((type(entry).__name__, getattr(entry, "action", entry)))

    kit = make_kit(
        effect,
        grants=[Grant(tool="effect", where={"path": UnderPath("a")})],
        recorder=recorder,
    )
    for path in ("a/1", "b/1", "a/2", "../a/1", "a/../b"):
        await kit.call("effect", path=path)
    kinds = [name if name != "Decision" else action for name, action in story]
    assert kinds == [
        *("allow", "effect", "CallEnded"),
        *("deny", "CallEnded"),
        *("allow", "effect", "CallEnded"),
        *("deny", "CallEnded"),
        *("deny", "CallEnded"),
    ]


async def test_what_is_changed_after_the_decision_does_not_reach_the_tool():
    seen = []

    @tool
    async def effect(paths: list[str], options: JsonValue) -> None:
        seen.append((paths, options))

    async def recorder(entry):
        if hasattr(entry, "arguments"):
            entry.arguments["paths"].append("/etc/passwd")
            entry.arguments["options"]["force"] = True

    kit = make_kit(effect, recorder=recorder)
    await kit.call("effect", paths=["a"], options={"force": False})
    assert seen == [(["a"], {"force": False})]


async def test_what_a_tool_does_to_its_arguments_does_not_reach_the_record():
    @tool
    async def effect(paths: list[str], options: JsonValue) -> None:
        paths.clear()
        options.clear()

    kit = make_kit(effect)
    await kit.call("effect", paths=["a"], options={"force": False})
    assert kit.decisions[0].arguments == {"paths": ["a"], "options": {"force": False}}


async def test_without_a_record_nothing_runs():
    ran = []

    @tool
    async def effect() -> None:
        ran.append(1)

    async def recorder(entry):
        raise OSError("disk full")

    kit = make_kit(effect, recorder=recorder)
    result = await kit.call("effect")
    assert ran == []
    assert result.outcome == "error"
    assert result.error == "effect was not run: its decision could not be recorded"


async def test_a_recorder_that_hangs_is_one_that_fails(autojump_clock):
    ran = []

    @tool
    async def effect() -> None:
        ran.append(1)

    async def recorder(entry):
        await trio.sleep_forever()

    result = await make_kit(effect, recorder=recorder).call("effect")
    assert (result.outcome, ran) == ("error", [])
    assert trio.current_time() == pytest.approx(2 * Deadlines().session_save)


async def test_an_end_that_cannot_be_recorded_does_not_change_the_result():
    async def recorder(entry):
        if hasattr(entry, "outcome"):
            raise OSError("disk full")

    result = await make_kit(double, recorder=recorder).call("double", number=1)
    assert (result.outcome, result.result) == ("ok", 2)


# --- deadlines ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool_limit", "call_limit", "seconds"),
    [
        (None, None, 50),
        (20, None, 20),
        (200, None, 200),  # a tool that is known to be slow may say so
        (20, 7, 7),
        (20, 70, 20),
        (None, 70, 50),
        (None, 0, 0),
        (20, -1, 0),
    ],
)
async def test_the_smallest_limit_holds(autojump_clock, tool_limit, call_limit, seconds):
    remaining = []

    @tool(limit=tool_limit)
    async def hang(context: ToolContext) -> None:
        remaining.append(context.remaining())
        await trio.sleep_forever()

    kit = make_kit(hang, deadlines=Deadlines(tool_limit=50))
    result = await kit.call("hang", limit=call_limit)
    assert result.outcome == "timeout"
    assert trio.current_time() == pytest.approx(seconds)
    assert remaining == [pytest.approx(seconds)]


async def test_the_end_of_the_run_is_no_timeout_of_the_tool(autojump_clock):
    remaining = []

    @tool(limit=20)
    async def hang(context: ToolContext) -> None:
        remaining.append(context.remaining())
        await trio.sleep_forever()

    kit = make_kit(hang)
    with trio.move_on_after(3) as run:
        await kit.call("hang")
    assert run.cancelled_caught
    assert remaining == [pytest.approx(3)]
    assert [ended.outcome for ended in kit.ends] == ["cancelled"]
    assert trio.current_time() == pytest.approx(3)


async def test_failures_that_come_out_together_with_a_timeout_are_a_timeout(autojump_clock):
    @tool(limit=1)
    async def hang() -> None:
        async def fail_late() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("while stopping")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_late)
            nursery.start_soon(trio.sleep_forever)

    result = await make_kit(hang).call("hang")
    assert result.outcome == "timeout"


async def test_a_tool_that_raises_because_it_is_timed_out_is_a_timeout(autojump_clock):
    @tool(limit=1)
    async def hang() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ValueError("connection lost") from None

    result = await make_kit(hang).call("hang")
    assert result.outcome == "timeout"


async def test_a_tool_that_finishes_in_spite_of_its_deadline_has_its_result_kept(autojump_clock):
    @tool(limit=1)
    async def stubborn() -> str:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return "done all the same"

    result = await make_kit(stubborn).call("stubborn")
    assert (result.outcome, result.result) == ("ok", "done all the same")


async def test_what_a_tool_calls_cannot_outlive_it(autojump_clock):
    @tool(limit=60)
    async def hang() -> None:
        await trio.sleep_forever()

    inner = make_kit(hang)

    @tool(limit=2)
    async def delegate() -> str:
        return (await inner.call("hang")).outcome

    result = await make_kit(delegate).call("delegate")
    assert result.outcome == "timeout"
    assert trio.current_time() == pytest.approx(2)
    assert [ended.outcome for ended in inner.ends] == ["cancelled"]
    assert inner.ledger.under_way() == ()


async def test_other_calls_go_on_when_one_times_out(autojump_clock):
    @tool(limit=1)
    async def hang() -> None:
        await trio.sleep_forever()

    @tool
    async def wait() -> str:
        await trio.sleep(5)
        return "done"

    kit = make_kit(hang, wait)
    outcomes = {}

    async def call(name):
        outcomes[name] = (await kit.call(name, id=name)).outcome

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, "hang")
        nursery.start_soon(call, "wait")
    assert outcomes == {"hang": "timeout", "wait": "ok"}


# --- sync tools -----------------------------------------------------------------------


async def test_a_sync_tool_runs_in_a_worker_thread():
    @tool
    def where(context: ToolContext) -> JsonValue:
        return [threading.current_thread() is threading.main_thread(), context.remaining() > 100]

    kit = make_kit(where)
    result = await kit.call("where")
    assert result.result == [False, True]
    assert kit.ports.threads.in_use() == {"tools": 0}
    assert kit.ledger.under_way() == ()


async def test_a_sync_tool_that_raises_is_an_error():
    @tool
    def fail() -> None:
        raise ValueError("no")

    kit = make_kit(fail)
    assert (await kit.call("fail")).error == "ValueError: no"
    assert kit.ledger.under_way() == ()


async def test_a_sync_tool_that_returns_a_coroutine_is_told_what_it_should_be():
    async def inner() -> str:
        return "x"

    @tool
    def forgot() -> object:
        return inner()

    @tool
    async def forgot_too() -> object:
        return inner()

    kit = make_kit(forgot, forgot_too)
    for name in ("forgot", "forgot_too"):
        result = await kit.call(name)
        assert result.error == "the tool returned a coroutine; its function must be an async def"


async def test_a_thread_that_is_left_behind_stays_in_the_ledger_until_it_ends():
    release = threading.Event()
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()
    seen = []

    @tool(limit=0.05)
    def block(context: ToolContext) -> None:
        context.activity.effect = "holding the door"
        token.run_sync_soon(begun.set)
        release.wait(10)
        seen.append(context.is_cancelled)

    kit = make_kit(block)
    result = await kit.call("block")
    assert begun.is_set()
    assert result.outcome == "timeout"
    assert "may still be at work" in result.error
    assert kit.ends[0].effect == "holding the door"
    [thread] = kit.ledger.under_way()
    assert (thread.kind, thread.id, thread.name) == ("thread", "call-1", "block")
    assert thread.record().effect == "holding the door"
    assert kit.ports.threads.in_use() == {"tools": 1}

    release.set()
    await wait_until(lambda: not kit.ledger.under_way())
    await wait_until(lambda: kit.ports.threads.in_use() == {"tools": 0})
    assert seen == [True]


async def test_a_sync_tool_for_which_no_thread_is_free_is_an_error_and_never_runs():
    release = threading.Event()
    ran = []

    @tool(limit=0.05)
    def block() -> None:
        release.wait(10)

    @tool(limit=0.05)
    def effect() -> None:
        ran.append(1)

    ports = attrs.evolve(live_ports(), threads=LiveThreads({"tools": 1, "files": 4}))
    kit = make_kit(block, effect, ports=ports)
    assert (await kit.call("block", id="1")).outcome == "timeout"
    result = await kit.call("effect", id="2")
    assert result.outcome == "error"
    assert result.error.startswith("tool capacity: no worker thread became free for effect")
    assert [each.id for each in kit.ledger.under_way()] == ["1"]
    release.set()
    await wait_until(lambda: ports.threads.in_use() == {"tools": 0})
    assert ran == []
    assert (await kit.call("effect", id="3")).outcome == "ok"


async def test_abandoned_threads_that_hold_every_place_refuse_new_calls_at_once():
    release = threading.Event()

    @tool(limit=0.2)
    def block() -> None:
        release.wait(10)

    kit = make_kit(block)
    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(lambda number=number: kit.call("block", id=str(number)))
    assert len(kit.ledger.under_way()) == 16
    result = await kit.call("block", id="17")
    assert result.outcome == "error"
    assert result.error.startswith("tool capacity: 16 earlier calls still hold their threads")
    assert result.duration_ms < 150
    release.set()
    await wait_until(lambda: not kit.ledger.under_way())
    assert (await kit.call("block", id="18")).outcome == "ok"


async def test_a_context_runs_blocking_functions_for_async_tools():
    release = threading.Event()

    @tool
    async def mixed(context: ToolContext, hang: bool) -> str:
        context.activity.effect = "looking"
        await context.run_blocking(release.wait, 10 if hang else 0, limiter="tools")
        return "done"

    kit = make_kit(mixed)
    assert (await kit.call("mixed", hang=False)).result == "done"
    assert (await kit.call("mixed", hang=True, limit=0.02)).outcome == "timeout"
    [thread] = kit.ledger.under_way()
    assert (thread.kind, thread.name, thread.effect) == ("thread", "mixed", "looking")
    release.set()
    await wait_until(lambda: not kit.ledger.under_way())


# --- results --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (object, "object"),
        (lambda: b"bytes", "bytes"),
        (lambda: {1, 2}, "set"),
        (lambda: math.nan, "nan"),
        (lambda: [math.inf], "inf"),
        (lambda: {"a": {1: 2}}, "int"),
        (lambda: 10**5000, "thousands of digits"),
    ],
)
async def test_results_that_are_not_json_are_an_error_with_the_type(make, name):
    @tool
    async def odd() -> object:
        return make()

    kit = make_kit(odd)
    result = await kit.call("odd")
    assert result.outcome == "error"
    assert name in result.error
    assert result.result is None
    assert kit.ends[0].outcome == "error"


async def lag_while(call):
    """Return the longest time that the loop was held up during a call, and its result."""
    worst = 0.0
    result = None

    async def watch(task_status=trio.TASK_STATUS_IGNORED):
        nonlocal worst
        task_status.started()
        while True:
            before = trio.current_time()
            await trio.sleep(0.001)
            worst = max(worst, trio.current_time() - before)

    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        result = await call()
        nursery.cancel_scope.cancel()
    return worst, result


@pytest.mark.parametrize(
    "make",
    [
        lambda: "x" * 50_000_000,
        lambda: ["x" * 500] * 100_000,
        lambda: list(range(5_000_000)),
        lambda: {str(number): number for number in range(500_000)},
        lambda: ["x" * 50_000_000],
    ],
    ids=["text", "list", "numbers", "object", "text in a list"],
)
async def test_a_result_of_50_mb_is_cut_and_does_not_hold_up_the_loop(make):
    value = make()

    @tool
    async def large() -> object:
        return value

    kit = make_kit(large)
    worst, result = await lag_while(lambda: kit.call("large"))
    assert worst < 0.25  # on a machine shared with others
    assert result.outcome == "ok"
    assert len(dump_json(result.result).encode()) <= 64 * 1024
    assert len(result.content) <= 100_000
    assert "cut here" in result.content
    assert kit.ledger.under_way() == ()


async def test_a_text_too_long_for_the_model_is_kept_and_named():
    kept = {}

    async def keep_result(call_id, text):
        kept[call_id] = text
        return "results/1.txt"

    @tool
    async def large() -> str:
        return "y" * 150_000

    result = await make_kit(large, keep_result=keep_result).call("large", id="c9")
    assert kept == {"c9": "y" * 150_000}
    assert "of 150000 characters; all of it is in the file results/1.txt]" in result.content


async def test_a_result_that_cannot_be_kept_is_cut_all_the_same(autojump_clock):
    async def keep_result(call_id, text):
        await trio.sleep_forever()

    @tool
    async def large() -> str:
        return "y" * 150_000

    result = await make_kit(large, keep_result=keep_result).call("large")
    assert result.outcome == "ok"
    assert result.content.endswith("of 150000 characters]")


async def test_a_result_cannot_be_changed_by_its_tool_later():
    shared = {"a": [1]}

    @tool
    async def give() -> object:
        return shared

    result = await make_kit(give).call("give")
    shared["a"].append(2)
    assert result.result == {"a": [1]}


# --- files ----------------------------------------------------------------------------


async def test_files_that_a_tool_reports_are_in_the_result_once_with_their_facts(tmp_path):
    @tool
    def make(context: ToolContext) -> None:
        context.files.write_file("out/a.txt", b"12345")
        for path in ("out/a.txt", "out/a.txt", "missing.txt", "../x", "out"):
            context.add_file(path)

    kit = make_kit(make, workspace=tmp_path)
    result = await kit.call("make")
    [file] = result.files
    assert (file.path, file.size, file.mime_type) == ("out/a.txt", 5, "text/plain")
    assert kit.ends[0].files == result.files


async def test_files_are_not_reported_without_a_workspace():
    @tool
    async def make(context: ToolContext) -> None:
        context.add_file("a.txt")

    assert (await make_kit(make).call("make")).files == ()


# --- the only way ---------------------------------------------------------------------


async def test_the_public_side_of_a_gate_does_not_lead_to_a_function():
    def secret() -> None:
        pass

    registered = tool(secret)
    kit = make_kit(registered, double)
    reached: list[object] = [kit.gate, kit.gate.get("secret"), *kit.gate.specs()]
    seen: set[int] = set()
    while reached:
        item = reached.pop()
        if id(item) in seen or isinstance(item, type | str | int | float):
            continue
        seen.add(id(item))
        assert item is not secret
        if isinstance(item, dict):
            reached += item.values()
        elif isinstance(item, list | tuple):
            reached += item
        elif not isinstance(item, types.FunctionType | types.MethodType):
            names = [name for name in dir(item) if not name.startswith("_")]
            reached += [getattr(item, name) for name in names]
    assert inspect.ismethod(kit.gate.call)
    with pytest.raises(TypeError):
        registered()
