"""A recorded VM of level 1, replayed over real sockets against a real host.

The recording says what the VM says and when: a line of the host is waited for, as far as this
host says it at all, and then the VM's next lines are sent. Ids, tokens and tickets are bound to
those of this host; pauses are left out.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest
import trio
import trio_websocket

from semibot.config import Deadlines
from semibot.config.settings import HostSettings, Provider
from semibot.host.host import DATABASE_FILE, open_host
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.secret import Secret
from semibot.security.envelope import open_keys
from semibot.security.tickets import hash_secret
from semibot.security.tokens import Tokens
from semibot.store.sqlite import open_sqlite_store
from semibot.wire.sse import SseDecoder

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "plane"
PATIENCE = 20.0
KEY = Secret("correct-length-and-quite-random-8f2a61c0")
PROVIDER_KEY = "sk-of-the-host"
FOR_EVER = 2**52

# What another host said, and ours does not.
NOT_SAID = {"config_update"}

Frame = dict[str, Any]


def read_recording(name: str, conn: int = 1) -> list[Frame]:
    """Return the lines of one recorded connection, without those that are no frames."""
    lines = (RECORDINGS / f"{name}.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [line for line in found if line["conn"] == conn and "type" in line["frame"]]


def events_of(lines: Iterable[Frame]) -> list[Frame]:
    """Return the recorded events in today's names."""
    events = [
        json.loads(line["frame"]["data"]) for line in lines if line["frame"]["type"] == "sse_event"
    ]
    names = {"text": "text_chunk"}
    return [{**event, "type": names.get(event["type"], event["type"])} for event in events]


class RecordedVm:
    """The VM of a recording."""

    def __init__(self, lines: list[Frame], token: str, sessions: dict[str, str]) -> None:
        self._lines = lines
        self._token = token
        self.sessions = sessions
        """Sessions of the host by those of the recording."""
        self.heard: list[Frame] = []
        """Every frame of the host."""
        self._waiting: list[Frame] = []
        self._news = trio.Event()
        self._said = 0

    async def play(self, stream: trio.SocketStream, path: str) -> None:
        """Play all lines, then lose the connection without a word."""
        try:
            async with trio.open_nursery() as nursery:
                socket = await trio_websocket.wrap_client_stream(
                    nursery, stream, "127.0.0.1", path, message_queue_size=100
                )
                nursery.start_soon(self._listen, socket)
                for line in self._lines:
                    frame = line["frame"]
                    if line["dir"] == "ep->cp":
                        await socket.send_message(json.dumps(self._bound(frame)))
                    elif frame["type"] not in NOT_SAID:
                        await self._wait_for(frame)
                    self._said += 1
                    self._wake()
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)

    async def _listen(self, socket: trio_websocket.WebSocketConnection) -> None:
        while True:
            frame = json.loads(await socket.get_message())
            self.heard.append(frame)
            self._waiting.append(frame)
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def wait_said(self, count: int) -> None:
        """Wait until so many lines have been played."""
        while self._said < count:
            await self._news.wait()

    async def _wait_for(self, recorded: Frame) -> None:
        """Wait until the host says what it said then."""
        while True:
            for frame in self._waiting:
                if frame["type"] == recorded["type"] and frame.get("id") == recorded.get("id"):
                    self._waiting.remove(frame)
                    if frame["type"] == "start_session":
                        known = recorded["data"]["session_id"]
                        self.sessions[known] = frame["data"]["session_id"]
                    return
            await self._news.wait()

    def _bound(self, recorded: Frame) -> Frame:
        if recorded["type"] == "auth":
            return {**recorded, "token": self._token}
        text = json.dumps(recorded)
        for known, bound in self.sessions.items():
            text = text.replace(known, bound)
        bound_frame: Frame = json.loads(text)
        return bound_frame

    def of_type(self, kind: str) -> list[Frame]:
        return [frame for frame in self.heard if frame["type"] == kind]


