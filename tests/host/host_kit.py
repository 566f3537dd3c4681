"""A host's parts without its HTTP side, as the product puts them together, and a VM by hand.

Rooms build their own kits on this one, so that no kit wires a host by itself.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from semibot.config.settings import HostSettings
from semibot.host.core import HostCore, make_core
from semibot.host.host import DATABASE_FILE
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.store.base import MessageAccepted, NewMessage, NewSession
from semibot.store.sqlite import open_sqlite_store

KEY: Final = Secret("correct-length-and-quite-random-8f2a61c0")

TOKEN_TTL: Final = 12 * 3600.0
"""How long tokens are good, in seconds."""


@asynccontextmanager
async def open_core(
    settings: HostSettings, ports: Ports, wrap: Callable[[Any], Any] | None = None
) -> AsyncGenerator[HostCore]:
    """Open a store and make a host's parts on it; nothing runs before ``run_core``.

    Args:
        settings: How it is to run; its key is :data:`KEY`, whatever they say.
        ports: The seams.
        wrap: What stands between the parts and the store.
    """
    path = settings.data_dir / DATABASE_FILE
    async with open_sqlite_store(path, ports=ports, deadlines=settings.deadlines) as real:
        tokens = Tokens(KEY, ports.wall_clock, TOKEN_TTL)
        store: Any = real if wrap is None else wrap(real)
        yield make_core(settings, store, tokens=tokens, ports=ports)


async def accept_message(
    core: HostCore,
    user_id: str,
    session_id: str,
    run_id: str,
    message: str,
    *,
    on_busy: Any = "enqueue",
    expires_at: int | None = None,
) -> MessageAccepted:
    """Store a message, and have it dispatched."""
    known = await core.store.get_session(user_id, session_id)
    create = NewSession(agent_id=None, runtime_type="semigraph", openclaw_config=None)
    accepted = await core.store.accept_message(
        NewMessage(
            user_id=user_id,
            session_id=session_id,
            create=None if known else create,
            message=message,
            message_id=f"m-{run_id}",
            run_id=run_id,
            command_id=f"c-{run_id}",
            cancel_ids=tuple(f"x-{run_id}-{i}" for i in range(17)),
            on_busy=on_busy,
            expires_at=expires_at,
            idempotency=None,
        )
    )
    core.dispatcher.kick(session_id, user_id)
    return accepted


class VmSocket:
    """One socket of a VM, from the VM's end: what the app is given, and what it has said."""

    def __init__(self) -> None:
        self.to_host, self._from_vm = trio.open_memory_channel[dict[str, Any]](10_000)
        self.closed: tuple[int, str] | None = None
        self.heard: list[dict[str, Any]] = []  # what nobody took yet
        self.messages: list[str] = []
        self.accepts = True
        self.is_stuck = False
        self._news = trio.Event()

    def connect(self) -> None:
        self.to_host.send_nowait({"type": "websocket.connect"})

    async def receive(self) -> dict[str, Any]:
        try:
            return await self._from_vm.receive()
        except trio.EndOfChannel:
            return {"type": "websocket.disconnect", "code": 1006}

    async def send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if not self.accepts:
            raise OSError("gone")
        if self.is_stuck:
            await trio.sleep_forever()
        if message["type"] == "websocket.send":
            self.messages.append(message["text"])
            frame = json.loads(message["text"])
            for each in frame["frames"] if frame["type"] == "batch" else [frame]:
                self.hear_frame(each)
        elif message["type"] == "websocket.close":
            self.closed = (message["code"], message["reason"])
        self.notify()

    def hear_frame(self, frame: dict[str, Any]) -> None:
        self.heard.append(frame)

    def notify(self) -> None:
        """Wake who waits for news."""
        self._news.set()
        self._news = trio.Event()

    async def wait_news(self) -> None:
        """Wait until the host says something, or the socket is done with."""
        await self._news.wait()

    def say_text(self, text: str) -> None:
        self.to_host.send_nowait({"type": "websocket.receive", "text": text})

    def say(self, **frame: Any) -> None:
        self.say_text(json.dumps(frame))

    def hang_up(self) -> None:
        self.to_host.close()

    def take(self, kind: str, **fields: Any) -> dict[str, Any] | None:
        """Take a frame of a kind, if there is one."""
        for index, frame in enumerate(self.heard):
            if frame["type"] == kind and all(frame.get(k) == v for k, v in fields.items()):
                return self.heard.pop(index)
        return None
