"""One run out of a session's stream, without a host."""

from __future__ import annotations

import json
from typing import Any

import pytest

from semibot.cli.following import TAIL, Following
from semibot.wire.events import ExecutionComplete, ExecutionError, TextChunk
from semibot.wire.sse import SseMessage


def message(id: str, **data: Any) -> SseMessage:
    return SseMessage(id=id, event="message", data=json.dumps(data).encode(), retry=None)


def resync(id: str = "1-9", *, run: Any = None, messages: Any = ()) -> SseMessage:
    return message(id, type="resync", run=run, messages=messages, truncated=False)


def answer(run_id: str, content: str, **metadata: Any) -> dict[str, Any]:
    return {"run_id": run_id, "role": "assistant", "content": content, "metadata": metadata}


def started(id: str, run_id: str) -> SseMessage:
    return message(id, type="run_started", run_id=run_id, message_id="m", message="hello")


def drain(following: Following) -> list[Any]:
    entries = []
    while (entry := following.next()) is not None:
        entries.append(entry)
    return entries


def text_of(entries: list[Any]) -> str:
    return "".join(e.event.content for e in entries if isinstance(e.event, TextChunk))


def test_the_events_of_the_run_come_out_as_they_are() -> None:
    following = Following("r1")
    following.take(started("2-1", "r1"))
    following.take(message("2-2", type="text_chunk", content="héllo"))
    first, second = drain(following)
    assert (first.term, first.seq, first.run_id, first.event.type) == (2, 1, "r1", "run_started")
    assert json.loads(second.data) == {"type": "text_chunk", "content": "héllo"}
    assert second.size == len(second.data.encode())
    assert following.last_id == "2-2"


def test_other_runs_of_the_session_are_passed_over() -> None:
    following = Following("r2")
    following.take(resync(run={"run_id": "r1", "message_id": "m", "text": "old"}))
    following.take(message("1-10", type="text_chunk", content="old"))
    following.take(message("1-11", type="execution_complete", run_id="r1"))
    following.take(started("1-12", "r2"))
    following.take(message("1-13", type="text_chunk", content="new"))
    following.take(started("1-14", "r3"))
    following.take(message("1-15", type="text_chunk", content="newer"))
    assert text_of(drain(following)) == "new"
    assert following.last_id == "1-15"


def test_without_an_id_the_first_run_is_followed() -> None:
    following = Following("")
    following.take(started("1-1", "r1"))
    assert following.run_id == "r1"
    assert len(drain(following)) == 1


@pytest.mark.parametrize(
    "odd",
    [
        SseMessage(id="nonsense", event="message", data=b"{}", retry=None),
        SseMessage(id="1-5", event="message", data=b"no json", retry=None),
        message("1-5", type="from_the_future", what=1),
        message("1-5", type="text_chunk"),
        SseMessage(id="1-5", event="message", data=b"[1]", retry=None),
    ],
)
def test_what_is_not_understood_is_passed_over(odd: SseMessage) -> None:
    following = Following("r1")
    following.take(odd)
    assert drain(following) == []


def test_a_resync_adds_what_was_not_shown() -> None:
    following = Following("r1")
    following.take(message("1-2", type="text_chunk", content="Once "))
    following.take(resync("1-7", run={"run_id": "r1", "message_id": "m", "text": "Once upon"}))
    following.take(message("1-8", type="text_chunk", content=" a time"))
    entries = drain(following)
    assert text_of(entries) == "Once upon a time"
    assert [entry.seq for entry in entries] == [2, 7, 8]
    following.take(resync("1-8", run={"run_id": "r1", "text": "Once upon a time"}))
    following.take(resync("1-8", run={"run_id": "r1", "text": None}))
    assert drain(following) == []


def test_a_text_that_lost_its_beginning_goes_on_where_it_was_left() -> None:
    following = Following("r1")
    begin = "".join(map(str, range(400)))
    following.take(message("1-2", type="text_chunk", content=begin))
    cut = begin[-TAIL - 50 :] + " and on"
    following.take(resync(run={"run_id": "r1", "text": cut}))
    assert text_of(drain(following)) == begin + " and on"
    following.take(resync(run={"run_id": "r1", "text": "something much later" * 100}))
    assert text_of(drain(following)) == "something much later" * 100


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"outcome": "completed"}, ExecutionComplete(run_id="r1")),
        ({"outcome": "cancelled"}, ExecutionComplete(run_id="r1", cancelled=True)),
        (
            {"outcome": "failed", "error": {"code": "MODEL_REFUSED", "message": "bad key"}},
            ExecutionError(run_id="r1", code="MODEL_REFUSED", error="bad key"),
        ),
        (
            {"outcome": "interrupted"},
            ExecutionError(run_id="r1", code="FAILED", error="the answer was interrupted"),
        ),
    ],
)
def test_a_resync_after_the_end_tells_the_end(metadata: Any, expected: Any) -> None:
    following = Following("r1")
    following.take(message("1-2", type="text_chunk", content="Yes"))
    question = {"run_id": "r1", "role": "user", "content": "hello", "metadata": {}}
    other = answer("r0", "no", outcome="completed")
    following.take(resync(messages=[1, question, other, answer("r1", "Yes.", **metadata)]))
    *texts, end = drain(following)
    assert text_of(texts) == "Yes."
    assert end.event == expected
    assert json.loads(end.data)["type"] == expected.type


def test_a_resync_without_the_run_waits_for_it() -> None:
    following = Following("r1")
    following.take(resync("1-0", messages=None))
    assert drain(following) == []
    following.take(started("1-1", "r1"))
    assert len(drain(following)) == 1
