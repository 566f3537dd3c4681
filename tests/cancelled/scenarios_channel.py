"""The channel to the host, to be cancelled at every step; the host lives on each time."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs
import trio
import trio.testing
from answering_host import (
    AnsweringHost,
    be_deaf,
    be_helpful,
    cut_after,
    open_answering_host,
    refuse,
    say,
)
from scripted_host import Handler, event
from trials import Case, Trial

from semibot.channel.outbox_file import OutboxFile
from semibot.config import Deadlines
from semibot.errors import LinkRefused, SemibotError
from semibot.testing import cut_here
from semibot.wire.frames import CommandAck

BOUNDS: Final = Deadlines()

CLOSING: Final = BOUNDS.channel_close
"""Flushing what is queued, and the closing handshake."""

WITH_OUTBOX: Final = CLOSING + 2 * BOUNDS.session_save

REDIALLING: Final = 120.0
"""Coming back after a broken link: a few back-offs, and a silence of 30 s."""


async def nap(_: AnsweringHost) -> None:
    """Let the host read what it was sent."""
    await trio.sleep(1)


def note(trial: Trial, host: AnsweringHost, channel: Any) -> None:
    trial.parts["channel"] = channel
    trial.parts["host"] = host


def look(trial: Trial) -> str | None:
    """Look for requests that nobody waits for, gaps, and reports that are nowhere."""
    channel: Any = trial.parts.get("channel")
    host: Any = trial.parts.get("host")
    if channel is None:
        return None
    if channel.statistics().pending_requests:
        return "requests are left"
    kept = set(host.reports)
    if (trial.directory / "state").exists():
        file = OutboxFile(trial.directory / "state", lambda _: None)
        kept |= {frame.id for frame in file.open()}  # and its lock is free
        file.close()
    lost = set(trial.kept) - kept
    return "; ".join([*host.problems, *([f"reports are lost: {lost}"] if lost else [])]) or None


# --- scenarios ------------------------------------------------------------------------


async def come_up(trial: Trial) -> None:
    async with open_answering_host() as host:
        with cut_here():
            async with host.open_channel() as channel:
                note(trial, host, channel)
                await channel.wait_up()


async def come_up_at_level_1(trial: Trial) -> None:
    async with open_answering_host(level=1) as host:
        with cut_here():
            async with host.open_channel() as channel:
                note(trial, host, channel)
                await channel.wait_up()
                await channel.fire_and_forget("__memory__", "audit_log", {"event": "x"})


async def back_off(trial: Trial) -> None:
    async with open_answering_host() as host:
        host.refusals = 4
        with cut_here():
            async with host.open_channel() as channel:
                note(trial, host, channel)
                await channel.wait_up()


async def dial_for_ever(trial: Trial) -> None:
    async with open_answering_host() as host:
        host.ports = _with_dial(host.ports, trio.sleep_forever)
        with cut_here():
            async with host.open_channel() as channel:
                note(trial, host, channel)
                await channel.wait_status(lambda status: status.attempts == 2)


async def reconnect_with_an_outbox(trial: Trial) -> None:
    async with open_answering_host(cut_after(1), be_helpful) as host:
        with cut_here():
            async with host.open_channel(state_dir=trial.directory / "state") as channel:
                note(trial, host, channel)
                for number in range(3):
                    await _report(trial, channel, number)
                with trio.move_on_after(60):  # the link is cut after the first
                    while row_ids(channel):  # noqa: ASYNC110 - nothing says so
                        await trio.sleep(1)


async def _report(trial: Trial, channel: Any, number: int) -> None:
    """Report, and remember which report is durable."""
    before = set(row_ids(channel))
    await channel.fire_and_forget("__memory__", "audit_log", {"event": f"{number}"})
    trial.kept += set(row_ids(channel)) - before


def row_ids(channel: Any) -> list[str]:
    return [row.frame.id for row in channel._exchange.outbox.rows]


async def ask_over_a_reconnect(trial: Trial) -> None:
    async with open_answering_host(cut_after(0), be_helpful) as host:
        with cut_here():
            async with host.open_channel() as channel, trio.open_nursery() as nursery:
                note(trial, host, channel)
                nursery.start_soon(channel.request, "__memory__", "get_config", {"agent_id": "a"})
                with contextlib.suppress(SemibotError):  # its outcome is unknown
                    await channel.request("__memory__", "mcp_call", {"tool": "t"})


async def give_a_request_up(trial: Trial) -> None:
    async with open_answering_host(be_deaf) as host:
        with cut_here():
            async with host.open_channel() as channel:
                note(trial, host, channel)
                await channel.wait_up()
                with trio.move_on_after(5):
                    await channel.request("__memory__", "get_config", {"agent_id": "a"})


async def send_events(trial: Trial) -> None:
    async with open_answering_host(cut_after(2), be_helpful) as host:
        with cut_here():
            async with host.open_channel() as channel:
                note(trial, host, channel)
                with channel.attach(Handler()):
                    await channel.wait_up()
                    lane = channel.open_lane("s1", 1, 1)
                    for number in range(1, 5):
                        await lane.wait_room()
                        lane.put_event(*event(number))
                    lane.put_note(CommandAck(commands=("c1",)))
                    channel.close_lane("s1")
                    await nap(host)


async def press_against_a_wall(trial: Trial) -> None:
    pair = trio.testing.lockstep_stream_pair
    async with open_answering_host(be_deaf, make_pair=pair) as host:
        with cut_here():
            async with host.open_channel() as channel:
                note(trial, host, channel)
                await channel.wait_up()
                lane = channel.open_lane("s1", 1, 1)
                for number in range(1, 4):
                    lane.put_event(number, "r1", '{"type":"text_chunk","content":"x"}')
                await trio.sleep(3)


async def obey_commands(trial: Trial) -> None:
    start = {"type": "start_session", "command_id": "c1", "term": 1, "next_seq": 1}
    start["data"] = {"session_id": "s1", "runtime_type": "semigraph", "agent_id": "a"}
    start["data"]["agent_config"] = {}
    async with open_answering_host(say(start)) as host:
        with cut_here():
            async with host.open_channel() as channel:
                note(trial, host, channel)
                await channel.wait_up()
                await trio.sleep(1)  # the command comes before somebody takes it
                handler = Handler()
                with channel.attach(handler):
                    lane = channel.open_lane("s1", 1, 1)
                    lane.put_note(CommandAck(commands=("c1",)))
                    await nap(host)
                channel.discard_lane("s1")


async def renew_a_token(trial: Trial) -> None:
    renewed = say({"type": "token", "token": "t2"})
    async with open_answering_host(cut_after(0), renewed) as host:
        with cut_here():
            async with host.open_channel() as channel:
                note(trial, host, channel)
                await channel.wait_status(lambda status: status.state == "down")
                await channel.wait_up()
                await nap(host)


async def hear_nothing(trial: Trial) -> None:
    async with open_answering_host(be_deaf, be_helpful) as host:
        with cut_here():
            async with host.open_channel(deadlines=SILENT) as channel:
                note(trial, host, channel)
                await channel.wait_status(lambda now: now.state == "up" and host.dials > 1)


SILENT: Final = Deadlines(link_heartbeat=1, link_dead_after=3)


async def be_refused(trial: Trial) -> None:
    async with open_answering_host(refuse) as host:
        with cut_here(), contextlib.suppress(LinkRefused):
            async with host.open_channel() as channel:
                note(trial, host, channel)
                await trio.sleep_forever()


def _with_dial(ports: Any, dial: Callable[[], Awaitable[None]]) -> Any:
    async def dial_so(host: str, port: int, *, use_tls: bool) -> Any:
        await dial()

    return attrs.evolve(ports, dial=dial_so)


HANDSHAKE: Final = "channel.close"

CASES: Final = (
    *(
        Case(
            name=f"channel: {name}",
            act=act,
            look=look,
            within=within,
            because=because,
            errors_within=errors_within,
        )
        for name, act, within, because, errors_within in (
            ("a link comes up and is closed", come_up, CLOSING, HANDSHAKE, REDIALLING),
            ("a link of level 1", come_up_at_level_1, CLOSING, HANDSHAKE, REDIALLING),
            (
                "dials that are refused, and one that is not",
                back_off,
                CLOSING,
                HANDSHAKE,
                REDIALLING,
            ),
            ("a dial that is never answered", dial_for_ever, 0.0, "nothing to wait for", None),
            (
                "reconnect while an outbox is being sent",
                reconnect_with_an_outbox,
                WITH_OUTBOX,
                "channel.close and twice session.save",
                REDIALLING,
            ),
            ("requests that outlive a link", ask_over_a_reconnect, CLOSING, HANDSHAKE, REDIALLING),
            (
                "a request that its caller gives up",
                give_a_request_up,
                CLOSING,
                HANDSHAKE,
                REDIALLING,
            ),
            ("events over a reconnect", send_events, CLOSING, HANDSHAKE, REDIALLING),
            (
                "send against a host that does not read",
                press_against_a_wall,
                CLOSING,
                HANDSHAKE,
                REDIALLING,
            ),
            (
                "a command that comes before its handler",
                obey_commands,
                CLOSING,
                HANDSHAKE,
                REDIALLING,
            ),
            ("a renewed token over a reconnect", renew_a_token, CLOSING, HANDSHAKE, REDIALLING),
            ("a host that falls silent", hear_nothing, CLOSING, HANDSHAKE, REDIALLING),
            ("a VM that is refused for good", be_refused, CLOSING, HANDSHAKE, REDIALLING),
        )
    ),
)
