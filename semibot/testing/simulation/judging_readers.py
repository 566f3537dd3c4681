"""Invariants of what readers are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, cast, final

from semibot.wire.frames import SseEvent
from semibot.wire.sse import EventId

from .happenings import Finished, Happening, Read, RunRead, Said
from .people import TERMINAL

if TYPE_CHECKING:
    from .readers import Reader
    from .world import World


@final
class Gapless:
    """What a reader is shown has no gap and no duplicate."""

    name: ClassVar[str] = "gapless"
    wants: ClassVar[tuple[type, ...]] = (Read, RunRead)

    def __init__(self, world: World) -> None:
        self._world = world

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case Read(reader=None):
                pass
            case Read(reader=reader, event={"type": kind}) if reader is not None:
                if kind != "resync":
                    self._check(reader, what.id, str(kind))
            case RunRead(before=EventId() as before):
                if not _follows(before, what.id):
                    self._violate(what.run_id[:6], before, what.id, str(what.event["type"]))
            case _:
                pass

    def _check(self, reader: Reader, this: EventId, kind: str) -> None:
        if reader.last_id is not None:
            if not _follows(reader.last_id, this):
                self._violate(reader.name, reader.last_id, this, kind)
        elif this.seq != 1:
            self._world.violate(self.name, f"{reader.name}: begins with {this} {kind}")

    def _violate(self, who: str, before: EventId, this: EventId, kind: str) -> None:
        self._world.violate(self.name, f"{who}: {before} is followed by {this} {kind}")


def _follows(before: EventId, this: EventId) -> bool:
    return this.seq == before.seq + 1 and this.term >= before.term


@final
class OneMeaning:
    """No event id means two things, whoever says, shows or stores it."""

    name: ClassVar[str] = "one_meaning"
    wants: ClassVar[tuple[type, ...]] = (Said, Read, Finished)

    def __init__(self, world: World) -> None:
        self._world = world
        self._meaning: dict[tuple[str, EventId], tuple[str, str]] = {}
        self._shown_as: dict[tuple[str, EventId], str] = {}

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case Read(event={"type": kind}) if kind != "resync":
                self._take_read(what)
            case Said(is_from_host=False, frames=frames, link=link):
                for frame in frames:
                    if isinstance(frame, SseEvent) and frame.term and frame.seq:
                        this = EventId(frame.term, frame.seq)
                        self._compare(frame.session_id, this, _text_of(frame.data), link.vm)
            case Finished():
                self._compare_with_store()
            case _:
                pass

    def _take_read(self, read: Read) -> None:
        text = json.dumps(read.event, sort_keys=True)
        self._compare(read.session_id, read.id, text, read.who)
        known = self._shown_as.setdefault((read.session_id, read.id), read.name)
        if known != read.name:
            self._world.violate(
                self.name, f"{read.id} of {read.session_id[:6]} is a {known} and a {read.name}"
            )

    def _compare(self, session_id: str, this: EventId, text: str, who: str) -> None:
        known, by = self._meaning.setdefault((session_id, this), (text, who))
        if known != text:
            self._world.violate(
                self.name,
                f"{this} of {session_id[:6]} is two events:"
                f"\n  {by}: {known[:200]}\n  {who}: {text[:200]}",
            )

    def _compare_with_store(self) -> None:
        for session, term, seq, data in self._world.rows(
            "SELECT session_id, term, seq, data FROM events ORDER BY session_id, seq"
        ):
            this = EventId(int(str(term)), int(str(seq)))
            if (str(session), this) in self._meaning:
                self._compare(str(session), this, _text_of(str(data)), "the store")


def _text_of(data: str) -> str:
    return json.dumps(json.loads(data), sort_keys=True)


@final
class OneTerminal:
    """A run has exactly one terminal event, and it is the run's last."""

    name: ClassVar[str] = "one_terminal"
    wants: ClassVar[tuple[type, ...]] = (Read, RunRead, Finished)

    def __init__(self, world: World) -> None:
        self._world = world
        self._ends: dict[str, EventId] = {}

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case Read(event={"type": kind, "run_id": run_id}) if kind in TERMINAL:
                end = self._ends.setdefault(str(run_id), what.id)
                if end != what.id:
                    self._violate(f"run {str(run_id)[:6]} ends at {end} and at {what.id}")
            case RunRead():
                if what.has_ended:
                    self._violate(f"run {what.run_id[:6]}: {what.id} comes after the end")
                if what.event["type"] in TERMINAL and what.event["run_id"] != what.run_id:
                    self._violate(f"run {what.run_id[:6]}: the end of another run at {what.id}")
            case Finished():
                self._check_store()
            case _:
                pass

    def _violate(self, text: str) -> None:
        self._world.violate(self.name, text)

    def _check_store(self) -> None:
        session, current, last = "", None, (0, 0)
        ended = set[str]()
        for name, seq, term, run_id, kind in self._world.rows(
            "SELECT session_id, seq, term, run_id, type FROM events ORDER BY session_id, seq"
        ):
            where = f"store: {str(name)[:6]} {term}-{seq} {kind}"
            if name != session:
                if current is not None:
                    self._violate(f"store: run {current[:6]} of {session[:6]} has no end")
                session, current, last = str(name), None, (0, 0)
            this = (int(str(seq)), int(str(term)))
            if this[0] != last[0] + 1 or this[1] < last[1]:
                self._violate(f"{where} follows {last[1]}-{last[0]}")
            last = this
            if kind == "run_started":
                if current is not None:
                    self._violate(f"{where} begins inside {current[:6]}")
                if run_id in ended:
                    self._violate(f"{where} of {str(run_id)[:6]}, which has ended")
                current = str(run_id)
            elif current != run_id:
                self._violate(f"{where} of {str(run_id)[:6]}, current is {current}")
            if kind in TERMINAL:
                ended.add(str(run_id))
                current = None
        if current is not None:
            self._violate(f"store: run {current[:6]} of {session[:6]} has no end")


