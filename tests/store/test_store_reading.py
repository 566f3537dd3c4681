"""Pages, history, events and the state for a resync, at their edges."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from semibot.errors import BadCursor
from semibot.store._cursors import make_cursor, read_cursor
from semibot.store.base import MessageAccepted, ResyncView, Store
from semibot.testing.store_user import StoreUser, completed, started
from semibot.wire.codec import JsonObject, dump_json
from semibot.wire.events import SessionEvent, TextChunk, ToolCallComplete, ToolCallStart

# --- cursors --------------------------------------------------------------------------


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.text(max_size=40))
def test_a_cursor_says_what_it_was_made_of(at: int, id: str) -> None:
    assert read_cursor("x", make_cursor("x", at, id)) == (at, id)


@given(
    st.text(max_size=80) | st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode())
)
def test_strange_cursors_are_bad_cursors(text: str) -> None:
    with pytest.raises(BadCursor):
        read_cursor("x", text)


@pytest.mark.parametrize(
    "cursor", ["", "a", "x" * 600, make_cursor("y", 1), make_cursor("x", 2**63), "钥"]
)
def test_other_kinds_and_sizes_are_bad_cursors(cursor: str) -> None:
    with pytest.raises(BadCursor):
        read_cursor("x", cursor)


async def test_sessions_are_listed_by_what_happened_last(
    store: Store, mock_clock: MockClock
) -> None:
    ada = await StoreUser.join(store)
    first, second = await ada.open_session(), await ada.open_session()
    mock_clock.jump(1)
    await ada.answer(first)
    page = await store.list_sessions("ada", None, 10)
    assert [each.id for each in page.sessions] == [first.session_id, second.session_id]
    assert page.sessions[0].updated_at > page.sessions[1].updated_at
    with pytest.raises(BadCursor):
        await store.list_sessions("ada", "?", 10)
    assert await store.list_sessions("nobody", None, 10) == await store.list_sessions(
        "bob", None, 10
    )


# --- messages and history -------------------------------------------------------------


async def test_an_answer_stands_behind_its_question_whenever_it_came(store: Store) -> None:
    ada = await StoreUser.join(store)
    first = await ada.open_session("one")
    second = await ada.send(first.session_id, "two")
    await ada.answer(first, "ONE")
    await ada.answer(second, "TWO")
    page = await store.list_messages("ada", first.session_id, None, 10)
    assert [each.content for each in page.messages] == ["one", "ONE", "two", "TWO"]


async def test_history_leaves_empty_answers_out_and_skips_nothing_long(store: Store) -> None:
    ada = await StoreUser.join(store)
    first = await ada.open_session("short")
    await ada.answer(first)
    session_id = first.session_id
    second = await ada.send(session_id, "second")
    await ada.answer(second, "x" * 500)
    third = await ada.send(session_id, "third")
    whole = await store.read_history(session_id, third.run_id, 10_000)
    assert [each["content"] for each in whole] == ["short", "second", "x" * 500, "third"]
    some = await store.read_history(session_id, third.run_id, 400)
    assert [each["content"] for each in some] == ["third"]
    one = await store.read_history(session_id, third.run_id, 1)
    assert [each["content"] for each in one] == ["third"]
    assert await store.read_history(session_id, "none", 400) == ()


async def test_a_long_history_is_read_to_its_beginning(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session("0")
    for number in range(1, 25):
        await ada.answer(accepted, "answer")
        accepted = await ada.send(accepted.session_id, str(number))
    history = await store.read_history(accepted.session_id, accepted.run_id, 100_000)
    asked = [each["content"] for each in history if each["role"] == "user"]
    assert asked == [str(number) for number in range(25)]
    assert len(history) == 49
    view = await store.resync_view(accepted.session_id, 100_000)
    assert view
    assert len(view.messages) == 49


# --- events ---------------------------------------------------------------------------


async def test_many_events_are_read_in_full(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.answer(accepted, *["x"] * 200)
    everything = await store.read_events(accepted.session_id, 0, 10**6)
    assert [event.seq for event in everything] == list(range(1, 203))
    after_seq, seen = 0, 0
    while piece := await store.read_events(accepted.session_id, after_seq, 3000):
        assert sum(len(event.data.encode()) for event in piece) <= 3000
        after_seq = piece[-1].seq
        seen += len(piece)
    assert seen == 202


@pytest.mark.parametrize("has_begun", [False, True])
async def test_an_id_outlives_the_terms_that_follow(store: Store, has_begun: bool) -> None:
    """Every id that is given out names an event of its own term, or comes before the first."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    if has_begun:
        await ada.answer(accepted)
    session_id = accepted.session_id
    ids: list[str] = []
    for _ in range(3):
        await store.hold_session(session_id, ada.link)
        await store.lose_session(session_id, code="INTERRUPTED", message="lost")
        view = await store.resync_view(session_id, 1000)
        page = await store.list_messages("ada", session_id, None, 10)
        assert view
        assert page.last_event_id == f"{view.term}-{view.last_seq}"
        ids.append(page.last_event_id)
    for event_id in ids:
        term, seq = map(int, event_id.split("-"))
        assert seq <= await store.term_end(session_id, term)


