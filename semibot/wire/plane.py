"""What the two ends of a VM need of each other: the channel, and who carries commands out.

``session`` and ``channel`` are siblings that do not know each other; both know this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import attrs

from semibot.secret import Secret

from .codec import JsonObject, JsonValue
from .frames import Cancelled, Command, CommandAck, FireAndForget, ProviderSettings


@attrs.frozen(kw_only=True)
class PlaneSettings:
    """What a host tells its VM in ``init``."""

    user_id: str
    """The user whose VM this is."""
    org_id: str
    """The user's organization."""
    api_keys: Mapping[str, Secret] = attrs.field(factory=dict[str, Secret], repr=False)
    """Provider keys, decrypted; in memory only."""
    providers: Mapping[str, ProviderSettings] = attrs.field(factory=dict[str, ProviderSettings])
    """How to reach the providers."""
    level: int = 2
    """The protocol level that both ends speak."""


class CommandHandler(Protocol):
    """Carries out what the host wants; the session manager. Nothing here waits."""

    def configure(self, settings: PlaneSettings) -> None:
        """Take what ``init`` said; called after every (re)connection, before commands."""
        ...

    def command(self, frame: Command) -> None:
        """Take one command, in order; carry it out later."""
        ...

    def drop_session(self, session_id: str) -> None:
        """End a session silently: ``fenced`` or ``gone`` (protocol section 4)."""
        ...

    def active_sessions(self) -> Sequence[str]:
        """Return the sessions that are held, for the heartbeat."""
        ...


class Lane(Protocol):
    """One session's ordered way out. Nothing overtakes anything in it."""

    def put_event(self, seq: int, run_id: str, data: str) -> None:
        """Queue an event, to be kept until the host acknowledges it; never waits.

        Args:
            seq: Its number; one more than the last.
            run_id: The run that says it.
            data: The event as JSON text.
        """
        ...

    async def wait_room(self) -> None:
        """Wait until less than 16 MiB of the session, and 128 MiB in all, are kept."""
        ...

    def put_note(self, note: CommandAck | Cancelled) -> None:
        """Queue the answer to a command behind the events so far; never waits.

        It is sent again after a reconnect until the host has acknowledged the command.
        """
        ...

    def put_snapshot(self, frame: FireAndForget) -> None:
        """Queue a ``snapshot_sync`` behind the events so far, instead of an earlier one."""
        ...


class PlaneLink(Protocol):
    """The way to the host; the channel. It is there for ever, up or down."""

    def attach(self, handler: CommandHandler) -> AbstractContextManager[None]:
        """Let *handler* get commands while the block lasts; earlier ones were kept."""
        ...

    def open_lane(self, session_id: str, term: int, next_seq: int) -> Lane:
        """Begin a session's way out; replaces one that was closed."""
        ...

    def close_lane(self, session_id: str) -> None:
        """End a session's way out; what is unacknowledged is still delivered."""
        ...

    def discard_lane(self, session_id: str) -> None:
        """End a session's way out and forget everything in it (``fenced``, ``gone``)."""
        ...

    async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
        """Ask the host; see :class:`~semibot.session.ControlPlane`.

        Raises:
            RequestFailed: With the host's code, or ``OUTCOME_UNKNOWN``.
            DeadlineExceeded: ``channel.request``.
        """
        ...

    async def fire_and_forget(self, session_id: str, method: str, params: JsonObject) -> None:
        """Report to the host, durably: it arrives at least once, and counts once.

        Raises:
            StoreError: If the outbox cannot be written.
        """
        ...
