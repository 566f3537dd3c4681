"""Follow one run through the event stream of a session: its events, each once, to its end.

No I/O: bytes come from :mod:`semibot.cli.remote`. The stream of a session carries other runs
as well, and may begin anew with a ``resync``, which says in one event what was missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, final

from semibot.errors import RemoteProtocolError
from semibot.session import JournalEntry
from semibot.wire.codec import JsonObject, JsonValue, dump_json, load_json
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    RunStarted,
    SessionEvent,
    TextChunk,
    decode_event,
)
from semibot.wire.sse import EventId, SseMessage

TAIL: Final = 256
"""How many characters of what was shown are looked for in a text that lost its beginning."""


@final
class Following:
    """What is known of one run.

    Args:
        run_id: The run; empty means the first that starts.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id: str = run_id
        """The run that is followed."""
        self.last_id: str | None = None
        """The newest event of the stream; where to take it up again."""
        self._current = run_id
        self._entries: deque[JournalEntry] = deque()
        self._shown = 0
        self._tail = ""

    def next(self) -> JournalEntry | None:
        """Return the next event of the run, or None if more has to be read."""
        return self._entries.popleft() if self._entries else None

    def take(self, message: SseMessage) -> None:
        """Keep what a message of the stream says, if it is the run's.

        What a newer host may say and this program does not know is passed over.
        """
        data = message.data.decode("utf-8", "replace")
        try:
            at = EventId.parse(message.id)
            value = load_json(data)
        except RemoteProtocolError:
            return
        self.last_id = message.id
        if not isinstance(value, Mapping):
            return
        if value.get("type") == "resync":
            self._resync(value, at)
            return
        try:
            event = decode_event(value)
        except RemoteProtocolError:
            return
        if isinstance(event, RunStarted):
            self._current = event.run_id
            self.run_id = self.run_id or event.run_id
        if self._current == self.run_id:
            self._add(at, event, data)

    def _add(self, at: EventId, event: SessionEvent, data: str) -> None:
        if isinstance(event, TextChunk):
            self._shown += len(event.content)
            self._tail = (self._tail + event.content)[-TAIL:]
        self._entries.append(
            JournalEntry(
                term=at.term,
                seq=at.seq,
                run_id=self.run_id,
                event=event,
                data=data,
                size=len(data.encode("utf-8", "surrogatepass")),
            )
        )

    def _resync(self, view: JsonObject, at: EventId) -> None:
        """Make up for what is no longer kept: the rest of the text, and the end."""
        run, messages = view.get("run"), view.get("messages")
        self._current = ""
        if isinstance(run, Mapping):
            self._current = str(run.get("run_id"))
            if self._current == self.run_id:
                self._catch_up(run.get("text"), at)
                return
        for message in messages if isinstance(messages, list | tuple) else ():
            if not isinstance(message, Mapping) or message.get("role") != "assistant":
                continue
            if message.get("run_id") == self.run_id:
                self._catch_up(message.get("content"), at)
                self._end(message.get("metadata"), at)

    def _catch_up(self, text: JsonValue, at: EventId) -> None:
        """Add what of *text*, the run's so far, was not shown."""
        if not isinstance(text, str):
            return
        begin = self._shown
        if text[:begin][-TAIL:] != self._tail:  # it lost its beginning
            begin = text.rfind(self._tail) + len(self._tail) if self._tail in text else 0
        if rest := text[begin:]:
            chunk = TextChunk(content=rest)
            self._add(at, chunk, dump_json({"type": chunk.type, "content": rest}))

    def _end(self, metadata: JsonValue, at: EventId) -> None:
        said = _object(metadata)
        event: ExecutionComplete | ExecutionError
        match said.get("outcome"):
            case "completed":
                event = ExecutionComplete(run_id=self.run_id)
            case "cancelled":
                event = ExecutionComplete(run_id=self.run_id, cancelled=True)
            case outcome:
                error = _object(said.get("error"))
                event = ExecutionError(
                    run_id=self.run_id,
                    code=str(error.get("code") or "FAILED"),
                    error=str(error.get("message") or f"the answer was {outcome}"),
                )
        fields = {"type": event.type, "run_id": self.run_id}
        if isinstance(event, ExecutionError):
            fields |= {"code": event.code, "error": event.error}
        self._add(at, event, dump_json(fields))


def _object(value: JsonValue) -> JsonObject:
    return value if isinstance(value, Mapping) else {}