class Browser:
    """Who uses the host over HTTP."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self.session_id = ""
        self.receipts: list[Frame] = []

    async def ask(self, message: str, *, cancel_at: str | None = None, **more: str) -> list[Frame]:
        """Say a message and return every event of its run.

        Args:
            message: The message.
            cancel_at: At which type of event to cancel the run.
            **more: Further fields.
        """
        path = f"sessions/{self.session_id}" if self.session_id else "start"
        body = {"message": message, "on_disconnect": "continue", **more}
        events: list[Frame] = []
        async with (
            self._http.stream("POST", f"/api/v1/chat/{path}", json=body) as response,
            trio.open_nursery() as nursery,
        ):
            assert response.status_code == 200, await response.aread()
            self.session_id = response.headers["x-session-id"]

            def take(event: Frame) -> bool:
                events.append(event)
                if event["type"] == cancel_at:
                    nursery.start_soon(self._cancel, response.headers["x-run-id"])
                return False

            await read_events(response, take)
        return events

    async def _cancel(self, run_id: str) -> None:
        path = f"/api/v1/chat/sessions/{self.session_id}/cancel"
        response = await self._http.post(path, json={"run_id": run_id})
        assert response.status_code == 200
        self.receipts.append(response.json()["data"])

    async def replay(self, count: int) -> list[Frame]:
        """Return the first events of the session, as who joins from the beginning sees them."""
        path = f"/api/v1/sessions/{self.session_id}/stream?last_event_id=1-0"
        events: list[Frame] = []
        async with self._http.stream("GET", path) as response:

            def take(event: Frame) -> bool:
                events.append(event)
                return len(events) == count

            await read_events(response, take)
        return events

    async def get(self, path: str) -> Any:
        response = await self._http.get(path)
        assert response.status_code == 200
        return response.json()["data"]

    async def delete(self) -> None:
        response = await self._http.delete(f"/api/v1/sessions/{self.session_id}")
        assert response.status_code == 200
        self.session_id = ""


async def read_events(response: httpx2.Response, take: Callable[[Frame], bool]) -> None:
    """Hand out events until there are no more, or *take* has enough; numbers have no gap."""
    decoder = SseDecoder()
    number: int | None = None
    with trio.CancelScope() as scope:  # a client's generators end well only if cancelled
        async for data in response.aiter_bytes():
            for message in decoder.feed(data):
                term, _, seq = message.id.partition("-")
                assert term == "1"
                assert number is None or int(seq) == number + 1
                number = int(seq)
                if take(json.loads(message.data)):
                    scope.cancel()


class Plane:
    """A host that listens on a real port."""

    def __init__(self, settings: HostSettings, port: int, http: httpx2.AsyncClient) -> None:
        self.settings = settings
        self.port = port
        self.http = http
        self.database = settings.data_dir / DATABASE_FILE
        ports = live_ports()
        self.token = Tokens(KEY, ports.wall_clock, 3600.0).make_vm_token("user-1", "org-1")

    def browser(self) -> Browser:
        return Browser(self.http)

    async def connect(
        self,
        nursery: trio.Nursery,
        lines: list[Frame],
        ticket: str | None,
        before: RecordedVm | None = None,
    ) -> RecordedVm:
        """Have a recorded VM come, maybe as what it was *before*, and hear ``init``."""
        vm = RecordedVm(lines, self.token, {} if before is None else before.sessions)
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        query = "user_id=user-1" + ("" if ticket is None else f"&ticket={ticket}")
        nursery.start_soon(vm.play, stream, f"/ws/vm?{query}")
        await vm.wait_said(2)
        return vm

    async def make_ticket(self, ticket: str) -> None:
        """Do as a scheduler that begins an attempt."""
        await prepare_row(self.settings, ticket)

    async def read_rows(self, query: str, *values: str) -> list[Any]:
        # With the host's own SQLite: a second copy of the library in one process, as in the
        # standard library, does not know the first one's locks and takes its log away.
        def read() -> list[Any]:
            database = apsw.Connection(str(self.database), flags=apsw.SQLITE_OPEN_READONLY)
            try:
                return database.execute(query, values).fetchall()
            finally:
                database.close()

        return await trio.to_thread.run_sync(read)


async def prepare_row(settings: HostSettings, ticket: str | None) -> None:
    async with open_sqlite_store(
        settings.data_dir / DATABASE_FILE,
        ports=live_ports(),
        deadlines=settings.deadlines,
        takes_lock=ticket is None,  # else the host has it
    ) as store:
        await store.ensure_user("user-1", "org-1", vm_mode=None)
        vm = await store.ensure_vm("user-1", "vm-1", "external")
        if ticket is not None:
            await store.begin_attempt(vm.id, hash_secret(ticket), FOR_EVER)


@asynccontextmanager
async def open_plane(directory: Path) -> AsyncGenerator[Plane]:
    skill = directory / "skills" / "pdf-kit"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text("# s")
    settings = HostSettings(
        data_dir=directory / "data",
        run_mode="production",
        jwt_secret=KEY,
        skills_dir=directory / "skills",
        providers={"openai": Provider(api_key=Secret(PROVIDER_KEY))},
        deadlines=Deadlines(run_cancel_grace=5),
    )
    settings.data_dir.mkdir(mode=0o700)
    await prepare_row(settings, None)
    ports = live_ports()
    user = Tokens(KEY, ports.wall_clock, 3600.0).make_user_token("user-1", "org-1")
    with trio.fail_after(PATIENCE):
        async with (
            open_host(settings, ports=ports) as host,
            open_server(
                host.asgi, "127.0.0.1", 0, deadlines=settings.deadlines, ports=ports
            ) as server,
            httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{server.port}",
                headers={"Authorization": f"Bearer {user}"},
                timeout=None,
                trust_env=False,
            ) as http,
        ):
            await host.announce(f"http://127.0.0.1:{server.port}")
            yield Plane(settings, server.port, http)


def check_run(events: list[Frame], recorded: list[Frame], message: str) -> None:
    """Check that a run's events are the recorded ones: order, text, one end, the last."""
    started, *rest = events
    assert started["type"] == "run_started"
    assert started["message"] == message
    run_id = started["run_id"]
    *before, end = recorded
    assert rest == [*before, {**end, "run_id": run_id}]
    assert [event["type"].startswith("execution_") for event in rest].count(True) == 1


