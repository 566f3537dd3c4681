"""Readers of event streams that remember what they saw, and what must be true of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs
import trio
from http_client import BROKEN, Exchange, open_exchange

from semibot.wire.sse import EventId, SseDecoder

Stored: TypeAlias = list[tuple[int, int, str, dict[str, object]]]
"""A session's events in the store: term, seq, run id, event."""

TERMINAL = frozenset({"execution_complete", "execution_error"})
"""Types of the events that end a run."""


@attrs.frozen
class Seen:
    """One event, as a reader got it."""

    id: EventId
    name: str
    event: dict[str, object]
    at: float = attrs.field(eq=False)

    @property
    def type(self) -> str:
        return self.event["type"]


@attrs.define(eq=False)
class Follower:
    """A reader, of a run or of a session; the same one may connect several times."""

    seen: list[Seen] = attrs.field(factory=list[Seen])
    headers: dict[str, str] = attrs.field(factory=dict[str, str])
    """Of its requests, beyond the usual ones."""
    session_id: str = ""
    run_id: str = ""
    status: int = 0
    body: bytes = b""
    """Of an answer that is no stream."""
    ended_at: float | None = None
    """When the host ended the newest stream in order."""
    is_over: bool = False
    """Whether the newest stream has ended, in whatever way."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _news: trio.Event = attrs.field(factory=trio.Event)

    @property
    def last_id(self) -> EventId | None:
        return self.seen[-1].id if self.seen else None

    @property
    def types(self) -> list[str]:
        return [item.type for item in self.seen]

    @property
    def terminals(self) -> list[dict[str, object]]:
        return [item.event for item in self.seen if item.type in TERMINAL]

    async def wait(self, condition: Callable[[Follower], object], seconds: float = 40.0) -> None:
        """Wait until *condition* holds; it is asked after each piece of news."""
        try:
            with trio.fail_after(seconds):
                while not condition(self):
                    await self._news.wait()
        except trio.TooSlowError as exc:
            exc.add_note(f"status {self.status}, {len(self.seen)} events, over: {self.is_over}")
            exc.add_note("\n".join(f"{item.id} {item.event}"[:300] for item in self.seen[-5:]))
            raise

    async def wait_types(self, wanted: str, count: int) -> None:
        """Wait until *count* events of a type were seen."""
        await self.wait(lambda _: self.types.count(wanted) >= count)

    async def post(self, port: int, path: str, body: object) -> None:
        """Send a message and follow its run; leaving early (``scope.cancel``) closes the stream."""
        await self._run(port, "POST", path, body, self.headers)

    async def get(self, port: int, path: str) -> None:
        """Follow a session from the last id that was seen."""
        last = {} if self.last_id is None else {"Last-Event-ID": str(self.last_id)}
        await self._run(port, "GET", path, None, {**self.headers, **last})

    async def _run(
        self, port: int, method: str, path: str, body: object, headers: dict[str, str]
    ) -> None:
        self.ended_at, self.is_over = None, False
        self.scope = trio.CancelScope()
        try:
            with self.scope:
                async with open_exchange(port, method, path, body, headers) as exchange:
                    await self._read(exchange)
                    self.ended_at = trio.current_time()
        except BROKEN:
            pass
        finally:
            self.is_over = True
            self._tell()

    async def _read(self, exchange: Exchange) -> None:
        self.status = exchange.status
        self.session_id = exchange.headers.get("x-session-id", self.session_id)
        self.run_id = exchange.headers.get("x-run-id", self.run_id)
        self._tell()
        decoder = SseDecoder(2 * 1024 * 1024)
        while data := await exchange.receive():
            if exchange.status != 200:
                self.body += data
                continue
            for message in decoder.feed(data):
                event = json.loads(message.data)
                item = Seen(EventId.parse(message.id), message.event, event, trio.current_time())
                self.seen.append(item)
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


# --- what must be true ----------------------------------------------------------------


def check_reader(seen: Sequence[Seen], stored: Stored) -> None:
    """Assert that a reader saw no gap, no repeat and nothing that the store contradicts.

    What was seen before a ``resync`` may have been lost; what was seen after the last one
    is in the store as it was seen.
    """
    by_id = {EventId(term, seq): event for term, seq, _, event in stored}
    ids = [item.id for item in seen if item.type != "resync"]
    assert len(ids) == len(set(ids)), "an id came twice"
    resyncs = [index for index, item in enumerate(seen) if item.type == "resync"]
    last_resync = max(resyncs, default=-1)
    for index, item in enumerate(seen):
        if item.type == "resync":
            continue
        assert (item.name if item.type in TERMINAL else "message") == item.name
        if index:
            before = seen[index - 1].id
            assert item.id.seq == before.seq + 1, f"{before} is followed by {item.id}"
            assert item.id.term >= before.term, f"{before} is followed by {item.id}"
        if item.id in by_id or index > last_resync:
            assert by_id[item.id] == item.event, f"{item.id} is something else in the store"


def check_store(stored: Stored, *, running: int = 0) -> None:
    """Assert that numbers are gapless, and that each run has one terminal event, its last.

    Args:
        stored: The session's events.
        running: How many runs have no terminal event yet.
    """
    assert [seq for _, seq, _, _ in stored] == list(range(1, len(stored) + 1))
    terms = [term for term, _, _, _ in stored]
    assert terms == sorted(terms)
    runs: dict[str, list[str]] = {}
    for _, _, run_id, event in stored:
        runs.setdefault(run_id, []).append(event["type"])
    for run_id, types in runs.items():
        assert types[0] == "run_started", (run_id, types[:3])
        assert types.count("run_started") == 1, run_id
        ends = [kind for kind in types if kind in TERMINAL]
        assert len(ends) <= 1, (run_id, ends)
        if ends:
            assert types[-1] in TERMINAL, (run_id, types[-3:])
        else:
            running -= 1
    assert running >= 0, "a run has not ended"


def view_of(seen: Sequence[Seen]) -> list[tuple[str, str]]:
    """Return the conversation as a reader shows it: a role and a text for each message."""
    shown: dict[str, tuple[str, str]] = {}
    for item in seen:
        event = item.event
        if item.type == "resync":
            shown = {m["id"]: (m["role"], m["content"]) for m in event["messages"]}
            run = event["run"]
            if run is not None:
                shown.setdefault("running", ("assistant", run["text"]))
        elif item.type == "run_started":
            shown[event["message_id"]] = ("user", event["message"])
            shown["running"] = ("assistant", "")
        elif item.type == "text_chunk":
            shown["running"] = ("assistant", shown["running"][1] + event["content"])
        elif item.type in TERMINAL:
            role, text = shown.pop("running", ("assistant", ""))
            if not text:
                text = event.get("final_response") or event.get("partial_response") or ""
            shown[event["run_id"] + ".answer"] = (role, text)
    return list(shown.values())


def ends_of(follower: Follower) -> int:
    """Return how many runs have ended in what a reader shows."""
    answers = sum(role == "assistant" for role, _ in view_of(follower.seen))
    return answers - _shows_run(follower.seen)


def _shows_run(seen: Sequence[Seen]) -> bool:
    for item in reversed(seen):
        if item.type in TERMINAL:
            return False
        if item.type == "run_started":
            return True
        if item.type == "resync":
            return item.event["run"] is not None
    return False


def check_history(seen: Sequence[Seen], messages: Sequence[dict[str, object]]) -> None:
    """Assert that a reader shows what the host says the conversation is."""
    assert view_of(seen) == [(m["role"], m["content"]) for m in messages]
