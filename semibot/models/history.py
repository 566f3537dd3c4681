"""Make a conversation acceptable to a strict provider. Pure functions.

A cancelled run leaves a history that providers refuse with status 400: tool calls
without results, questions without answers. :func:`repair_history` closes such gaps with
short notes, and never changes what was said. :func:`strict_problems` is the other half:
it says what a strict provider would refuse, and knows nothing of the repair.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from semibot.errors import RemoteProtocolError
from semibot.models.chat_chunks import MAX_ARGUMENTS
from semibot.wire.chat import Message, ToolCallRequest
from semibot.wire.codec import load_json

NO_ANSWER: Final = "[no answer: the run ended before one was given]"
"""Stands for the answer that a user's message never got."""

NO_RESULT: Final = "[no result: the run ended before this call did]"
"""Stands for the result that a tool call never got. The tool may have had effects."""

NO_CONTENT: Final = "[empty message]"
"""Stands for a user's message without text."""

EARLIER: Final = "[the conversation before this is not kept]"
"""Stands for the user's message before an answer that comes first."""

MAX_NAME_LENGTH: Final = 64
"""Longest name of a tool, in characters."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9_-]")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def repair_history(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return *messages* as a strict provider accepts them.

    * All system text stands in one message, the first.
    * The first other message is the user's. Between two user messages, and between a
      tool's result and a user message, stands an answer; neighbouring answers are one.
    * Each tool call has one result, right behind its message and in the order of the
      calls. Results without a call, and second results, are dropped.
    * Call ids are unique; names of tools and arguments have the form that providers ask
      for, and arguments that no tool would take are left out; no text has half a
      character in it.

    Repairing twice changes nothing more. What stands in front does not depend on what is
    appended later, system messages aside, so that a provider's prompt cache stays valid.

    Args:
        messages: The conversation, in order.

    Returns:
        The repaired conversation; a user message at its end stays there.
    """
    given = tuple(messages)
    talk = tuple(message for message in given if message.role != "system")
    repair = _Repair()
    for index, message in enumerate(talk):
        match message.role:
            case "user":
                repair.add_user(message)
            case "assistant":
                repair.add_assistant(message, _results_after(talk, index))
            case _:  # a result was added with its call, or answers none
                continue
    repair.end_answer()
    system = _join(message.content for message in given if message.role == "system")
    first = (Message(role="system", content=system),) if system else ()
    return first + tuple(repair.messages)


@attrs.define(eq=False)
class _Repair:
    messages: list[Message] = attrs.field(factory=list[Message])
    _answer: list[str] | None = None
    _ids: _UniqueIds = attrs.field(factory=lambda: _UniqueIds())

    def add_user(self, message: Message) -> None:
        self.end_answer()
        if self.messages and self.messages[-1].role != "assistant":
            self.messages.append(Message(role="assistant", content=NO_ANSWER))
        self.messages.append(
            Message(role="user", content=_join([message.content]) or NO_CONTENT, name=message.name)
        )

    def add_assistant(self, message: Message, results: Mapping[str, deque[str]]) -> None:
        if not self.messages:
            self.messages.append(Message(role="user", content=EARLIER))
        self._answer = [*(self._answer or ()), message.content]
        if not message.tool_calls:
            return
        calls = tuple(self._repair_call(call) for call in message.tool_calls)
        self.messages.append(
            Message(role="assistant", content=_join(self._answer), tool_calls=calls)
        )
        self._answer = None
        for asked, call in zip(message.tool_calls, calls, strict=True):
            waiting = results.get(asked.id)
            content = _clean(waiting.popleft()) if waiting else NO_RESULT
            self.messages.append(
                Message(role="tool", content=content, tool_call_id=call.id, name=call.name)
            )

    def end_answer(self) -> None:
        if self._answer is not None:
            text = _join(self._answer) or NO_ANSWER
            self.messages.append(Message(role="assistant", content=text))
            self._answer = None

    def _repair_call(self, call: ToolCallRequest) -> ToolCallRequest:
        return ToolCallRequest(
            id=self._ids.take(_clean(call.id)),
            name=_NOT_IN_NAME.sub("_", call.name)[:MAX_NAME_LENGTH] or "unnamed",
            arguments=call.arguments if _is_json_object(call.arguments) else "{}",
        )


