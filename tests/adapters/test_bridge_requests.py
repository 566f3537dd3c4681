"""What a bridge asks of the control plane and reports to it."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio
from bridge_sessions import COMPLETE, QUICK, START, Plane, one_run, opened, scripted

from semibot.config import Deadlines
from semibot.errors import RequestFailed
from semibot.testing import capture_logs
from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.events import ExecutionComplete, Usage

# --- usage ----------------------------------------------------------------------------


async def test_reported_tokens_are_what_the_run_has_spent(tmp_path: Path) -> None:
    def report(**params: object) -> JsonObject:
        return {"type": "cp_fire_and_forget", "method": "usage_report", "params": params}  # type: ignore[dict-item]  # JSON

    script = one_run(
        report(model="m", tokens_in=5, tokens_out=3),
        report(tokens_in=2, tokens_out="many"),
        report(tokens_in=-4, tokens_out=True),
        {**COMPLETE, "usage": {"tokens_in": 100, "tokens_out": 100}},
    )
    plane = Plane()
    async with opened(tmp_path, scripted(script), control_plane=plane) as seen:
        events = await seen.ask("hello")
    assert isinstance(events[-1], ExecutionComplete)
    assert events[-1].usage == Usage(tokens_in=7, tokens_out=3)
    assert [method for _, method, _ in plane.reported] == ["usage_report"] * 3
    assert plane.reported[0] == (
        "s",
        "usage_report",
        {"model": "m", "tokens_in": 5, "tokens_out": 3},
    )


async def test_tokens_in_the_last_line_count_if_none_were_reported(tmp_path: Path) -> None:
    script = one_run({**COMPLETE, "usage": {"tokens_in": 4, "tokens_out": 2}})
    async with opened(tmp_path, scripted(script)) as seen:
        events = await seen.ask("hello")
    assert isinstance(events[-1], ExecutionComplete)
    assert events[-1].usage == Usage(tokens_in=4, tokens_out=2)


# --- the control plane ----------------------------------------------------------------

ASK = {"type": "cp_request", "id": "r1", "session_id": "other", "method": "get_session"}


def asking(**fields: JsonValue) -> list[list[object]]:
    asked = {**ASK, "params": {"session_id": "x"}, **fields}
    said = [["say", asked], ["wait", "cp_response"], ["say", COMPLETE], ["serve", None]]
    return [*START, ["wait", "user_message"], *said]


async def test_a_request_is_answered_for_this_session_whatever_it_says(tmp_path: Path) -> None:
    plane = Plane({"session": {}, "agent": None})
    async with opened(tmp_path, scripted(asking()), control_plane=plane) as seen:
        await seen.ask("hello")
        (response,) = seen.heard("cp_response")
    assert plane.asked == [("s", "get_session", {"session_id": "x"})]
    assert response == {
        "type": "cp_response",
        "id": "r1",
        "result": {"session": {}, "agent": None},
        "error": None,
    }


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (RequestFailed("NOT_FOUND", "no such thing"), "NOT_FOUND"),
        (RuntimeError("password"), "CP_REQUEST_FAILED"),
        ("x" * 1024 * 1024, "CP_REQUEST_FAILED"),
        ({"a": float("nan")}, "CP_REQUEST_FAILED"),
    ],
    ids=["refused", "raises", "too long", "not JSON"],
)
async def test_a_request_that_fails_is_answered_with_a_code(
    tmp_path: Path, answer: JsonValue | Exception, code: str
) -> None:
    async with opened(tmp_path, scripted(asking()), control_plane=Plane(answer)) as seen:
        assert isinstance((await seen.ask("hello"))[-1], ExecutionComplete)
        (response,) = seen.heard("cp_response")
    assert response["result"] is None
    assert response["error"]["code"] == code
    assert "password" not in response["error"]["message"]


async def test_a_request_that_takes_too_long_is_answered(tmp_path: Path) -> None:
    class Slow(Plane):
        async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
            await trio.sleep_forever()

    deadlines = Deadlines(bridge_request=0.1)
    async with opened(
        tmp_path, scripted(asking()), control_plane=Slow(), deadlines=deadlines
    ) as seen:
        await seen.ask("hello")
        (response,) = seen.heard("cp_response")
    assert response["error"] == {
        "code": "CP_REQUEST_FAILED",
        "message": "bridge.request (0.1 s) exceeded",
    }


async def test_requests_are_answered_at_once_and_not_one_after_the_other(tmp_path: Path) -> None:
    asked = [["say", {**ASK, "id": f"r{n}"}] for n in range(40)]
    answered = [["wait", "cp_response"]] * 24
    script = [*START, ["wait", "user_message"], *asked[:24], *answered, *asked[24:]]
    script += [["wait", "cp_response"]] * 16 + [["say", COMPLETE], ["serve", None]]

    class Parallel(Plane):
        """Answers the last sixteen only when all of them are there."""

        def __init__(self) -> None:
            super().__init__()
            self.all = trio.Event()

        async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
            self.asked.append((session_id, method, params))
            if len(self.asked) == 40:
                self.all.set()
            if len(self.asked) > 24:
                await self.all.wait()
            await trio.lowlevel.checkpoint()
            return None

    plane = Parallel()
    async with opened(tmp_path, scripted(script), control_plane=plane) as seen:
        assert isinstance((await seen.ask("hello"))[-1], ExecutionComplete)
        responses = seen.heard("cp_response")
    assert len(plane.asked) == 40
    assert [response["error"] for response in responses] == [None] * 40


async def test_without_a_control_plane_the_memory_answers(tmp_path: Path) -> None:
    asked = asking(method="memory_search", params={"query": "blue whale", "top_k": 1})
    script = [*START, ["wait", "user_message"], ["say", COMPLETE], *asked[2:]]
    async with opened(tmp_path, scripted(script)) as seen:
        await seen.ask("tell me about the blue whale")
        await seen.ask("go on")
        (response,) = seen.heard("cp_response")
    (result,) = response["result"]["results"]
    assert result["content"] == "tell me about the blue whale"
    assert result["score"] == 1.0


async def test_a_refused_report_is_logged_and_ends_nothing(tmp_path: Path) -> None:
    report = {"type": "cp_fire_and_forget", "method": "audit_log", "params": {"event": "e"}}
    plane = Plane(RequestFailed("FORBIDDEN", "no"))
    with capture_logs() as logs:
        async with opened(
            tmp_path, scripted(one_run(report, report, COMPLETE)), control_plane=plane
        ) as seen:
            assert isinstance((await seen.ask("hello"))[-1], ExecutionComplete)
    refused = [entry for entry in logs if entry.get("code") == "CP_FIRE_AND_FORGET_FAILED"]
    assert len(refused) == len(plane.reported) == 2


async def test_a_report_made_right_before_the_end_still_counts(tmp_path: Path) -> None:
    class Slow(Plane):
        async def fire_and_forget(self, session_id: str, method: str, params: JsonObject) -> None:
            await trio.sleep(0.1)  # the child is gone by then
            await super().fire_and_forget(session_id, method, params)

    report = {"type": "cp_fire_and_forget", "method": "audit_log", "params": {}}
    script = [*START, ["wait", "user_message"], ["say", report], ["exit", 0]]
    plane = Slow()
    deadlines = attrs.evolve(QUICK, child_eof_grace=5.0)
    async with opened(tmp_path, scripted(script), control_plane=plane, deadlines=deadlines) as seen:
        await seen.ask("hello")
        assert len(plane.reported) == 1


@pytest.mark.parametrize(
    ("said", "counted"), [(10**4000, 2**53), (-1, 0), (True, 0), (1.5, 0), ("7", 0)]
)
async def test_only_a_whole_number_of_tokens_counts(
    tmp_path: Path, said: JsonValue, counted: int
) -> None:
    params: JsonObject = {"tokens_in": said, "tokens_out": said}
    report: JsonObject = {
        "type": "cp_fire_and_forget",
        "method": "usage_report",
        "params": params,
    }
    async with opened(tmp_path, scripted(one_run(report, COMPLETE))) as seen:
        events = await seen.ask("hello")
    assert isinstance(events[-1], ExecutionComplete)
    assert (events[-1].usage or Usage()) == Usage(tokens_in=counted, tokens_out=counted)
