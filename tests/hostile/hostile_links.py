"""Both ends of a link, whole, and a peer that says things that are nearly right."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import hostile_samples as samples
import trio
import trio.testing
import trio_websocket
from hostile_inputs import hostile
from hostile_targets import Outcome, _text_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from link_kit import Plane, Vm, open_plane, quiet
from scripted_host import HostLink, ScriptedHost

import semibot
from semibot.testing import adapter_from

LONG = 300.0
"""What a conversation may take, in simulated seconds."""

MESSAGES = 12
"""Messages in a row."""

MAY_CLOSE_WITH = {None, 4400}
"""How an end may leave somebody who talks nonsense: not at all, or for too much of it."""


class _Loud(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += logging.Formatter().formatException(record.exc_info)
        self.said.append(text)


@contextlib.contextmanager
def no_errors_in_the_log() -> Generator[None]:
    loud = _Loud()
    logging.getLogger().addHandler(loud)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(loud)
    assert loud.said == []


# --- a VM that talks nonsense ---------------------------------------------------------


async def busy_vm(plane: Plane, dial: int, resume: dict[str, Any]) -> Vm:
    vm = await plane.up(dial=dial, resume=resume)
    if not resume:
        await plane.say("hi")
        await vm.hear("user_message")
        vm.event("s1", 1, 1, "r1", "run_started", message_id="m-r1", message="hi")
    await quiet()
    return vm


async def host_is_told(texts: list[str]) -> Outcome:
    """Say *texts* to a host that has a run of ours, and a bystander's link."""
    with tempfile.TemporaryDirectory() as directory:
        async with open_plane(Path(directory)) as plane:
            await plane.external("bob")
            bystander = await plane.up(user="bob", boot="boot-b")
            vm = await busy_vm(plane, 1, {})
            for text in texts:
                vm.say_text(text)
                await quiet()
            code = None if vm.closed is None else vm.closed[0]
            assert code in MAY_CLOSE_WITH, vm.closed
            bystander.say(type="heartbeat", active_sessions=[], sent_at=2.5)
            assert (await bystander.hear("heartbeat"))["echo"] == 2.5
            stored = await plane.events()
            assert [seq for _, seq, _, _ in stored] == list(range(1, len(stored) + 1))
            again = await plane.up(boot="boot-c")  # the next process of the user
            again.say(type="heartbeat", active_sessions=[], sent_at=3.5)
            assert (await again.hear("heartbeat"))["echo"] == 3.5
            return Outcome(accepted=code is None, refused=code is not None)


# --- a host that talks nonsense -------------------------------------------------------


async def _drain(link: HostLink) -> None:
    with contextlib.suppress(trio_websocket.ConnectionClosed):
        while True:
            await link.receive_message()


async def echo(run: semibot.ActiveRun) -> None:
    await run.emit(semibot.TextChunk(content=run.message[:100]))
    await run.complete()


async def vm_is_told(texts: list[str]) -> Outcome:
    """Say *texts* to a VM with sessions, and then what makes sense."""
    async with trio.open_nursery() as nursery:
        host = ScriptedHost(nursery)
        with tempfile.TemporaryDirectory() as directory:
            async with (
                host.open_channel() as channel,
                semibot.open_session_manager(
                    channel,
                    adapters={"graph": adapter_from(echo)},
                    workspace=directory,
                    ports=host.ports,
                ),
            ):
                link = await host.link()
                await channel.wait_up()
                nursery.start_soon(_drain, link)
                for text in texts:
                    with contextlib.suppress(Exception):  # it may be closed by now
                        await link.socket.send_message(text)
                    await trio.testing.wait_all_tasks_blocked()
                await trio.sleep(1)
                was_left = channel.statistics().links > 1 or channel.status.state != "up"
                await link.drop()
                again = await host.accept()
                await again.introduce()
                resume = await again.receive()
                named = {key: {"fenced": True} for key in resume["sessions"]}
                await again.send({"type": "resume_response", "results": {}, "sessions": named})
                await channel.wait_up()
                await again.send(*sensible())
                while True:
                    frame = await again.receive()
                    if frame["type"] == "sse_event" and frame["session_id"] == "sensible":
                        event = json.loads(frame["data"])
                        if event["type"] == "execution_complete":
                            break
        nursery.cancel_scope.cancel()
    return Outcome(accepted=not was_left, refused=was_left)


def sensible() -> list[dict[str, Any]]:
    data = {"session_id": "sensible"}
    message = {"message": "hi", "message_id": "m", "history": [], "metadata": {}}
    return [
        {"type": "start_session", "command_id": "z1", "term": 1, "next_seq": 1, "data": data},
        {
            "type": "user_message",
            "session_id": "sensible",
            "command_id": "z2",
            "run_id": "rz",
            "data": message,
        },
    ]


# --- attacking ------------------------------------------------------------------------


async def _bounded(
    is_told: Callable[[list[str]], Coroutine[Any, Any, Outcome]], texts: list[str]
) -> Outcome:
    with trio.fail_after(LONG):
        return await is_told(texts)


def attack_link(
    is_told: Callable[[list[str]], Coroutine[Any, Any, Outcome]],
    valid: list[bytes],
    examples: int,
) -> Outcome:
    """Let *is_told* judge as many conversations; they are the same each time."""
    total = Outcome()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(hostile(valid), min_size=1, max_size=MESSAGES))
    def probe(messages: list[bytes]) -> None:
        # A surrogate cannot come in over a socket, whose text is UTF-8.
        texts = [_text_of(each).encode("utf-8", "replace").decode() for each in messages]
        with no_errors_in_the_log():
            outcome = trio.run(
                _bounded, is_told, texts, clock=trio.testing.MockClock(autojump_threshold=0)
            )
        total.accepted += outcome.accepted
        total.refused += outcome.refused

    probe()
    return total


def attack_host(examples: int) -> Outcome:
    return attack_link(host_is_told, samples.FROM_VM, examples)


def attack_vm(examples: int) -> Outcome:
    return attack_link(vm_is_told, samples.FROM_HOST, examples)
