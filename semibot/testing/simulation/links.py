"""The links between VMs and host, as the simulated network sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import trio

from semibot.wire.frames import Auth, Init, ResumeResponse, VmHeartbeat

from .frames import COMMANDS, Frame, Tap
from .network import Connection


@final
class Link:
    """What has been said on one connection of a VM.

    Args:
        connection: The connection; its pipes are tapped.
        on_said: Is told what either side says.
    """

    def __init__(
        self, connection: Connection, on_said: Callable[[Link, bool, Sequence[Frame]], None]
    ) -> None:
        self.connection = connection
        self._on_said = on_said
        self.has_auth: bool = False
        """Whether the VM has said who it is."""
        self.init_at: float | None = None
        """When the host let the VM in, on Trio's clock."""
        self.live_at: float | None = None
        """When the host answered ``resume``, on Trio's clock."""
        self.beat_at: float | None = None
        """When the VM last said a heartbeat, on Trio's clock."""
        self.commanded_at: float | None = None
        """When the host last told the VM to do something, on Trio's clock."""
        self.vm_closed_at: float | None = None
        """When the VM said goodbye, on Trio's clock."""
        self.host_closed_at: float | None = None
        """When the host said goodbye, on Trio's clock."""
        self.up: Tap = self._tap(is_from_host=False)
        """What the VM says."""
        self.down: Tap = self._tap(is_from_host=True)
        """What the host says."""
        connection.client.out.on_put = self.up.put
        connection.server.out.on_put = self.down.put

    @property
    def vm(self) -> str:
        """Name of the VM's life."""
        return self.connection.client.machine.name

    def _tap(self, *, is_from_host: bool) -> Tap:
        def on_frames(frames: Sequence[Frame]) -> None:
            self._note(frames)
            self._on_said(self, is_from_host, frames)

        def on_close(_: int) -> None:
            if is_from_host:
                self.host_closed_at = self.host_closed_at or trio.current_time()
            else:
                self.vm_closed_at = self.vm_closed_at or trio.current_time()

        return Tap(is_from_host=is_from_host, on_frames=on_frames, on_close=on_close)

    def _note(self, frames: Sequence[Frame]) -> None:
        now = trio.current_time()
        for frame in frames:
            if isinstance(frame, COMMANDS):
                self.commanded_at = now
            match frame:
                case VmHeartbeat():
                    self.beat_at = now
                case Auth():
                    self.has_auth = True
                case Init():
                    self.init_at = now
                case ResumeResponse():
                    self.live_at = now
                case _:
                    pass