async def test_a_recorded_graph_vm_is_served(tmp_path: Path) -> None:
    lines = read_recording("graph-exchange")
    recorded = events_of(lines)
    async with open_plane(tmp_path) as plane, trio.open_nursery() as nursery:
        await plane.make_ticket("ticket-1")
        vm = await plane.connect(nursery, lines, "ticket-1")
        browser = plane.browser()
        first = await browser.ask("hello there")
        check_run(first, recorded[:23], "hello there")
        text = "".join(event["content"] for event in first if event["type"] == "text_chunk")
        assert text == first[-1]["final_response"]
        second = await browser.ask("second", cancel_at="text_chunk")
        check_run(second, recorded[23:], "second")
        assert second[-1]["cancelled"] is True
        (receipt,) = browser.receipts
        assert (receipt["outcome"], receipt["abandoned"]) == ("cancelled", [])
        assert await browser.replay(len(first + second)) == [*first, *second]
        await vm.wait_said(len(lines) - 2)  # up to the heartbeat before the session is stopped
        await check_snapshots(plane, browser.session_id)
        await browser.delete()

    check_commands(vm, plane.token)
    answers = [frame["result"] for frame in vm.of_type("response")]
    assert answers[0] == next(
        line["frame"]["result"] for line in lines if line["frame"]["type"] == "response"
    )
    assert answers[1:] == [{"results": []}] * 2
    (cancel,) = vm.of_type("cancel")
    assert cancel["data"] == {"reason": "user_cancelled"}
    (stop,) = vm.of_type("stop_session")
    assert stop["data"]["reason"] == "user_closed"