@attrs.define(eq=False)
class _UniqueIds:
    _used: set[str] = attrs.field(factory=set[str])
    _next: dict[str, int] = attrs.field(factory=dict[str, int])

    def take(self, wanted: str) -> str:
        base = wanted or "call"
        unique = base
        while unique in self._used:
            number = self._next.get(base, 2)
            self._next[base] = number + 1
            unique = f"{base}_{number}"
        self._used.add(unique)
        return unique


def _results_after(talk: Sequence[Message], index: int) -> Mapping[str, deque[str]]:
    """Collect the tool results up to the next answer, by call id."""
    results: dict[str, deque[str]] = defaultdict(deque)
    for later in range(index + 1, len(talk)):
        message = talk[later]
        if message.role == "assistant":
            break
        if message.role == "tool":
            results[message.tool_call_id or ""].append(message.content)
    return results


def _join(texts: Iterable[str]) -> str:
    return "\n\n".join(_clean(text) for text in texts if text.strip())


def _clean(text: str) -> str:
    return _LONE_SURROGATE.sub("\ufffd", text)


def _is_json_object(text: str) -> bool:
    if len(text) > MAX_ARGUMENTS or not text.lstrip().startswith("{"):
        return False  # without parsing it, again and again, at every request
    try:
        return isinstance(load_json(text), Mapping)
    except RemoteProtocolError:
        return False


# --- what a strict provider refuses ---------------------------------------------------


def strict_problems(messages: Sequence[Message]) -> list[str]:
    """Say what a strict provider would refuse in a conversation.

    Args:
        messages: The conversation as it would be sent.

    Returns:
        One sentence a problem, naming the message by its 0-based index; empty if the
        conversation is acceptable.
    """
    problems: list[str] = []
    seen_ids: set[str] = set()
    open_calls: deque[str] = deque()
    before: Message | None = None
    for index, message in enumerate(messages):
        where = f"message {index} ({message.role})"
        if open_calls and message.role != "tool":
            problems.append(f"{where} stands where the result of {open_calls[0]!r} is due")
            open_calls.clear()
        match message.role:
            case "system":
                if index > 0:
                    problems.append(f"{where} is not the first message")
            case "user":
                if before is not None and before.role not in {"system", "assistant"}:
                    problems.append(f"{where} follows a {before.role} message")
            case "assistant":
                if before is None or before.role not in {"user", "tool"}:
                    problems.append(f"{where} does not follow a user or tool message")
                open_calls.extend(call.id for call in message.tool_calls)
                for call in message.tool_calls:
                    problems.extend(f"{where}: {text}" for text in _call_problems(call, seen_ids))
                    seen_ids.add(call.id)
            case _:
                if not open_calls:
                    problems.append(f"{where} answers no call")
                elif (due := open_calls.popleft()) != message.tool_call_id:
                    problems.append(f"{where} answers another call than {due!r}")
        problems.extend(f"{where}: {text}" for text in _message_problems(message))
        before = message
    if open_calls:
        problems.append(f"the result of {open_calls[0]!r} is missing at the end")
    return problems


def _call_problems(call: ToolCallRequest, seen_ids: set[str]) -> list[str]:
    problems: list[str] = []
    if not call.id or _LONE_SURROGATE.search(call.id):
        problems.append("a call has no proper id")
    if call.id in seen_ids:
        problems.append(f"the call id {call.id!r} is used twice")
    if not _NAME.fullmatch(call.name):
        problems.append("the name of a called tool is malformed")
    if not _is_json_object(call.arguments):
        problems.append("the arguments of a call are not a JSON object")
    return problems


def _message_problems(message: Message) -> list[str]:
    problems: list[str] = []
    may_be_empty = message.role == "tool" or bool(message.tool_calls)
    if not may_be_empty and not message.content.strip():
        problems.append("the content is empty")
    if _LONE_SURROGATE.search(message.content):
        problems.append("the content is not valid Unicode")
    if message.tool_calls and message.role != "assistant":
        problems.append("only the assistant calls tools")
    if message.tool_call_id is not None and message.role != "tool":
        problems.append("only a tool message answers a call")
    return problems
