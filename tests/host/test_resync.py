"""What is left out of a state that is too large to be sent."""

from __future__ import annotations

import json

import pytest

from semibot.host.resync import RESYNC_BYTES, encode_resync
from semibot.store.base import MessageRow, ResyncView

MAX = 4096


def view(*contents: str, run=None, truncated: bool = False) -> ResyncView:
    rows = [
        MessageRow(
            id=f"m{number}",
            run_id=f"r{number}",
            role="user",
            content=content,
            metadata={},
            created_at=number,
        )
        for number, content in enumerate(contents)
    ]
    return ResyncView(term=2, last_seq=9, messages=tuple(rows), run=run, truncated=truncated)


def body(frame: bytes):
    lines = frame.decode().split("\n")
    assert lines[:2] == ["id: 2-9", "event: message"]
    return json.loads(lines[2].removeprefix("data: "))


def run(text: object, open_calls: object = ()):
    return {"run_id": "r", "message_id": "m", "text": text, "open_calls": open_calls}


@pytest.mark.parametrize("truncated", [False, True])
def test_what_fits_is_sent_whole(truncated):
    state = body(encode_resync(view("a", "b", run=run("so far"), truncated=truncated)))
    assert [each["content"] for each in state["messages"]] == ["a", "b"]
    assert state["run"] == run("so far", [])
    assert state["truncated"] is truncated
    assert state["type"] == "resync"


def test_the_oldest_messages_are_left_out_first():
    frame = encode_resync(view(*(str(n) * 1000 for n in range(6)), run=run("text")), MAX)
    state = body(frame)
    assert len(frame) <= MAX
    assert [each["id"] for each in state["messages"]] == ["m3", "m4", "m5"]
    assert state["truncated"] is True
    assert state["run"]["text"] == "text"


def test_then_the_beginning_of_the_text_of_the_run():
    frame = encode_resync(view("a" * 5000, run=run("old " * 2000 + "end", ["call"])), MAX)
    state = body(frame)
    assert MAX - 200 < len(frame) <= MAX
    assert state["messages"] == []
    assert state["run"]["text"].endswith("old end")
    assert state["run"]["open_calls"] == ["call"]
    assert state["truncated"] is True


@pytest.mark.parametrize("text", ["short", None])
def test_then_the_open_calls(text):
    frame = encode_resync(view(run=run(text, ["x" * 5000])), MAX)
    state = body(frame)
    assert len(frame) <= MAX
    assert state["run"] == run("", [])


def test_text_that_takes_more_bytes_than_characters_still_fits():
    frame = encode_resync(view(run=run('é"\n' * 3000)), MAX)
    assert len(frame) <= MAX
    assert body(frame)["run"]["text"].endswith('é"\n')


def test_messages_that_are_too_large_without_a_run():
    frame = encode_resync(view("a" * 5000), MAX)
    assert body(frame)["messages"] == []


def test_a_state_is_at_most_a_mebibyte():
    frame = encode_resync(view(*["x" * 300_000] * 5))
    assert RESYNC_BYTES - 300_000 < len(frame) <= RESYNC_BYTES
    assert len(body(frame)["messages"]) == 3