async def check_snapshots(plane: Plane, session_id: str) -> None:
    """The recording has five snapshots; three are kept at most, one for each end."""
    rows: list[Any] = []
    while not rows or json.loads(rows[-1][0]).get("status") != "cancelled":
        rows = await plane.read_rows(
            "SELECT checkpoint, short_term_memory, covers_seq FROM session_snapshots"
            " WHERE session_id = ? ORDER BY covers_seq",
            session_id,
        )
        await trio.sleep(0.01)
    assert len(rows) <= 3
    assert json.loads(rows[-1][1])["content"].startswith("[user] hello there")
    assert json.loads(rows[-1][0])["session_id"] == session_id
    assert rows[-1][2] == 24 + 5


def check_commands(vm: RecordedVm, token: str) -> None:
    """Commands are as level 1 knows them, ``start_session`` before every message."""
    assert vm.heard[0]["type"] == "init"
    data = vm.heard[0]["data"]
    assert (data["user_id"], data["org_id"]) == ("user-1", "org-1")
    keys = open_keys(data["api_keys"], token)
    assert {name: key.reveal() for name, key in keys.items()} == {"openai": PROVIDER_KEY}
    kinds = [frame["type"] for frame in vm.heard]
    for number, kind in enumerate(kinds):
        if kind == "user_message":
            assert kinds[number - 1] == "start_session"
    of_level_2 = {"command_id", "run_id", "term", "next_seq", "snapshot", "epoch", "protocol"}
    for frame in vm.heard:
        assert not of_level_2 & {*frame, *(frame.get("data") or {})}
    assert set(kinds) <= {
        "init",
        "start_session",
        "user_message",
        "response",
        "cancel",
        "stop_session",
    }


async def test_a_recorded_openclaw_vm_is_served(tmp_path: Path) -> None:
    lines = read_recording("openclaw-exchange")
    recorded = events_of(lines)
    async with open_plane(tmp_path) as plane, trio.open_nursery() as nursery:
        await plane.make_ticket("ticket-1")
        vm = await plane.connect(nursery, lines, "ticket-1")
        browser = plane.browser()
        first = await browser.ask("hello there", runtime_type="openclaw")
        check_run(first, recorded[:5], "hello there")
        assert first[-2] == {"type": "text_chunk", "content": first[-1]["final_response"]}
        second = await browser.ask("second", cancel_at="text_chunk")
        # The text that came late is what there was of an answer; the error is dropped.
        said = recorded[7]["final_response"]
        ended = {"type": "execution_complete", "cancelled": True, "partial_response": said}
        check_run(second, [*recorded[5:7], ended], "second")
        assert recorded[8]["type"] == "execution_error"
        assert browser.receipts[0]["outcome"] == "cancelled"
        await vm.wait_said(len(lines) - 2)
        # Only now has the host read the error: its answer to what follows says so.
        usage = await wait_rows(browser, "usage", 2)
        audit = await wait_rows(browser, "audit", 2)
        assert await browser.replay(len(first + second)) == [*first, *second]
        await browser.delete()

    check_commands(vm, plane.token)
    assert [frame["data"]["runtime_type"] for frame in vm.of_type("start_session")] == (
        ["openclaw"] * 2
    )
    said_of = [(row["model"], row["tokens_in"], row["tokens_out"]) for row in usage["usage"]]
    assert said_of == [("openclaw-mock", 6, 8), ("openclaw-mock", 11, 8)]
    (day,) = usage["daily"]
    assert (day["tokens_in"], day["tokens_out"]) == (17, 16)
    assert [row["event"] for row in audit["audit"]] == ["openclaw_mock_response"] * 2
    assert audit["audit"][0]["details"] == {"memory_hit": "memo-hit", "loaded_skills": 1}
    packages = [
        line["frame"]["result"]["package"]
        for line in lines
        if "package" in (line["frame"].get("result") or {})
    ]
    answers = [frame["result"] for frame in vm.of_type("response")]
    assert [answer["package"] for answer in answers if "package" in answer] == packages
    assert len(packages) == 2


async def wait_rows(browser: Browser, name: str, count: int) -> Any:
    """Return what ``GET /api/v1/NAME`` says once there are *count* rows."""
    while True:
        data = await browser.get(f"/api/v1/{name}")
        if len(data[name]) >= count:
            return data
        await trio.sleep(0.01)


