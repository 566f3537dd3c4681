"""One session pours, nineteen talk, all over one slow link: how long do the nineteen wait?

Host and VM are the real ones, in one process on Trio's clock, which stands still while they
compute: what is measured is what waits for the link and behind other sessions, and nothing
else. An event's way ends where a reader gets it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import trio
import trio.testing
from slow_link import SlowLink

from semibot.channel import open_control_channel
from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.host.host import open_host
from semibot.host.server import open_server
from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.session import ActiveRun, open_session_manager
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import adapter_from, simulated_ports
from semibot.testing.ports import SimulatedWallClock
from semibot.wire.events import TextChunk
from semibot.wire.sse import SseDecoder

KEY = Secret("correct-length-and-quite-random-8f2a61c0")
USER = "ann"


@attrs.frozen(kw_only=True)
class Plan:
    """What is simulated."""

    flood_bytes: int = 50 * 1024 * 1024
    """What one session pours out."""
    event_bytes: int = 4096
    """Text of each of its events, at most."""
    speed: float = 1e6
    """Of the link, in bytes a second."""
    latency: float = 0.01
    """Of the link, one way, in seconds."""
    talkers: int = 19
    """Sessions that say a little at a time."""
    period: float = 0.1
    """Between two events of a talker, in seconds."""
    heartbeat: float = 10.0
    """Between two heartbeats, in seconds."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of it; times are simulated seconds."""

    flood_seconds: float
    """From the first event that was poured to the last one's arrival."""
    flood_events: int
    """Events that were poured and have arrived."""
    waits: tuple[float, ...]
    """What each event of a talker took, in order."""
    beats: tuple[float, ...]
    """When heartbeats arrived, counted from the first."""
    link_share: float
    """Bytes that the link carried, as a share of what it could have, while it was poured."""
    real_seconds: float
    """What the simulation took."""

    def wait_percentile(self, percent: float) -> float:
        """Return what so many percent of the talkers' events did not take longer than."""
        return percentile(self.waits, percent)

    @property
    def latest_beat(self) -> float:
        """The longest time between two heartbeats."""
        return max(after - before for before, after in zip(self.beats, self.beats[1:], strict=False))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return what so many percent of *values* do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1).__int__()]


@attrs.define(eq=False)
class _Flood:
    """One simulation."""

    plan: Plan
    begun: trio.Event = attrs.field(factory=trio.Event)
    is_over: trio.Event = attrs.field(factory=trio.Event)
    said_at: dict[str, float] = attrs.field(factory=dict[str, float])
    waits: list[float] = attrs.field(factory=list[float])
    beats: list[float] = attrs.field(factory=list[float])
    flood_begun: float = 0.0
    flood_ended: float = 0.0
    flood_seen: int = 0
    talking: int = 0

    # --- the VM ---

    async def handle(self, run: ActiveRun) -> None:
        """Do what the message says: ``pour``, or ``talk NUMBER``."""
        what, _, number = run.message.partition(" ")
        if what == "pour":
            await self._pour(run)
        else:
            await self._talk(run, int(number))
        await run.complete()

    async def _pour(self, run: ActiveRun) -> None:
        await self.begun.wait()
        self.flood_begun = trio.current_time()
        text = "x" * self.plan.event_bytes
        for _ in range(self.plan.flood_bytes // self.plan.event_bytes):
            await run.emit(TextChunk(content=text))

    async def _talk(self, run: ActiveRun, number: int) -> None:
        self.talking += 1
        if self.talking == self.plan.talkers:
            self.begun.set()
        await trio.sleep(self.plan.period * number / self.plan.talkers)
        count = 0
        while not self.is_over.is_set():
            text = f"{number}.{count} and a few words"
            self.said_at[text] = trio.current_time()
            await run.emit(TextChunk(content=text))
            count += 1
            await trio.sleep(self.plan.period)

    # --- readers, and what the host hears ---

    def saw(self, event: dict[str, Any]) -> None:
        """Take note of what a reader got."""
        if event["type"] == "text_chunk":
            text = event["content"]
            said = self.said_at.pop(text, None)
            if said is None:
                self.flood_seen += 1
            elif self.flood_begun <= said and not self.is_over.is_set():
                self.waits.append(trio.current_time() - said)
        elif event["type"] == "execution_complete" and event["final_response"][:1] == "x":
            self.flood_ended = trio.current_time()
            self.is_over.set()

    def listening_in(self, app):
        """Return *app* with somebody who counts heartbeats."""

        async def listened_to(scope, receive, send):
            async def heard():
                message = await receive()
                if '"heartbeat"' in (message.get("text") or "")[:200]:
                    self.beats.append(trio.current_time())
                return message

            await app(scope, heard if scope["type"] == "websocket" else receive, send)

        return listened_to


async def _say(app, token: str, message: str, flood: _Flood) -> None:
    """Begin a session with *message* and read its run to the end, as a browser close by."""
    body = json.dumps({"message": message, "on_disconnect": "continue"}).encode()
    head = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    decoder = SseDecoder(2 * 1024 * 1024)

    async def receive():
        if not parts:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return parts.pop()

    async def send(part):
        await trio.lowlevel.checkpoint()
        if part["type"] == "http.response.start":
            assert part["status"] == 200, part
            return
        for item in decoder.feed(part["body"]):
            flood.saw(json.loads(item.data))

    path = "/api/v1/chat/start"
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [
            (name.encode(), value.encode())
            for name, value in {**head, "host": "host:8080", "content-length": str(len(body))}.items()
        ],
    }
    await app(scope, receive, send)