def _followed(world: World) -> list[Reader]:
    """Return the readers whose sessions are still there."""
    gone = world.deleted | world.maybe_deleted
    return [each for each in world.readers if not each.is_gone and each.session_id not in gone]


@final
class SameForAll:
    """In the end every reader was shown what is stored."""

    name: ClassVar[str] = "same_for_all"
    wants: ClassVar[tuple[type, ...]] = (Finished,)

    def __init__(self, world: World) -> None:
        self._world = world

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        for reader in _followed(self._world):
            rows = self._world.rows(
                "SELECT term, seq FROM events WHERE session_id = ? ORDER BY seq",
                reader.session_id,
            )
            stored = [EventId(int(str(term)), int(str(seq))) for term, seq in rows]
            tail: list[EventId] = []
            begin = 0
            for event_id, event in reader.seen:
                if event["type"] == "resync":
                    tail, begin = [], event_id.seq
                else:
                    tail.append(event_id)
            if tail != stored[begin:]:
                self._world.violate(
                    self.name,
                    f"{reader.name} of {reader.session_id[:6]}: saw to"
                    f" {tail[-1] if tail else begin}, stored to {stored[-1] if stored else 0}",
                )


@final
class SameView:
    """What a page shows is the conversation that is stored."""

    name: ClassVar[str] = "same_view"
    wants: ClassVar[tuple[type, ...]] = (Finished,)

    def __init__(self, world: World) -> None:
        self._world = world

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        for reader in _followed(self._world):
            said = _shown(reader)
            if said is None:
                continue
            stored = [
                (str(role), str(content))
                for role, content in self._world.rows(
                    "SELECT role, content FROM messages WHERE session_id = ? ORDER BY position",
                    reader.session_id,
                )
                if content
            ]
            if said != stored:
                pairs = zip(said, stored, strict=False)
                at = next((i for i, (a, b) in enumerate(pairs) if a != b), -1)
                words = "" if at < 0 else f"\n{said[at][1][:150]}\n{stored[at][1][:150]}"
                self._world.violate(
                    self.name,
                    f"{reader.name} of {reader.session_id[:6]} shows another conversation:"
                    f" {len(said)} shown, {len(stored)} stored{words}",
                )


@final
class OwnCheck:
    """Whoever simulates finds nothing wrong with any answer."""

    name: ClassVar[str] = "own_check"
    wants: ClassVar[tuple[type, ...]] = (Finished,)

    def __init__(self, world: World) -> None:
        self._world = world

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        check = self._world.plan.check
        if check is None:
            return
        for run_id, question, answer in self._world.rows(
            "SELECT runs.id, asked.content, coalesce(said.content, '') FROM runs"
            " JOIN messages AS asked ON asked.run_id = runs.id AND asked.role = 'user'"
            " LEFT JOIN messages AS said ON said.run_id = runs.id AND said.role = 'assistant'"
            " WHERE runs.outcome = 'completed' ORDER BY runs.created_at, runs.id"
        ):
            problem = check(str(question), str(answer))
            if problem is not None:
                self._world.violate(self.name, f"run {str(run_id)[:6]}: {problem}")


def _shown(reader: Reader) -> list[tuple[str, str]] | None:
    """Return the conversation as a page would show it; None if it shows only a part."""
    shown: dict[str, dict[str, str]] = {}  # a run's messages by role, in the runs' order
    running = ""
    for _, event in reader.seen:
        match event["type"]:
            case "resync":
                if event["truncated"]:
                    return None
                shown = {}
                for message in cast("list[Mapping[str, str]]", event["messages"]):
                    shown.setdefault(message["run_id"], {})[message["role"]] = message["content"]
                run = cast("Mapping[str, str] | None", event["run"])
                running = "" if run is None else run["text"]
            case "run_started":
                shown.setdefault(str(event["run_id"]), {})["user"] = str(event["message"])
                running = ""
            case "text_chunk":
                running += str(event["content"])
            case "execution_complete" | "execution_error":
                text = running or event.get("final_response") or event.get("partial_response")
                shown.setdefault(str(event["run_id"]), {})["assistant"] = str(text or "")
                running = ""
            case _:
                pass
    return [
        (role, roles[role])
        for roles in shown.values()
        for role in ("user", "assistant")
        if roles.get(role)
    ]
