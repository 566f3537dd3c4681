"""One simulation: a seed, a host, VMs, users, faults, and what must be true of it all.

Everything runs in one process on Trio's clock. The seed decides the scheduler's order, every
delay, every fault and what users do, so that a seed that shows a defect shows it again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import cast

import apsw
import attrs
import trio
import trio.testing
from sim_network import Network, Trace
from sim_people import BROKEN, TERMINAL, Browser, Reader, Speaker
from sim_processes import KEY, SimProcess, make_tokens, prepare_host

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.errors import LinkRefused
from semibot.wire.sse import EventId

USERS = ("ann", "bob")
FAULTY = 150.0
"""How long things go wrong, in seconds."""
SETTLED_AFTER = 300.0
"""After how long without faults everything has to be done, in seconds."""

EXPECTED_ERRORS = frozenset({"store cannot write"})
"""What is logged as an error when the disk fails."""


@attrs.frozen(kw_only=True)
class Report:
    """How one seed went."""

    seed: int
    violations: tuple[str, ...]
    digest: str
    events: int
    counts: Counter[str]
    seconds: float


class World:
    """The state of one simulation, and its checks."""

    def __init__(
        self, seed: int, directory: Path, faults: frozenset[str] | None, faulty: float
    ) -> None:
        self.seed = seed
        self.directory = directory
        self.random = random.Random(f"world {seed}")
        self.faults = faults
        self.faulty = faulty
        self.trace = Trace()
        self.network = Network(seed, self.trace)
        self.tokens = make_tokens()
        self.violations: list[str] = []
        self.notes: list[str] = []
        self.counts: Counter[str] = Counter()
        self.users = USERS[: self.random.choice([1, 1, 2])]
        self.readers: list[Reader] = []
        self.sessions: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.maybe_deleted: set[str] = set()
        self.asked_audits: set[str] = set()
        self._meaning: dict[tuple[str, EventId], tuple[str, str, str]] = {}
        self._ends: dict[str, EventId] = {}
        self._runs: dict[str, list[str]] = {}
        self._keys: dict[str, str] = {}
        self._acked: dict[str, int] = {}
        self._handled: dict[str, str] = {}
        self._running: dict[str, SimProcess] = {}
        self._tokens: dict[tuple[str, str], str] = {}
        self.processes: dict[str, SimProcess] = {}
        self._disks: dict[str, Path] = {}
        self._outboxes: dict[str, set[str]] = {}  # what the newest disk of a VM has to deliver
        self.twins: list[SimProcess] = []
        self._doubled: set[str] = set()  # kinds of which there were two
        self.lost_after = self.random.choice([120.0, 120.0, 15.0])
        self.max_open = self.random.choice([64, 1])
        self.disk_delay = self.random.choice([0.002, 0.02, 0.2])
        self._started: Counter[str] = Counter()
        self._settings: HostSettings | None = None

    # --- what is found ---

    def violate(self, text: str, exc: BaseException | None = None) -> None:
        if exc is not None:
            text += "\n" + "".join(traceback.format_exception(exc))
        line = f"{trio.current_time():.3f}: {text}"
        self.violations.append(line)
        self.trace.note("violation", text.splitlines()[0])

    def note(self, text: str) -> None:
        self.notes.append(f"{trio.current_time():.3f}: {text}")
        self.trace.note("note", text)

    def count(self, what: str) -> None:
        self.counts[what] += 1

    # --- settings ---

    def host_settings(self, disk: Path) -> HostSettings:
        return HostSettings(
            data_dir=disk / "data",
            host="192.0.2.1",
            run_mode="production",
            jwt_secret=KEY,
            deadlines=Deadlines(vm_lost_after=self.lost_after),
        )

    def vm_token(self, user: str) -> str:
        return self.tokens.make_vm_token(user, "org")

    def user_token(self, user: str) -> str:
        token = self._tokens.get(("user", user))
        if token is None:
            token = self._tokens["user", user] = self.tokens.make_user_token(user, "org")
        return token

    # --- what is seen ---

    def saw(
        self, session_id: str, event_id: EventId, name: str, event: dict[str, object], who: str
    ) -> None:
        text = json.dumps(event, sort_keys=True)
        known = self._meaning.setdefault((session_id, event_id), (name, text, who))
        if known[:2] != (name, text):
            self.violate(
                f"{event_id} of {session_id[:6]} is two events:"
                f"\n  {known[2]}: {known[1][:200]}\n  {who}: {text[:200]}"
            )
        kind = str(event["type"])
        if kind in TERMINAL:
            run_id = str(event["run_id"])
            end = self._ends.setdefault(run_id, event_id)
            if end != event_id:
                self.violate(f"run {run_id[:6]} ends at {end} and at {event_id}")

    def acknowledged(self, session_id: str, seq: int) -> None:
        self._acked[session_id] = max(self._acked.get(session_id, 0), seq)

    def run_begins(self, run_id: str, process: SimProcess) -> None:
        self.trace.note("handle", run_id)
        if run_id in self._handled:
            self.violate(
                f"run {run_id[:6]} is handled again by {process.name},"
                f" before by {self._handled[run_id]}"
            )
        self._handled[run_id] = process.name
        self._running[run_id] = process

    def run_rests(self, run_id: str, process: SimProcess) -> None:
        if self._running.get(run_id) is process:
            del self._running[run_id]

    def cancel_answered(self, receipt: dict[str, object]) -> None:
        run_id = receipt.get("run_id")
        process = self._running.get(str(run_id))
        # Without an outcome: the session is deleted, and its VM is told to stop it.
        is_whole = not receipt.get("vm_lost") and not receipt.get("abandoned")
        is_over = is_whole and receipt.get("outcome") is not None
        if process is not None and process.is_alive and is_over:
            self.violate(f"run {run_id} still works after its receipt {receipt}")

    def session(self, user: str, session_id: str) -> None:
        self.sessions.setdefault(session_id, user)

    def knows_run(self, session_id: str, run_id: str, key: str) -> None:
        if self._keys.setdefault(key, run_id) != run_id:
            self.violate(f"{key} is two runs")
        runs = self._runs.setdefault(session_id, [])
        if run_id not in runs:
            runs.append(run_id)

    def runs_of(self, session_id: str) -> list[str]:
        return self._runs.get(session_id, [])

    def add_reader(self, user: str, session_id: str) -> Reader:
        reader = Reader(self, user, session_id, f"reader{len(self.readers)}")
        self.readers.append(reader)
        return reader

    # --- the database ---

    def rows(self, sql: str, *values: object, disk: Path | None = None) -> list[tuple[object, ...]]:
        """Return what the host's database holds."""
        path = (disk or self._disks["host"]) / "data" / "semibot.db"
        # The driver of the store itself: another copy of SQLite would undo its file locks.
        with contextlib.closing(apsw.Connection(str(path))) as connection:
            return connection.execute(sql, values).fetchall()

    def check_acknowledged(self, disk: Path) -> None:
        found = dict(self.rows("SELECT id, last_seq FROM sessions", disk=disk))
        gone = {row[0] for row in self.rows("SELECT session_id FROM tombstones", disk=disk)}
        for session_id, seq in self._acked.items():
            stored = found.get(session_id)
            if stored is None and session_id in gone:
                continue
            if stored is None or stored < seq:  # type: ignore[operator]
                self.violate(f"{session_id[:6]}: {seq} was acknowledged, {stored} is stored")

    def check_store(self, *, is_final: bool) -> None:
        """Check every session of the store by itself, and against what was seen."""
        terminal_of: dict[str, int] = {}
        for (session_id,) in self.rows("SELECT id FROM sessions ORDER BY created_at, id"):
            rows = self.rows(
                "SELECT seq, term, run_id, type, data FROM events WHERE session_id = ?"
                " ORDER BY seq",
                session_id,
            )
            current: str | None = None
            last_term = 0
            for number, (seq, term, run_id, kind, data) in enumerate(rows, 1):
                where = f"{str(session_id)[:6]} {term}-{seq} {kind}"
                if seq != number or term < last_term:  # type: ignore[operator]
                    self.violate(f"store: gap at {where}")
                last_term = term  # type: ignore[assignment]
                if kind == "run_started":
                    if current is not None:
                        self.violate(f"store: {where} begins inside {current[:6]}")
                    current = str(run_id)
                elif current != run_id:
                    self.violate(f"store: {where} of {str(run_id)[:6]}, current is {current}")
                if kind in TERMINAL:
                    terminal_of[str(run_id)] = terminal_of.get(str(run_id), 0) + 1
                    current = None
                seen = self._meaning.get((str(session_id), EventId(term, seq)))  # type: ignore[arg-type]
                if seen is not None:
                    text = json.dumps(json.loads(str(data)), sort_keys=True)
                    if seen[1] != text:
                        self.violate(f"store: {where} was seen as {seen[1][:200]}")
            if is_final and current is not None:
                self.violate(f"store: run {current} has no end")
        for run_id, count in terminal_of.items():
            if count != 1:
                self.violate(f"store: run {run_id[:6]} has {count} ends")

    def undone(self) -> list[str]:
        """Return what is not done yet."""
        runs = self.rows("SELECT id, session_id FROM runs WHERE outcome IS NULL")
        commands = self.rows("SELECT id, kind, session_id FROM commands WHERE is_done = 0")
        waiting = [f"run {str(run)[:6]} of {str(session)[:6]} is open" for run, session in runs]
        waiting += [
            f"{kind} {str(name)[:6]} of {str(session)[:6]} is not done"
            for name, kind, session in commands
        ]
        known = {event for (event,) in self.rows("SELECT event FROM audit_log")}
        wanted = set[str]().union(*self._outboxes.values())
        waiting += [f"{event} is missing" for event in sorted(wanted - known)]
        return waiting

    def check_audits(self) -> None:
        for event, count in self.rows("SELECT event, count(*) FROM audit_log GROUP BY event"):
            if count != 1 or event not in self.asked_audits:
                self.violate(f"{event} is {count} times in the log")

    def check_readers(self) -> None:
        """Compare what readers saw with the store, from their last resync on."""
        for reader in self.readers:
            if reader.is_gone or reader.session_id in self.deleted | self.maybe_deleted:
                continue
            rows = self.rows(
                "SELECT term, seq FROM events WHERE session_id = ? ORDER BY seq",
                reader.session_id,
            )
            stored = [EventId(*row) for row in rows]  # type: ignore[arg-type]
            tail: list[EventId] = []
            begin = 0
            for event_id, _, event in reader.seen:
                if event["type"] == "resync":
                    tail, begin = [], event_id.seq
                else:
                    tail.append(event_id)
            if tail != stored[begin:]:
                self.violate(
                    f"{reader.name} of {reader.session_id[:6]}: saw to"
                    f" {tail[-1] if tail else begin}, stored to {stored[-1] if stored else 0}"
                )
            self._check_view(reader)

    def _check_view(self, reader: Reader) -> None:
        """Compare the conversation that a reader shows with the one that is stored."""
        shown: dict[str, dict[str, str]] = {}  # a run's messages by role, in the runs' order
        running = ""
        for _, _, event in reader.seen:
            match event["type"]:
                case "resync":
                    if event["truncated"]:
                        return
                    shown = {}
                    for message in cast("list[dict[str, str]]", event["messages"]):
                        roles = shown.setdefault(message["run_id"], {})
                        roles[message["role"]] = message["content"]
                    run = cast("dict[str, str] | None", event["run"])
                    running = "" if run is None else run["text"]
                case "run_started":
                    shown.setdefault(str(event["run_id"]), {})["user"] = str(event["message"])
                    running = ""
                case "text_chunk":
                    running += str(event["content"])
                case "execution_complete" | "execution_error":
                    text = running or event.get("final_response") or ""
                    text = text or event.get("partial_response") or ""
                    shown.setdefault(str(event["run_id"]), {})["assistant"] = str(text)
                    running = ""
        said = [
            (role, roles[role])
            for roles in shown.values()
            for role in ("user", "assistant")
            if roles.get(role)
        ]
        stored = [
            (str(role), str(content))
            for role, content in self.rows(
                "SELECT role, content FROM messages WHERE session_id = ? ORDER BY position",
                reader.session_id,
            )
            if content
        ]
        if said != stored:
            at = next(
                (i for i, (a, b) in enumerate(zip(said, stored, strict=False)) if a != b), "end"
            )
            self.violate(
                f"{reader.name} of {reader.session_id[:6]} shows another conversation at {at}:"
                f" {len(said)} shown, {len(stored)} stored"
                + (f"\n{str(said[at])[:150]}\n{str(stored[at])[:150]}" if at != "end" else "")
            )

    # --- processes ---

    def _start(self, kind: str, nursery: trio.Nursery) -> None:
        self._started[kind] += 1
        process = SimProcess(self, kind, self._started[kind], self._disks[kind])
        process.outbox = self._outboxes.setdefault(kind, set())
        self.processes[kind] = process
        self.trace.note("start", process.name)
        nursery.start_soon(process.run)

    def _kill(self, kind: str) -> None:
        process = self.processes[kind]
        if not process.is_alive:
            return
        how = self.random.choice(["fin", "reset", "silent"])
        self.trace.note("kill", process.name, how)
        self.count(f"kill {kind.partition('-')[0]}")
        copy = self.directory / f"{kind}-{self._started[kind]}"
        process.kill(how, copy)
        self._disks[kind] = copy
        if kind == "host":
            self.check_acknowledged(copy)

    def _start_twin(self, kind: str, planes: trio.Nursery) -> None:
        """Start another VM beside the one there is, as somebody may by mistake."""
        process = self.processes[kind]
        if not process.is_alive or process.ask_to_stop.is_set() or process in self.twins:
            return
        copy = self.directory / f"{kind}-{self._started[kind]}-twin"
        shutil.copytree(self._disks[kind], copy)
        self._disks[kind] = copy
        self._outboxes[kind] = set()
        self.twins.append(process)
        self._doubled.add(kind)
        self._start(kind, planes)

    def refused(self, process: SimProcess, error: LinkRefused) -> None:
        """Note that a VM has ended for good, because another one has come."""
        if error.close_code != 4009 or process.kind not in self._doubled:
            self.violate(f"{process.name} is refused: {error!r}", error)
        self.trace.note("refused", process.name)
        if process in self.twins:
            self.twins.remove(process)
        elif self.processes[process.kind] is process:
            living = [each for each in self.twins if each.kind == process.kind and each.is_alive]
            if living:
                self.processes[process.kind] = living[-1]
                self._disks[process.kind] = living[-1].disk
                self._outboxes[process.kind] = living[-1].outbox
                self.twins.remove(living[-1])

    async def _end_twins(self) -> None:
        for process in tuple(self.twins):
            if process.is_alive:
                process.ask_to_stop.set()
                await process.has_ended.wait()
        self.twins.clear()

    async def _restart(self, kind: str, pause: float, planes: trio.Nursery) -> None:
        await trio.sleep(pause)
        self._start(kind, planes)

    async def _stop(self, kind: str) -> None:
        """End a process in order, within what it promises."""
        process = self.processes[kind]
        self.trace.note("stop", process.name)
        process.ask_to_stop.set()
        with trio.move_on_after(90) as scope:
            await process.has_ended.wait()
        if scope.cancelled_caught:
            self.violate(f"{process.name} does not stop")
            process.scope.cancel()

    # --- faults ---

    async def _nemesis(self, until: float, nursery: trio.Nursery, planes: trio.Nursery) -> None:
        draw = self.random
        kinds = [
            "cut link", "cut link", "cut http", "haunt link", "clog link", "half link",
            "clog http", "refuse link", "refuse http", "swallow link", "slow", "kill host",
            "kill vm", "kill both", "stop host", "stop vm", "full disk", "lazy disk",
            "partition link", "twin vm",
        ]  # fmt: skip
        if self.faults is not None:
            kinds = [kind for kind in kinds if kind in self.faults]
        every = draw.choice([0.7, 3.0, 8.0, 20.0])
        while kinds:
            await trio.sleep(draw.expovariate(1 / every))
            if draw.random() < 0.6:  # most defects show while something is going on
                with trio.move_on_after(5.0):
                    for _ in range(draw.randint(1, 30)):
                        await self.trace.wait_next()
            if trio.current_time() >= until:
                return
            self._break(draw.choice(kinds), nursery, planes)

    def _break(self, kind: str, nursery: trio.Nursery, planes: trio.Nursery) -> None:
        draw, network = self.random, self.network
        what, _, where = kind.partition(" ")
        now = trio.current_time()
        living = network.living(where)
        self.trace.note("fault", kind)
        self.count(kind)
        match what:
            case "cut" if living:
                draw.choice(living).cut()
            case "haunt" if living:
                living[-1].haunt(now + draw.uniform(1, 40))
            case "clog" if living:
                until = now + draw.choice([1.0, 8.0, 25.0, 60.0])
                draw.choice(living).clog(until, up=True, down=True)
            case "half" if living:
                up = draw.random() < 0.5
                until = now + draw.choice([5.0, 40.0, float("inf")])
                draw.choice(living).clog(until, up=up, down=not up)
            case "refuse":
                network.refuses_until[where] = now + draw.uniform(1, 20)
            case "swallow":
                network.swallows_until[where] = now + draw.uniform(1, 20)
            case "partition":
                until = now + draw.uniform(10, 70)
                network.swallows_until[where] = until
                for connection in living:
                    connection.clog(until, up=True, down=True)
            case "twin":
                self._start_twin(f"vm-{draw.choice(self.users)}", planes)
            case "slow":
                network.slow_until = now + draw.uniform(1, 20)
            case "kill" if where == "both":
                pause = draw.uniform(0.1, 10)
                for each in tuple(self.processes):
                    self._kill_and_restart(each, pause, nursery, planes)
            case "kill":
                each = "host" if where == "host" else f"vm-{draw.choice(self.users)}"
                pause = draw.choice([0.05, 2.0, 15.0, 140.0 if where == "vm" else 5.0])
                self._kill_and_restart(each, pause, nursery, planes)
            case "full":
                self.processes["host"].disk_state.full_until = now + draw.choice([0.1, 3.0, 20.0])
            case "lazy" if where == "vm":
                process = self.processes[f"vm-{draw.choice(self.users)}"]
                process.disk_state.slow_until = now + draw.choice([0.1, 3.0, 20.0])
            case "lazy":
                self.processes["host"].disk_state.slow_until = now + draw.choice([0.1, 3.0, 20.0])
            case "stop":
                each = "host" if where == "host" else f"vm-{draw.choice(self.users)}"
                if self.processes[each].is_alive and self.processes[each].is_up.is_set():
                    nursery.start_soon(self._stop_and_restart, each, planes)
            case _:
                pass

    def _kill_and_restart(
        self, kind: str, pause: float, nursery: trio.Nursery, planes: trio.Nursery
    ) -> None:
        if self.processes[kind].is_alive and not self.processes[kind].ask_to_stop.is_set():
            self._kill(kind)
            nursery.start_soon(self._restart, kind, pause, planes)

    async def _stop_and_restart(self, kind: str, planes: trio.Nursery) -> None:
        if self.processes[kind].ask_to_stop.is_set():
            return
        await self._stop(kind)
        await self._restart(kind, self.random.uniform(0.05, 5.0), planes)

    # --- the whole ---

    async def run(self) -> None:
        for kind in ("host", *(f"vm-{user}" for user in self.users)):
            self._disks[kind] = self.directory / f"{kind}-0"
            self._disks[kind].mkdir()
        await prepare_host(self.host_settings(self._disks["host"]), self.users)
        async with trio.open_nursery() as planes:
            self._start("host", planes)
            for user in self.users:
                self._start(f"vm-{user}", planes)
            await self._live(planes)
            for kind in (*(f"vm-{user}" for user in self.users), "host"):
                await self._stop(kind)
        self.check_acknowledged(self._disks["host"])
        self.check_store(is_final=True)

    async def _live(self, planes: trio.Nursery) -> None:
        until = trio.Event()
        async with trio.open_nursery() as people:
            for index in range(self.random.choice([1, 2, 3])):
                speaker = Speaker(self, self.users[index % len(self.users)], f"speaker{index}")
                people.start_soon(speaker.live, people, until)
            async with trio.open_nursery() as faults:
                faults.start_soon(self._nemesis, trio.current_time() + self.faulty, faults, planes)
                await trio.sleep(self.faulty)
            until.set()
            self.network.heal()
            for process in self.processes.values():
                process.disk_state.full_until = process.disk_state.slow_until = 0.0
            self.trace.note("healed")
            await self._end_twins()
            if self._doubled:  # the close of a link that was taken over may come late
                await trio.sleep(70)
            for kind in tuple(self.processes):
                if not self.processes[kind].is_alive:
                    self._start(kind, planes)
                process = self.processes[kind]
                with trio.move_on_after(30) as scope:
                    await process.is_up.wait()
                if scope.cancelled_caught:
                    self.violate(f"{kind} does not come up")
            await self._settle()
            await self._talk_once_more()
            people.cancel_scope.cancel()
        await self._read_up()
        self.check_audits()
        self.check_readers()

    async def _settle(self) -> None:
        began = trio.current_time()
        while self.undone():
            if trio.current_time() > began + SETTLED_AFTER:
                for text in self.undone():
                    self.violate(text)
                return
            await trio.sleep(5)
        self.note(f"settled after {trio.current_time() - began:.0f} s")

    async def _talk_once_more(self) -> None:
        """Say something in every session that is left; it has to be answered."""
        for session_id, user in tuple(self.sessions.items()):
            if session_id in self.deleted | self.maybe_deleted:
                continue
            browser = Browser(self, user, f"last of {session_id[:6]}")
            text = ""
            for attempt in range(30):  # the VM may still be waiting to dial again
                with trio.move_on_after(60):
                    key = f"last-{attempt // 5}-{session_id}"
                    text = await self._ask_last(browser, session_id, key)
                self.trace.note("last", attempt, text[:3])
                is_refused = text.startswith("503") or "TOO_MANY_SESSIONS" in text
                if text and not is_refused:
                    break
                await trio.sleep(5)
            if "execution_complete" not in text:  # a late cancel may have met it
                self.violate(f"{session_id[:6]}: the last message is not answered: {text[-300:]}")

    async def _ask_last(self, browser: Browser, session_id: str, key: str) -> str:
        path = f"/api/v1/chat/sessions/{session_id}"
        body = {"message": "say 2 0.01 8 -", "on_busy": "enqueue", "on_disconnect": "continue"}
        text = ""
        try:
            async with browser.open("POST", path, body, Idempotency_Key=key) as exchange:
                text = f"{exchange.status}"
                while data := await exchange.receive():
                    text += data.decode()
        except BROKEN as exc:
            self.trace.note("last broke off", repr(exc))
            return ""
        return text

    async def _read_up(self) -> None:
        """Let every reader come back once and see the rest."""
        for session_id, user in tuple(self.sessions.items()):
            self.add_reader(user, session_id)
        async with trio.open_nursery() as nursery:
            for reader in self.readers:
                if not reader.is_gone:
                    nursery.start_soon(reader.follow, 40.0)


