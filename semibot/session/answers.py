"""What a session's commands were answered with: a command takes effect once.

A host repeats a command until the answer to it has been committed (protocol section 4).
"""

from __future__ import annotations

from typing import Final, TypeAlias, final

from semibot.wire.frames import Cancelled, CommandAck

MAX_ANSWERS: Final = 1024
"""How many commands of one session are remembered; the oldest go first."""

Note: TypeAlias = CommandAck | Cancelled
"""The answer to a command."""


@final
class Answers:
    """The commands of one session that were taken, each with its answer once there is one."""

    def __init__(self) -> None:
        self._notes: dict[str, Note | None] = {}

    def __contains__(self, command_id: str) -> bool:
        """Return whether the command was taken before."""
        return command_id in self._notes

    def of(self, command_id: str) -> Note | None:
        """Return the answer, or None if there is none yet."""
        return self._notes.get(command_id)

    def expect(self, command_id: str) -> None:
        """Remember that a command was taken."""
        self._notes[command_id] = None
        while len(self._notes) > MAX_ANSWERS:
            del self._notes[next(iter(self._notes))]

    def give(self, command_id: str, note: Note) -> None:
        """Remember what a command was answered with."""
        if command_id in self._notes:
            self._notes[command_id] = note

    def clear(self) -> None:
        """Forget everything: whatever comes now is not a repeat."""
        self._notes.clear()
