"""Tell level 1 VMs what to do: every command once, ``start_session`` before every message.

A level 1 VM acknowledges nothing, so a command is done once it was written; what a message or a
cancel leads to is :mod:`~semibot.host.legacy`'s.
"""

from __future__ import annotations

import math
from typing import final

import trio

from semibot.errors import NotFound
from semibot.store.base import CommandRow, CommandsDone, RunRow, SessionWork, Store
from semibot.wire.frames import ConfigUpdate, StartSession, StopSession, StopSessionData
from semibot.wire.link import CloseCode

from .command_frames import CommandFrames, reason_of, send_message
from .legacy import LegacySessions, OpenRun
from .vm_link import VmLink


@final
class LegacyDispatch:
    """Writes the commands of one session after another to level 1 links.

    Args:
        store: Where commands are.
        frames: Makes frames.
    """

    def __init__(self, store: Store, frames: CommandFrames) -> None:
        self._store = store
        self._frames = frames

    async def look(self, work: SessionWork, link: VmLink, legacy: LegacySessions) -> None:
        """Send what can be sent now.

        Raises:
            StoreError: If the store fails; what was written is not written again.
        """
        runs = {run.id: run for run in work.open_runs}
        turn = work.open_runs[0].id if work.open_runs else None
        for command in work.commands:
            if command.id in link.sent:
                continue
            run = runs.get(command.run_id or "")
            match command.kind:
                case "user_message":
                    if command.boot_hash is not None:  # written on an earlier link
                        await self._store.finish_commands([command.id])
                    elif run is not None and run.id == turn:
                        await self._send_message(command, run, link, legacy)
                case "cancel":
                    await self._cancel(command, link, legacy)
                case "stop_session":
                    await self._stop(command, link)
                case "config_update" if work.session.holder_vm is not None:
                    await self._store.mark_written(command.id, link.ref)
                    fields = {**command.payload, "session_id": command.session_id}
                    link.send(ConfigUpdate(data=fields))
                    await self._store.finish_commands([command.id])
                case "config_update":
                    pass  # nobody holds the session yet; a later look sends it

    async def _send_message(
        self, command: CommandRow, run: RunRow, link: VmLink, legacy: LegacySessions
    ) -> None:
        held = await self._store.hold_session(command.session_id, link.ref)
        session = held.session
        history = await self._frames.history(session.id, run.id)
        data = await self._frames.start_data(held)
        await legacy.prepare(session)
        budget = self._frames.budget_ms(run)
        message = self._frames.level1_message(session, command, history)
        await self._mark(command, link)
        # From here to the last frame nothing waits: what is marked is written, and once.
        link.sent.add(command.id)
        if legacy.take_restart(session.id):
            stop = StopSessionData(session_id=session.id, reason="timeout")
            link.send(StopSession(data=stop))
        link.send(StartSession(data=data))
        send_message(link, message)
        open_run = OpenRun(
            run_id=run.id,
            message_id=run.message_id,
            message=message.data.message,
            expires_at=math.inf if budget is None else trio.current_time() + budget / 1000,
        )
        await legacy.begin(session.id, open_run)
        link.intake.put(CommandsDone(command_ids=(command.id,)), 0)
        now = await self._store.get_run(run.id)
        # Told to be cancelled before it began, while the message was being written: no
        # command will come for it.
        if now is not None and now.wants_cancel and now.receipt is not None:
            legacy.stop(session.id, run.id, "user_cancelled")

    async def _mark(self, command: CommandRow, link: VmLink) -> None:
        """Note that a command is written, or end the link if that is not known.

        A level 1 VM is never sent anything twice, so the next link gives such a run up.
        """
        is_known = False
        try:
            await self._store.mark_written(command.id, link.ref)
            is_known = True
        except NotFound:
            is_known = True
            raise
        finally:
            if not is_known:
                link.close(CloseCode.INTERNAL, "store failed")

    async def _cancel(self, command: CommandRow, link: VmLink, legacy: LegacySessions) -> None:
        if command.boot_hash is not None:
            return  # written on an earlier link; its time is running
        await self._store.mark_written(command.id, link.ref)
        link.sent.add(command.id)
        legacy.ask_cancel(command.session_id, command.run_id or "", command.id, reason_of(command))

    async def _stop(self, command: CommandRow, link: VmLink) -> None:
        await self._store.mark_written(command.id, link.ref)
        data = StopSessionData(session_id=command.session_id, reason=reason_of(command))
        link.send(StopSession(data=data))
        await self._store.finish_commands([command.id])
