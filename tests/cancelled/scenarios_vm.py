"""A whole VM against a host in memory, to be cancelled at every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import attrs
import trials
import trio
from trials import Case, Trial
from vm_host import Frame, HostLink, VmHost, open_vm_host

from semibot.channel import open_control_channel
from semibot.config import Deadlines
from semibot.config.settings import VmSettings
from semibot.errors import LinkRefused
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.testing.sweep import cut_here
from semibot.vm import run_vm

BOUNDS: Final = Deadlines()

LEAVING: Final = BOUNDS.stop_bound + BOUNDS.channel_close
"""What leaving a VM may take."""

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
        if event["type"] in ("execution_complete", "execution_error"):
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
    vm = trio.CancelScope()

    async def run(ports: Ports) -> None:
        with vm:
            await run_vm(settings(trial), ports)

    async with open_vm_host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(run, host.ports())
        link = await host.accept()
        await link.bring_up()
        await link.start("hello")
        note(trial, await link.receive_until("execution_complete"))
        vm.cancel()
        await listen_on(trial, link)


async def drain(trial: Trial) -> None:
    """Stop a VM in the middle of a run, as SIGTERM does: its end is delivered."""
    heard: list[HostLink] = []

    async def run(host: VmHost) -> None:
        with cut_here() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_vm, settings(trial), host.ports())
                await is_running.wait()
                scope.cancel()

    is_running = trio.Event()
    async with open_vm_host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(run, host)
        with trio.move_on_after(LEAVING):
            link = await host.accept()
            heard.append(link)
            await link.bring_up()
            await link.start("hello")
            note(trial, await link.receive_until("run_started"))
            is_running.set()
            await listen_on(trial, link)
            events = [json.loads(str(f["data"])) for f in _heard(trial) if f["type"] == "sse_event"]
            if events and events[0]["type"] == "run_started":
                last = events[-1]["type"]
                if last not in ("execution_complete", "execution_error"):
                    trial.problems.append(f"the run has begun, and its last word is {last}")
        is_running.set()


def _heard(trial: Trial) -> list[Frame]:
    heard: Any = trial.parts.get("heard", [])
    return heard


async def lose_the_link(trial: Trial) -> None:
    """Lose the link in the middle of a run, and go on over the next one."""
    async with open_vm_host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(run_vm, settings(trial), host.ports())
        link = await host.accept()
        await link.bring_up()
        await link.start("hello")
        note(trial, await link.receive_until("run_started"))
        await trio.aclose_forcefully(link.socket._stream)
        link = await host.accept()
        await link.receive()
        data = {"user_id": "u1", "org_id": "o1", "api_keys": {}, "protocol": 2, "epoch": 2}
        await link.send({"type": "init", "data": data})
        resume: Any = await link.receive()
        status = {session_id: {"acked_seq": 1} for session_id in resume["sessions"]}
        await link.send({"type": "resume_response", "results": {}, "sessions": status})
        note(trial, await link.receive_until("execution_complete"))
        nursery.cancel_scope.cancel()


async def come_back(trial: Trial) -> None:
    """Cut a VM off at any step, and have the next one go on in its state directory."""
    async with open_vm_host() as host:
        for term in (1, 2):
            async with trio.open_nursery() as nursery:
                if term == 1:
                    nursery.start_soon(_run_cut, trial, host)
                else:
                    nursery.start_soon(run_vm, settings(trial), host.ports())
                with trio.move_on_after(LEAVING + 60) as patience:
                    link = await host.accept()
                    try:
                        await link.bring_up()
                        await link.start(f"hello {term}", term=term)
                        note(trial, await link.receive_until("execution_complete"))
                    except Exception:  # the first may be gone at any moment
                        if term == 2:
                            raise
                if term == 2 and patience.cancelled_caught:
                    trial.problems.append("the next VM does not answer")
                nursery.cancel_scope.cancel()


async def _run_cut(trial: Trial, host: VmHost) -> None:
    with cut_here():
        await run_vm(settings(trial), host.ports())
    await trio.sleep_forever()


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
            try:
                await run_vm(settings(trial), host.ports())
            except LinkRefused:
                return
            raise AssertionError("it was not refused")


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
