from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.models import repair_history, strict_problems
from semibot.models.chat_chunks import MAX_ARGUMENTS
from semibot.models.history import EARLIER, NO_ANSWER, NO_CONTENT, NO_RESULT
from semibot.wire.chat import Message, ToolCallRequest


def system(text: str) -> Message:
    return Message(role="system", content=text)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, *call_ids: str) -> Message:
    calls = tuple(ToolCallRequest(id=each, name="read_file", arguments="{}") for each in call_ids)
    return Message(role="assistant", content=text, tool_calls=calls)


def result(call_id: str, text: str = "ok") -> Message:
    return Message(role="tool", content=text, tool_call_id=call_id, name="read_file")


def shape(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


GOOD = (
    system("Be brief."),
    user("What is in a.txt and b.txt?"),
    assistant("I will look.", "c1", "c2"),
    result("c1", "A"),
    result("c2", "B"),
    assistant("A and B."),
    user("Thanks."),
)

texts = st.sampled_from(["", " ", "hello", "x\ny", "half \ud800 pair"]) | st.text(max_size=8)
ids = st.sampled_from(["", "c", "c_2", "call", "c1", "c2", "bad \udc00"])
calls = st.builds(
    ToolCallRequest,
    id=ids,
    name=st.sampled_from(["read_file", "", "a.b", "x" * 80, "naïve"]),
    arguments=st.sampled_from(["{}", '{"a": 1}', "", "[1]", "{oops", '{"a": "\\ud800"}']),
)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=texts,
    tool_calls=st.lists(calls, max_size=3).map(tuple),
    tool_call_id=st.none() | ids,
    name=st.none() | st.just("somebody"),
)
histories = st.lists(messages, max_size=12)


def test_a_good_history_is_left_alone() -> None:
    assert repair_history(GOOD) == GOOD
    assert strict_problems(GOOD) == []


def test_an_empty_history_stays_empty() -> None:
    assert repair_history(()) == ()
    assert strict_problems(()) == []


@given(histories)
def test_a_strict_provider_accepts_every_repaired_history(history: list[Message]) -> None:
    assert strict_problems(repair_history(history)) == []


@given(histories)
def test_repairing_twice_changes_nothing_more(history: list[Message]) -> None:
    once = repair_history(history)
    assert repair_history(once) == once


@given(histories)
def test_what_is_appended_later_changes_nothing_in_front(history: list[Message]) -> None:
    talk = [message for message in history if message.role != "system"]
    once = repair_history(talk)
    longer = repair_history([*talk, user("next"), assistant("", "c"), result("c")])
    assert longer[: len(once)] == once


@given(histories, st.text(min_size=1, max_size=8).filter(str.strip))
def test_a_last_user_message_stays_last(history: list[Message], text: str) -> None:
    assert repair_history([*history, user(text)])[-1] == user(text)


@given(histories)
def test_no_text_of_users_is_lost(history: list[Message]) -> None:
    said = [
        message.content
        for message in history
        if message.role == "user" and message.content.strip() and message.content.isascii()
    ]
    kept = [message.content for message in repair_history(history) if message.role == "user"]
    assert [text for text in kept if text in said] == said


def test_a_cancelled_question_gets_a_note_for_an_answer() -> None:
    repaired = repair_history([user("one"), user("two")])
    assert shape(repaired) == [("user", "one"), ("assistant", NO_ANSWER), ("user", "two")]


def test_a_call_without_a_result_gets_a_note_and_the_next_question_an_answer_before_it() -> None:
    repaired = repair_history([user("one"), assistant("", "c1", "c2"), result("c1"), user("two")])
    assert shape(repaired) == [
        ("user", "one"),
        ("assistant", ""),
        ("tool", "ok"),
        ("tool", NO_RESULT),
        ("assistant", NO_ANSWER),
        ("user", "two"),
    ]


def test_results_are_put_into_the_order_of_their_calls() -> None:
    repaired = repair_history(
        [user("q"), assistant("", "c1", "c2"), result("c2", "B"), result("c1", "A")]
    )
    assert [(m.tool_call_id, m.content) for m in repaired[2:]] == [("c1", "A"), ("c2", "B")]


def test_a_result_that_came_after_the_next_question_is_kept_with_its_call() -> None:
    repaired = repair_history([user("q"), assistant("", "c1"), user("next"), result("c1", "A")])
    assert shape(repaired) == [
        ("user", "q"),
        ("assistant", ""),
        ("tool", "A"),
        ("assistant", NO_ANSWER),
        ("user", "next"),
    ]


def test_results_without_a_call_and_second_results_are_dropped() -> None:
    repaired = repair_history(
        [user("q"), result("c0"), assistant("", "c1"), result("c1", "A"), result("c1", "again")]
    )
    assert shape(repaired) == [("user", "q"), ("assistant", ""), ("tool", "A")]