async def test_a_recorded_vm_comes_again_with_new_tickets(tmp_path: Path) -> None:
    browser_saw = [
        json.loads(line.removeprefix("data: "))
        for line in (RECORDINGS / "host-sse.txt").read_text("utf-8").splitlines()
        if line.startswith("data: ")
    ]
    async with open_plane(tmp_path) as plane:
        for conn in (1, 2):
            lines = read_recording("host-exchange", conn)
            async with trio.open_nursery() as nursery:
                await plane.make_ticket(f"ticket-{conn}")
                vm = await plane.connect(nursery, lines, f"ticket-{conn}")
                browser = plane.browser()
                events = await browser.ask("hi again")
                check_run(events, events_of(lines), "hi again")
                assert contents(events) == [
                    (each["type"].replace("text", "text_chunk"), each["data"]["content"])
                    for each in browser_saw
                    if "content" in each.get("data", {})
                ]
            check_commands(vm, plane.token)
            await wait_down(browser)
        # Only the newest ticket is good, however good the token is.
        await expect_refusal(plane, "ticket-1")

        lines = read_recording("host-exchange", 3)
        async with trio.open_nursery() as nursery:
            await plane.make_ticket("ticket-3")
            await plane.connect(nursery, lines, "ticket-3")
            browser = plane.browser()
            events = await browser.ask("hi again", runtime_type="openclaw")
            check_run(events, events_of(lines)[:1], "hi again")
            assert events[-1]["code"] == "OPENCLAW_BRIDGE_NOT_RUNNING"
        await wait_down(browser)
        rows = await plane.read_rows(
            "SELECT count(*) FROM events WHERE session_id = ?", browser.session_id
        )
        assert rows == [(2,)]  # what was said after the end is dropped


async def test_a_run_goes_on_when_a_recorded_vm_comes_back(tmp_path: Path) -> None:
    lines = read_recording("graph-exchange")
    whole = [line for line in lines if line["t"] < 7.953]  # the first run
    middle = next(n for n, line in enumerate(whole) if "tok9" in line["frame"].get("data", ""))
    asked = [line["frame"]["id"] for line in whole if line["frame"]["type"] == "request"]
    came_back = [
        *whole[:2],
        {"dir": "ep->cp", "frame": {"type": "resume", "pending_ids": [*asked, "never-asked"]}},
        {"dir": "cp->ep", "frame": {"type": "resume_response"}},
        *whole[middle:],
    ]
    async with open_plane(tmp_path) as plane, trio.open_nursery() as nursery:
        await plane.make_ticket("ticket-1")
        vm = await plane.connect(nursery, whole[:middle], "ticket-1")
        browser = plane.browser()
        events: list[Frame] = []

        async def ask() -> None:
            events.extend(await browser.ask("hello there"))

        nursery.start_soon(ask)
        await vm.wait_said(middle)
        # The ticket is spent by now; a VM of level 1 may come without it.
        again = await plane.connect(nursery, came_back, None, vm)
        await again.wait_said(len(came_back))
    check_run(events, events_of(whole), "hello there")
    assert [frame["type"] for frame in again.heard] == ["init", "resume_response"]
    results = again.heard[1]["results"]
    assert [results[name]["status"] for name in asked] == ["completed"] * 2
    assert results["never-asked"] == {"status": "lost"}


def contents(events: list[Frame]) -> list[tuple[str, str]]:
    return [(event["type"], event["content"]) for event in events if "content" in event]


async def wait_down(browser: Browser) -> None:
    """Wait until the host has noticed that the VM is gone."""
    while True:
        if (await browser.get("/api/v1/vm/status"))["status"] == "disconnected":
            return
        await trio.sleep(0.01)


async def expect_refusal(plane: Plane, ticket: str) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", plane.port)
    async with trio.open_nursery() as nursery:
        socket = await trio_websocket.wrap_client_stream(
            nursery, stream, "127.0.0.1", f"/ws/vm?user_id=user-1&ticket={ticket}"
        )
        await socket.send_message(json.dumps({"type": "auth", "token": plane.token}))
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await socket.get_message()
        assert closed.value.reason.code == 4001
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)