async def test_messages_cover_what_came_before_the_open_run(store: Store) -> None:
    ada = await StoreUser.join(store)
    first = await ada.open_session()
    await ada.write(first.session_id)
    await ada.say(first, started(first), TextChunk(content="x"))
    page = await store.list_messages("ada", first.session_id, None, 10)
    assert page.last_event_id == "1-0"
    assert [each.role for each in page.messages] == ["user"]
    await store.lose_session(first.session_id, code="INTERRUPTED", message="lost")
    second = await ada.send(first.session_id)
    await ada.write(first.session_id)
    await ada.say(second, started(second))
    page = await store.list_messages("ada", first.session_id, None, 10)
    assert page.last_event_id == "2-3"


# --- resync ---------------------------------------------------------------------------


def size_of(view: ResyncView) -> int:
    messages: list[JsonObject] = [
        {
            "id": each.id,
            "run_id": each.run_id,
            "role": each.role,
            "content": each.content,
            "metadata": each.metadata,
            "created_at": each.created_at,
        }
        for each in view.messages
    ]
    return len(dump_json({"messages": messages, "run": view.run}).encode())


async def begin(store: Store, *events: SessionEvent) -> MessageAccepted:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    await ada.say(accepted, started(accepted), *events)
    return accepted


def call(call_id: str) -> ToolCallStart:
    return ToolCallStart(call_id=call_id, tool_name="shell", arguments={})


async def test_open_calls_are_those_without_an_end(store: Store) -> None:
    done = ToolCallComplete(call_id="a", tool_name="shell", success=True, duration=1)
    accepted = await begin(store, call("a"), call("b"), done)
    view = await store.resync_view(accepted.session_id, 10_000)
    assert view
    assert view.run
    assert view.run["open_calls"] == [{"call_id": "b", "tool_name": "shell"}]


async def test_calls_without_a_name_are_left_out(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    op = await ada.events(accepted, started(accepted), call("a"), call("b"))
    damaged = type(op)(
        session_id=op.session_id,
        term=op.term,
        events=(
            op.events[0],
            type(op.events[0])(
                term=1,
                seq=2,
                run_id=accepted.run_id,
                type="tool_call_start",
                data='{"call_id":1,"tool_name":"x"}',
            ),
            type(op.events[0])(
                term=1,
                seq=3,
                run_id=accepted.run_id,
                type="tool_call_start",
                data='{"call_id":"c"}',
            ),
        ),
    )
    await store.commit_intake(ada.link, [damaged])
    view = await store.resync_view(accepted.session_id, 10_000)
    assert view
    assert view.run
    assert view.run["open_calls"] == []


@pytest.mark.parametrize("text", ["x" * 50_000, '"\n\x01钥' * 10_000])
async def test_a_long_text_keeps_its_end(store: Store, text: str) -> None:
    accepted = await begin(store, TextChunk(content=text[:1000]), TextChunk(content=text[1000:]))
    view = await store.resync_view(accepted.session_id, 20_000)
    assert view
    assert view.run
    assert view.truncated
    kept = str(view.run["text"])
    assert text.endswith(kept)
    assert 9_000 <= len(dump_json(kept).encode()) <= 10_000
    assert size_of(view) <= 20_000


async def test_thousands_of_open_calls_keep_the_newest(store: Store) -> None:
    accepted = await begin(store, *[call(f"call-{number}") for number in range(1000)])
    view = await store.resync_view(accepted.session_id, 8_000)
    assert view
    assert view.run
    assert view.truncated
    calls = view.run["open_calls"]
    assert isinstance(calls, list)
    assert calls[-1] == {"call_id": "call-999", "tool_name": "shell"}
    assert 10 < len(calls) < 60


async def test_the_newest_messages_are_kept(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session("0")
    for number in range(1, 9):
        await ada.answer(accepted, "x" * 1000)
        accepted = await ada.send(accepted.session_id, str(number))
    view = await store.resync_view(accepted.session_id, 4_000)
    assert view
    assert view.truncated
    assert [each.content for each in view.messages if each.role == "user"] == ["6", "7", "8"]
    assert [each.role for each in view.messages] == ["user", "assistant"] * 2 + ["user"]
    assert size_of(view) <= 4_000


async def test_of_one_message_that_is_too_long_the_beginning_is_kept(store: Store) -> None:
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.answer(accepted, "abc" * 10_000)
    view = await store.resync_view(accepted.session_id, 2_000)
    assert view
    (message,) = view.messages
    assert view.truncated
    assert message.content.startswith("abcabc")
    assert 1_000 < len(message.content) < 2_000
    assert message.metadata == {"outcome": "completed", "truncated": True}
    assert size_of(view) <= 2_000


async def test_hardly_any_room_is_no_error(store: Store) -> None:
    accepted = await begin(store, TextChunk(content="text"), call("a"))
    view = await store.resync_view(accepted.session_id, 0)
    assert view
    assert view.run
    assert (view.run["text"], view.run["open_calls"], view.truncated) == ("", [], True)
    assert [each.content for each in view.messages] == [""]


async def test_a_resync_shows_what_waits_as_well(store: Store) -> None:
    ada = await StoreUser.join(store)
    first = await ada.open_session("one")
    await ada.write(first.session_id)
    await ada.send(first.session_id, "two")
    view = await store.resync_view(first.session_id, 10_000)
    assert view
    assert (view.run, [each.content for each in view.messages]) == (None, ["one", "two"])
    await ada.say(first, started(first, "one"), completed(first, "ONE"))
    view = await store.resync_view(first.session_id, 10_000)
    assert view
    assert [each.content for each in view.messages] == ["one", "ONE", "two"]