def test_neighbouring_answers_become_one() -> None:
    repaired = repair_history([user("q"), assistant("a"), assistant(" "), assistant("b", "c1")])
    assert repaired[1].content == "a\n\nb"
    assert [call.id for call in repaired[1].tool_calls] == ["c1"]


def test_an_empty_answer_becomes_a_note() -> None:
    assert shape(repair_history([user("q"), assistant("")]))[1] == ("assistant", NO_ANSWER)


def test_an_empty_question_becomes_a_note() -> None:
    assert shape(repair_history([user(" \n")])) == [("user", NO_CONTENT)]


def test_a_history_that_begins_with_an_answer_gets_a_question() -> None:
    repaired = repair_history([system("s"), assistant("a"), user("q")])
    assert shape(repaired)[:2] == [("system", "s"), ("user", EARLIER)]


def test_system_text_from_everywhere_stands_in_front() -> None:
    repaired = repair_history([user("q"), system("b"), assistant("a"), system(""), system("c")])
    assert shape(repaired) == [("system", "b\n\nc"), ("user", "q"), ("assistant", "a")]


def test_reused_call_ids_become_unique_and_keep_their_results() -> None:
    repaired = repair_history(
        [
            user("q"),
            assistant("", "c", "c"),
            result("c", "first"),
            result("c", "second"),
            assistant("", "c", ""),
            result("c", "third"),
            result("", "fourth"),
        ]
    )
    answers = [(m.tool_call_id, m.content) for m in repaired if m.role == "tool"]
    assert answers == [("c", "first"), ("c_2", "second"), ("c_3", "third"), ("call", "fourth")]


TOO_LONG = '{"a": "' + "x" * MAX_ARGUMENTS + '"}'


@pytest.mark.parametrize("arguments", ["", "{oops", "[1]", "null", '{"a": NaN}', '"x"', TOO_LONG])
def test_arguments_that_are_no_object_become_an_empty_one(arguments: str) -> None:
    call = ToolCallRequest(id="c", name="t", arguments=arguments)
    broken = Message(role="assistant", content="", tool_calls=(call,))
    (repaired,) = repair_history([user("q"), broken])[1].tool_calls
    assert json.loads(repaired.arguments) == {}


def test_names_that_no_provider_accepts_are_made_acceptable() -> None:
    for name, expected in [("a.b c", "a_b_c"), ("", "unnamed"), ("x" * 80, "x" * 64)]:
        call = ToolCallRequest(id="c", name=name, arguments="{}")
        message = Message(role="assistant", content="", tool_calls=(call,))
        assert repair_history([user("q"), message])[1].tool_calls[0].name == expected


def test_half_characters_are_replaced() -> None:
    assert repair_history([user("a\ud800b")])[0].content == "a\ufffdb"


@pytest.mark.parametrize(
    ("history", "problem"),
    [
        ([user("q"), system("s")], "is not the first"),
        ([user("q"), user("r")], "follows a user"),
        ([user("q"), assistant("", "c"), result("c"), user("r")], "follows a tool"),
        ([assistant("a")], "does not follow"),
        ([user("q"), assistant("a"), assistant("b")], "does not follow"),
        ([user("q"), result("c")], "answers no call"),
        ([user("q"), assistant("", "c"), result("d")], "another call than 'c'"),
        ([user("q"), assistant("", "c"), assistant("a")], "result of 'c' is due"),
        ([user("q"), assistant("", "c")], "missing at the end"),
        ([user("q"), assistant("", "c", "c"), result("c"), result("c")], "used twice"),
        ([user("q"), assistant("", ""), result("")], "no proper id"),
        ([user(" ")], "content is empty"),
        ([user("q"), assistant("")], "content is empty"),
        ([user("\udfff")], "not valid Unicode"),
        ([attrs.evolve(user("q"), tool_calls=assistant("", "c").tool_calls)], "only the assistant"),
        ([attrs.evolve(user("q"), tool_call_id="c")], "only a tool message"),
    ],
)
def test_strict_problems_names_what_is_wrong(history: list[Message], problem: str) -> None:
    problems = strict_problems(history)
    assert any(problem in text for text in problems), problems


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (ToolCallRequest(id="c", name="a.b", arguments="{}"), "name of a called tool"),
        (ToolCallRequest(id="c", name="t", arguments="[]"), "not a JSON object"),
    ],
)
def test_strict_problems_looks_into_calls(call: ToolCallRequest, problem: str) -> None:
    message = Message(role="assistant", content="", tool_calls=(call,))
    assert problem in strict_problems([user("q"), message, result("c")])[0]
