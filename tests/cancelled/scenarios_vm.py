"""A whole VM against a host in memory, to be cancelled at every step."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trials
import trio
from trials import Case, Trial
from trio_websocket import ConnectionClosed
from vm_host import Frame, HostLink, VmHost, open_vm_host

from semibot.channel import open_control_channel
from semibot.config import Deadlines
from semibot.config.settings import VmSettings
from semibot.errors import LinkRefused
from semibot.secret import Secret
from semibot.testing.sweep import cut_here
from semibot.vm import run_vm

BOUNDS: Final = Deadlines()

LEAVING: Final = BOUNDS.stop_bound + BOUNDS.channel_close
"""What leaving a VM may take."""

PATIENCE: Final = LEAVING + 60
"""How long a host waits for a VM that may be gone, in seconds."""

TERMINAL: Final = ("execution_complete", "execution_error")

OUTBOX: Final = BOUNDS.channel_close + BOUNDS.session_save
"""What leaving a channel with an outbox may take."""


def settings(trial: Trial) -> VmSettings:
    workspace = trial.directory / "workspace"
    workspace.mkdir(exist_ok=True)
    return VmSettings(
        url="ws://host.test/ws/vm",
        user_id="u1",
        token=Secret("t1"),
        workspace=workspace,
        state_dir=state_of(trial),
        deadlines=BOUNDS,
    )


def state_of(trial: Trial) -> Path:
    return trial.directory / "state"


def note(trial: Trial, frames: list[Frame]) -> list[Frame]:
    """Keep what the host heard, for the look."""
    heard: Any = trial.parts.setdefault("heard", [])
    heard += frames
    return frames


async def listen_on(trial: Trial, link: HostLink) -> None:
    """Hear everything to the end of the link."""
    frames, _ = await link.wait_closed()
    note(trial, frames)


def runs_ended_once(trial: Trial) -> str | None:
    """Find numbers that mean two things, gaps, and runs that say something after their end."""
    heard: Any = trial.parts.get("heard", ())
    meaning: dict[tuple[str, int, int], str] = {}
    for frame in heard:
        if frame["type"] == "sse_event":
            key = (frame["session_id"], frame["term"], frame["seq"])
            if meaning.setdefault(key, frame["data"]) != frame["data"]:
                return f"{key} is {meaning[key]} and {frame['data']}"
    ended: set[str] = set()
    for (session_id, term, seq), data in sorted(meaning.items()):
        event = json.loads(data)
        if seq > 1 and (session_id, term, seq - 1) not in meaning:
            return f"{session_id} has a gap before {seq}"
        if event["type"] in TERMINAL:
            if event["run_id"] in ended:
                return f"{event['run_id']} has two ends"
            ended.add(event["run_id"])
    return nothing_is_locked(trial)


def nothing_is_locked(trial: Trial) -> str | None:
    """Find locks that are held, half-written files, and reports that were taken and are gone."""
    state = state_of(trial)
    for path in state.rglob("*") if state.exists() else ():
        if path.name.endswith(".tmp"):
            return f"half-written: {path.name}"
    left = []
    for line in _lines(state / "outbox.jsonl"):
        frame = json.loads(line)
        left += [frame["params"]["event"]] if frame.get("method") == "audit_log" else []
    heard: Any = trial.parts.get("heard", ())
    delivered = [frame["params"]["event"] for frame in heard if frame.get("method") == "audit_log"]
    if missing := set(trial.kept) - set(left) - set(delivered):
        return f"taken and gone: {missing}"
    return None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# --- a VM ---------------------------------------------------------------------------------


async def answer_and_leave(trial: Trial) -> None:
    """Connect, answer a message with the demonstration, and be stopped."""
    has_answered = trio.Event()
    async with open_vm_host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(run_until, trial, host, has_answered)
        with suppress(ConnectionClosed):
            link = await accept(host)
            await link.bring_up()
            await link.start("hello")
            note(trial, await link.receive_until("execution_complete"))
            has_answered.set()
            await listen_on(trial, link)
        nursery.cancel_scope.cancel()


async def run_until(trial: Trial, host: VmHost, is_enough: trio.Event) -> None:
    """Run a VM that is cancelled, sooner or later; then there is no more to wait for."""
    with cut_here() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_vm, settings(trial), host.ports())
            await is_enough.wait()
            scope.cancel()


async def accept(host: VmHost) -> HostLink:
    """Take the next link; none comes if the VM has been cancelled before."""
    with trio.move_on_after(PATIENCE):
        return await host.accept()
    raise ConnectionClosed(None)


async def drain(trial: Trial) -> None:
    """Stop a VM in the middle of a run, as SIGTERM does: its end is delivered."""
    is_running = trio.Event()
    async with open_vm_host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(run_until, trial, host, is_running)
        with suppress(ConnectionClosed):
            link = await accept(host)
            await link.bring_up()
            await link.start("hello")
            note(trial, await link.receive_until("run_started"))
            is_running.set()
            await listen_on(trial, link)
            events = [json.loads(str(f["data"])) for f in _heard(trial) if f["type"] == "sse_event"]
            if events[-1]["type"] not in TERMINAL:
                trial.problems.append(f"a run that began ends with {events[-1]['type']}")
        nursery.cancel_scope.cancel()


def _heard(trial: Trial) -> list[Frame]:
    heard: Any = trial.parts.get("heard", [])
    return heard


async def lose_the_link(trial: Trial) -> None:
    """Lose the link in the middle of a run, and go on over the next one."""
    has_answered = trio.Event()
    async with open_vm_host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(run_until, trial, host, has_answered)
        with suppress(ConnectionClosed):
            link = await accept(host)
            await link.bring_up()
            await link.start("hello")
            note(trial, await link.receive_until("run_started"))
            await trio.aclose_forcefully(link.socket._stream)
            link = await accept(host)
            await link.receive()
            data = {"user_id": "u1", "org_id": "o1", "api_keys": {}, "protocol": 2, "epoch": 2}
            await link.send({"type": "init", "data": data})
            resume: Any = await link.receive()
            status = {session_id: {"acked_seq": 1} for session_id in resume["sessions"]}
            await link.send({"type": "resume_response", "results": {}, "sessions": status})
            note(trial, await link.receive_until("execution_complete"))
            has_answered.set()
            await listen_on(trial, link)
        nursery.cancel_scope.cancel()


async def come_back(trial: Trial) -> None:
    """Cut a VM off at any step, and have the next one go on in its state directory."""
    has_answered = trio.Event()
    async with open_vm_host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(run_until, trial, host, has_answered)
        with suppress(ConnectionClosed):
            link = await begin_a_run(host, 1)
            has_answered.set()
            await link.wait_closed()
        nursery.cancel_scope.cancel()
    async with open_vm_host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(run_vm, settings(trial), host.ports())
        await begin_a_run(host, 2)
        nursery.cancel_scope.cancel()


async def begin_a_run(host: VmHost, term: int) -> HostLink:
    """Take the next VM, and have it begin to answer."""
    link = await accept(host)
    await link.bring_up()
    await link.start(f"hello {term}", term=term)
    await link.receive_until("run_started")
    return link


async def be_refused(trial: Trial) -> None:
    """Be refused once for the moment, and then for good."""
    async with open_vm_host() as host:

        async def refuse() -> None:
            for code in (1013, 4003):
                link = await host.accept()
                await link.receive()
                await link.socket.aclose(code, "no VM")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            with pytest.raises(LinkRefused):
                await run_vm(settings(trial), host.ports())


# --- its outbox ---------------------------------------------------------------------------


async def report_while_down(trial: Trial) -> None:
    """Take reports while there is no host, and deliver them when there is one."""
    async with open_vm_host() as host:

        async def report(name: str) -> None:
            params = {"event": name, "details": {}}
            await channel.fire_and_forget("s1", "audit_log", params)
            trial.kept.append(name)

        ports = host.ports()
        is_down = True

        async def dial(name: str, port: int, *, use_tls: bool) -> trio.abc.Stream:
            if is_down:
                await trio.lowlevel.checkpoint()
                raise ConnectionRefusedError("nobody listens")
            return await host.ports().dial(name, port, use_tls=use_tls)  # type: ignore[return-value]

        async with open_control_channel(
            "ws://host.test/ws/vm",
            user_id="u1",
            token=Secret("t1"),
            state_dir=state_of(trial),
            deadlines=BOUNDS,
            ports=attrs.evolve(ports, dial=dial),
        ) as channel:
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(report, f"e{number}")
            is_down = False
            link = await host.accept()
            await link.bring_up()
            ids: list[object] = []
            while len(ids) < 3:
                frame = note(trial, [await link.receive()])[0]
                if frame["type"] == "fire_and_forget":
                    ids.append(frame["id"])
                    await link.send({"type": "ack", "ids": [frame["id"]]})
            await report("e3")


VM_BOUND: Final = "Deadlines.stop_bound + channel.close"

CASES: Final = (
    *(
        Case(name=f"vm: {name}", act=act, look=look, within=LEAVING, because=VM_BOUND)
        for name, act, look in (
            ("answers a message and is stopped", answer_and_leave, runs_ended_once),
            ("SIGTERM drains", drain, runs_ended_once),
            ("loses its link in the middle of a run", lose_the_link, runs_ended_once),
            ("is cut off, and the next one goes on", come_back, nothing_is_locked),
            ("is refused for the moment, and for good", be_refused, nothing_is_locked),
        )
    ),
    Case(
        name="vm: reports wait in the outbox for a host",
        act=report_while_down,
        look=nothing_is_locked,
        within=OUTBOX,
        because="channel.close, and session.save for what is written",
    ),
)

__all__ = ["CASES", "trials"]
