"""Make the frames that tell a VM what to do, from what the store knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import attrs

from semibot.config.settings import HostSettings
from semibot.errors import RemoteProtocolError
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.store.base import CommandRow, RunRow, SessionHeld, SessionRow, Store
from semibot.wire.codec import JsonObject, JsonValue, structure
from semibot.wire.frames import (
    Cancel,
    ConfigUpdate,
    SessionSnapshot,
    StartSession,
    StartSessionData,
    StopSession,
    StopSessionData,
    UserMessage,
    UserMessageData,
)

from .requests import skill_index
from .vm_link import VmLink

log: Final = get_logger(__name__)

HISTORY_BYTES: Final = 4 * 1024 * 1024
"""Most bytes of history that go with a message."""


@final
class CommandFrames:
    """Makes commands for either level.

    Args:
        store: Where histories are.
        settings: ``skills_dir`` is where skills are.
        ports: The seams.
    """

    def __init__(self, *, store: Store, settings: HostSettings, ports: Ports) -> None:
        self._store = store
        self._skills_dir = settings.skills_dir or settings.data_dir / "skills"
        self._ports = ports

    async def start_data(self, held: SessionHeld) -> StartSessionData:
        """Return what a session is started with."""
        session, agent = held.session, held.agent
        skills = await self._ports.threads.run_sync(
            skill_index, self._skills_dir, limiter="files", abandon_on_cancel=True
        )
        agent_openclaw = None if agent is None else agent.openclaw_config
        return StartSessionData(
            session_id=session.id,
            runtime_type=session.runtime_type,
            agent_id=session.agent_id,
            agent_config={} if agent is None else agent.agent_config,
            skill_index=skills,
            openclaw_config=session.openclaw_config or agent_openclaw,
        )

    async def history(self, session_id: str, run_id: str) -> tuple[JsonObject, ...]:
        """Return the newest messages that fit, ending with the one of *run_id*."""
        return await self._store.read_history(session_id, run_id, HISTORY_BYTES)

    def user_message(
        self, session: SessionRow, command: CommandRow, run: RunRow, history: Sequence[JsonObject]
    ) -> UserMessage:
        """Return a ``user_message`` of level 2."""
        data = UserMessageData(
            message=_text(command.payload, "message"),
            message_id=run.message_id,
            history=tuple(history),
            metadata=_object(command.payload.get("metadata")),
            deadline_ms=self.budget_ms(run),
            cancelled=True if run.wants_cancel else None,
        )
        return UserMessage(session_id=session.id, data=data, command_id=command.id, run_id=run.id)

    def level1_message(
        self, session: SessionRow, command: CommandRow, history: Sequence[JsonObject]
    ) -> UserMessage:
        """Return a ``user_message`` of level 1."""
        metadata = {"org_id": session.org_id, "user_id": session.user_id}
        data = UserMessageData(
            message=_text(command.payload, "message"),
            history=tuple(history),
            metadata={**_object(command.payload.get("metadata")), **metadata},
        )
        return UserMessage(session_id=session.id, data=data)

    def budget_ms(self, run: RunRow) -> int | None:
        """Return what is left of the caller's budget, at least 1 ms; None: there is none."""
        if run.expires_at is None:
            return None
        now = self._ports.wall_clock.now().timestamp() * 1000
        return max(1, int(run.expires_at - now))


def start_session(held: SessionHeld, data: StartSessionData, command_id: str) -> StartSession:
    """Return a ``start_session`` of level 2, with the newest snapshot if there is one."""
    snapshot = None
    if held.snapshot is not None:
        try:
            snapshot = structure(held.snapshot, SessionSnapshot)
        except RemoteProtocolError as exc:  # a VM said something odd; the history is the truth
            log.warning("a snapshot is left out", session_id=held.session.id, reason=exc.reason)
    return StartSession(
        data=data,
        command_id=command_id,
        term=held.session.term,
        next_seq=held.next_seq,
        snapshot=snapshot,
    )


def side_command(command: CommandRow) -> Cancel | StopSession | ConfigUpdate:
    """Return a command of level 2 that is no message."""
    match command.kind:
        case "cancel":
            return Cancel(
                session_id=command.session_id,
                reason=reason_of(command),
                command_id=command.id,
                run_id=command.run_id,
            )
        case "stop_session":
            return StopSession(
                data=StopSessionData(session_id=command.session_id, reason=reason_of(command)),
                command_id=command.id,
            )
        case "config_update":
            return ConfigUpdate(
                session_id=command.session_id, data=command.payload, command_id=command.id
            )
        case "user_message":
            raise AssertionError("a message has a frame of its own")


def reason_of(command: CommandRow) -> str:
    """Return why a run or session is to stop."""
    return _text(command.payload, "reason") or "user_cancelled"


def send_message(link: VmLink, frame: UserMessage) -> None:
    """Queue a message, with less of its history if the frame would be too big."""
    for kept in (frame.data.history, frame.data.history[-1:], ()):
        if link.send(attrs.evolve(frame, data=attrs.evolve(frame.data, history=kept))):
            return
    log.error("a message is too big for any frame", session_id=frame.session_id)


def _text(fields: JsonObject, name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _object(value: JsonValue) -> JsonObject:
    return value if isinstance(value, dict) else {}