async def _main(plan: Plan, directory: Path) -> Outcome:
    begun = time.perf_counter()
    deadlines = Deadlines(link_heartbeat=plan.heartbeat)
    settings = HostSettings(
        data_dir=directory / "data",
        host="192.0.2.1",
        run_mode="production",
        jwt_secret=KEY,
        deadlines=deadlines,
    )
    link = SlowLink(plan.speed, plan.latency)
    host_ports = attrs.evolve(simulated_ports(1), listen=link.listen)
    vm_ports = attrs.evolve(simulated_ports(2), dial=link.dial)
    tokens = Tokens(KEY, SimulatedWallClock(), 12 * 3600.0)
    (directory / "work").mkdir()
    async with open_sqlite_store(
        settings.data_dir / "semibot.db", ports=host_ports, deadlines=deadlines
    ) as store:
        await store.ensure_user(USER, "org", vm_mode="external")
        await store.ensure_vm(USER, "vm-of-ann", "external")
    flood = _Flood(plan)
    async with open_host(settings, ports=host_ports) as host:
        app = flood.listening_in(host.asgi)
        server = open_server(app, "host", 8080, deadlines=deadlines, ports=host_ports)
        async with (
            server,
            open_control_channel(
                "ws://host:8080/ws/vm",
                user_id=USER,
                token=tokens.make_vm_token(USER, "org"),
                ports=vm_ports,
            ) as channel,
            open_session_manager(
                channel,
                adapters={"graph": adapter_from(flood.handle)},
                workspace=directory / "work",
                ports=vm_ports,
            ),
        ):
            await host.announce("http://host:8080")
            await channel.wait_up()
            token = tokens.make_user_token(USER, "org")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_say, app, token, "pour", flood)
                for number in range(plan.talkers):
                    nursery.start_soon(_say, app, token, f"talk {number}", flood)
                await flood.begun.wait()
                before = link.up.carried
                await flood.is_over.wait()
                carried = link.up.carried - before
    took = flood.flood_ended - flood.flood_begun
    return Outcome(
        flood_seconds=took,
        flood_events=flood.flood_seen,
        waits=tuple(flood.waits),
        beats=tuple(at - flood.beats[0] for at in flood.beats),
        link_share=carried / (took * plan.speed),
        real_seconds=time.perf_counter() - begun,
    )


def simulate(plan: Plan, directory: Path) -> Outcome:
    """Let one session pour while the others talk, and return what the others felt.

    Args:
        plan: How much.
        directory: For the host's and the VM's files; empty.
    """
    return trio.run(_main, plan, directory, clock=trio.testing.MockClock(autojump_threshold=0))
