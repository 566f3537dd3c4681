"""Put a reply together from the chunks of a chat-completions stream. Does no I/O.

The chunks come from servers of very different care, so every field is checked, and what
is known to differ between them is accepted: calls without ids or indices, arguments as
an object, reasoning under two names, usage with or after the last piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import attrs
from typing_extensions import TypeIs

from semibot.errors import ModelError
from semibot.models.base import Delta, ReasoningDelta, Reply, TextDelta
from semibot.wire.chat import Message, ToolCallRequest
from semibot.wire.codec import JsonObject, JsonValue, dump_json
from semibot.wire.events import Usage

MAX_REPLY_CHARS: Final = 8 * 1024 * 1024
"""Longest reply, in characters: text, reasoning and arguments together."""

MAX_TOOL_CALLS: Final = 128
"""Most tool calls of one reply."""

MAX_ARGUMENTS: Final = 256 * 1024
"""Longest arguments of one tool call, in characters. Parsing them holds everything up."""

MAX_REPLY_ARGUMENTS: Final = 1024 * 1024
"""Longest arguments of all tool calls of one reply together, in characters."""

MAX_TOKENS: Final = 2**53
"""Most tokens that are believed; the largest count that every JSON parser can hold."""

_REASONING_FIELDS: Final = ("reasoning_content", "reasoning")
_TEXT_FIELDS: Final = ("content", "refusal")
_SHORT_WORD: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def protocol_error(reason: str) -> ModelError:
    """Return the error for an answer that cannot be understood."""
    return ModelError(f"the model server's answer makes no sense: {reason}", code="MODEL_PROTOCOL")


@attrs.define(eq=False)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = attrs.field(factory=list[str])
    size: int = 0


@final
@attrs.define(eq=False)
class ReplyBuilder:
    """Collects one reply. Feed it every chunk, in order.

    Args:
        new_id: Makes an id for a call that came without one.
    """

    _new_id: Callable[[], str]
    finish_reason: str | None = attrs.field(default=None, init=False)
    """Why the model stopped; None until it says so."""
    usage: Usage | None = attrs.field(default=None, init=False)
    """Tokens spent; None until the server says."""
    _text: list[str] = attrs.field(factory=list[str], init=False)
    _calls: list[_Call] = attrs.field(factory=list[_Call], init=False)
    _by_index: dict[int, _Call] = attrs.field(factory=dict[int, _Call], init=False)
    _size: int = attrs.field(default=0, init=False)
    _arguments_size: int = attrs.field(default=0, init=False)

    def feed(self, chunk: JsonValue) -> tuple[bool, list[Delta]]:
        """Take one chunk.

        Args:
            chunk: The decoded data of one event.

        Returns:
            Whether the reply got any further, and the pieces to pass on.

        Raises:
            ModelError: If the chunk has another shape than the interface says, or is an
                error report.
        """
        if not isinstance(chunk, Mapping):
            raise protocol_error("a chunk is not an object")
        if chunk.get("error"):
            raise reported_error(chunk["error"])
        has_usage = self._take_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        if choices is None and has_usage:
            return True, []
        if not _is_list(choices):
            raise protocol_error("a chunk has no choices")
        if not choices:
            return has_usage, []
        choice = choices[0]
        if not isinstance(choice, Mapping):
            raise protocol_error("a choice is not an object")
        delta = _object(choice, "delta")
        deltas = self._take_texts(delta)
        has_calls = self._take_calls(delta.get("tool_calls"))
        has_finish = self._take_finish_reason(choice.get("finish_reason"))
        return has_usage or has_calls or has_finish or bool(deltas), deltas

    def build(self) -> Reply:
        """Return the reply as a whole.

        Raises:
            ModelError: If a call has no name.
        """
        calls: list[ToolCallRequest] = []
        for call in self._calls:
            if not call.name:
                raise protocol_error("a tool call has no name")
            calls.append(
                ToolCallRequest(
                    id=call.id or self._new_id(),
                    name=call.name,
                    arguments="".join(call.arguments) or "{}",
                )
            )
        return Reply(
            message=Message(role="assistant", content="".join(self._text), tool_calls=tuple(calls)),
            usage=self.usage or Usage(),
            finish_reason=self.finish_reason,
        )

    def _take_usage(self, usage: JsonValue) -> bool:
        if usage is None:
            return False
        if not isinstance(usage, Mapping):
            raise protocol_error("usage is not an object")
        self.usage = Usage(
            tokens_in=_count(usage, "prompt_tokens"),
            tokens_out=_count(usage, "completion_tokens"),
        )
        return True

    def _take_texts(self, delta: JsonObject) -> list[Delta]:
        deltas: list[Delta] = []
        for field in _REASONING_FIELDS:
            if text := self._take_text(delta, field):
                deltas.append(ReasoningDelta(text=text))
                break  # a server that sends both names sends the same text twice
        for field in _TEXT_FIELDS:
            if text := self._take_text(delta, field):
                self._text.append(text)
                deltas.append(TextDelta(text=text))
        return deltas

    def _take_text(self, source: JsonObject, field: str) -> str:
        text = source.get(field)
        if text is None:
            return ""
        if not isinstance(text, str):
            raise protocol_error(f"{field} is not a string")
        return self._bounded(text)

    def _bounded(self, text: str) -> str:
        self._size += len(text)
        if self._size > MAX_REPLY_CHARS:
            raise protocol_error(f"the reply is longer than {MAX_REPLY_CHARS} characters")
        return text

    def _take_calls(self, pieces: JsonValue) -> bool:
        if pieces is None:
            return False
        if not _is_list(pieces):
            raise protocol_error("tool_calls is not a list")
        for piece in pieces:
            if not isinstance(piece, Mapping):
                raise protocol_error("a tool call is not an object")
            self._take_call(piece)
        return bool(pieces)

    def _take_call(self, piece: JsonObject) -> None:
        function = _object(piece, "function")
        call_id = self._take_text(piece, "id")
        name = self._take_text(function, "name")
        call = self._call_for(piece.get("index"), call_id, name)
        call.id = call.id or call_id
        call.name = call.name or name
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            self._add_arguments(call, self._bounded(dump_json(arguments)))
        elif text := self._take_text(function, "arguments"):
            self._add_arguments(call, text)

    def _add_arguments(self, call: _Call, text: str) -> None:
        call.size += len(text)
        if call.size > MAX_ARGUMENTS:
            raise protocol_error(f"a call's arguments are longer than {MAX_ARGUMENTS} characters")
        self._arguments_size += len(text)
        if self._arguments_size > MAX_REPLY_ARGUMENTS:
            raise protocol_error(
                f"the arguments of all calls are longer than {MAX_REPLY_ARGUMENTS} characters"
            )
        call.arguments.append(text)

    def _call_for(self, index: JsonValue, call_id: str, name: str) -> _Call:
        """Find the call that a piece continues, or begin one."""
        if isinstance(index, int):
            call = self._by_index.get(index)
        elif index is None:
            call = self._calls[-1] if self._calls and not name else None
        else:
            raise protocol_error("the index of a tool call is not a number")
        if call is None or (call_id and call.id and call_id != call.id):
            if len(self._calls) == MAX_TOOL_CALLS:
                raise protocol_error(f"the reply has more than {MAX_TOOL_CALLS} tool calls")
            call = _Call()
            self._calls.append(call)
        if isinstance(index, int):
            self._by_index[index] = call
        return call

    def _take_finish_reason(self, reason: JsonValue) -> bool:
        if reason is None or reason == "":
            return False
        if not isinstance(reason, str):
            raise protocol_error("finish_reason is not a string")
        self.finish_reason = short_word(reason) or "other"
        return True


def _is_list(value: JsonValue) -> TypeIs[Sequence[JsonValue]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _object(source: JsonObject, field: str) -> JsonObject:
    value = source.get(field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise protocol_error(f"{field} is not an object")
    return value


def _count(usage: JsonObject, field: str) -> int:
    count = usage.get(field)
    return max(0, min(count, MAX_TOKENS)) if type(count) is int else 0


# --- what servers say when something is wrong -----------------------------------------


def short_word(value: JsonValue) -> str:
    """Return *value* if it is a short code, else an empty string.

    Servers echo prompts and keys in their error texts; a code such as
    ``context_length_exceeded`` is all of it that may be shown.
    """
    text = str(value) if isinstance(value, str | int) else ""
    return text if _SHORT_WORD.fullmatch(text) else ""


def error_words(error: JsonValue) -> str:
    """Return the codes in a server's error report, such as ``(rate_limit_exceeded)``.

    Args:
        error: The decoded ``error`` object.

    Returns:
        The codes in parentheses with a space in front; empty if there are none.
    """
    if not isinstance(error, Mapping):
        return ""
    words = [short_word(error.get(field)) for field in ("type", "code")]
    found = dict.fromkeys(word for word in words if word)
    return f" ({', '.join(found)})" if found else ""


def reported_error(error: JsonValue) -> ModelError:
    """Return the error that a server reports in the middle of a stream."""
    words = error_words(error)
    if "rate_limit" in words:
        code, is_retryable = "MODEL_RATE_LIMITED", True
    elif "invalid" in words:
        code, is_retryable = "MODEL_REFUSED", False
    else:
        code, is_retryable = "MODEL_SERVER_ERROR", True
    return ModelError(
        f"the model server reported an error in its answer{words}",
        code=code,
        is_retryable=is_retryable,
    )