class _Logs(logging.Handler):
    """Finds out about errors that living processes log."""

    def __init__(self, world: World, lines: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._world = world
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.__dict__.get("semibot", {})
        name = str(fields.get("process", "?"))
        processes = self._world.processes.values()
        is_alive = any(each.name == name and not each.owner.is_dead for each in processes)
        try:
            now = trio.current_time()
        except RuntimeError:
            now = -1.0
        sign = "" if is_alive else " (dead)"
        self._lines.append(f"{now:.3f} {record.levelname} {name}{sign} {record.getMessage()}")
        is_expected = fields.get("event") in EXPECTED_ERRORS
        if record.levelno >= logging.ERROR and (is_alive or name == "?") and not is_expected:
            text = record.getMessage()
            exc = record.exc_info[1] if record.exc_info else None
            self._world.violate(f"ERROR {name}: {text}", exc)


@contextlib.contextmanager
def _logs_of(world: World, lines: list[str]) -> Generator[None]:
    logger = logging.getLogger("semibot")
    handler = _Logs(world, lines)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


@contextlib.contextmanager
def seeded_scheduler(seed: int) -> Generator[None]:
    """Let Trio's scheduler draw from *seed*; it offers no public way."""
    from trio._core import _run

    state, flag = _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = flag  # type: ignore[misc]
        _run._r.setstate(state)


def simulate(
    seed: int,
    *,
    faults: frozenset[str] | None = None,
    faulty: float = FAULTY,
    lines: list[str] | None = None,
) -> Report:
    """Run one seed from its beginning to its end.

    Args:
        seed: Decides everything.
        faults: Kinds of faults that may happen; None means all.
        faulty: How long they may, in seconds.
        lines: Gets what was logged, and what happened.
    """
    said: list[str] = [] if lines is None else lines
    parent = "/dev/shm" if Path("/dev/shm").is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="semibot-simulation-", dir=parent))
    try:
        world = World(seed, directory, faults, faulty)
        if lines is not None:
            world.trace.listener = lambda now, event: (
                said.append(f"{now:.3f} - " + " ".join(map(str, event)))
                if event[0] not in {"send", "receive"}
                else None
            )
        clock = trio.testing.MockClock(autojump_threshold=0)
        ended_at = 0.0

        async def main() -> None:
            nonlocal ended_at
            with trio.move_on_after(1000) as scope:
                await world.run()
            ended_at = trio.current_time()
            if scope.cancelled_caught:
                world.violate("the simulation does not end")

        with _logs_of(world, said), seeded_scheduler(seed):
            try:
                trio.run(main, clock=clock)
            except Exception as exc:  # noqa: BLE001 - a finding like any other
                world.violations.append(
                    "the simulation failed: " + "".join(traceback.format_exception(exc))
                )
        said.extend(world.notes)
        return Report(
            seed=seed,
            violations=tuple(world.violations),
            digest=world.trace.digest(),
            events=world.trace.count,
            counts=world.counts,
            seconds=ended_at,
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
