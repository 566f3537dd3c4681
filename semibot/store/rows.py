"""The rows of a host's store, as values. Times are milliseconds since 1970-01-01 UTC."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

from semibot.wire.codec import JsonObject
from semibot.wire.receipts import Outcome

VmMode: TypeAlias = Literal["local", "docker", "firecracker", "external"]
"""Who starts a VM; ``external``: its user."""

VmStatus: TypeAlias = Literal[
    "starting", "provisioning", "ready", "disconnected", "failed", "terminated"
]
"""Where a VM is; ``failed`` and ``terminated`` rows are history."""

# --- rows -----------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class UserRow:
    """A user."""

    id: str
    org_id: str
    vm_mode: VmMode
    """The user's own, else the organization's."""


@attrs.frozen(kw_only=True)
class AgentRow:
    """An agent that sessions may be made with."""

    id: str
    org_id: str
    name: str
    agent_config: JsonObject
    runtime_type: str
    openclaw_config: JsonObject | None


@attrs.frozen(kw_only=True)
class VmRow:
    """One life of an execution plane. Times are milliseconds since 1970."""

    id: str
    user_id: str
    org_id: str
    mode: VmMode
    status: VmStatus
    attempts: int
    """Bootstrap attempts since it was last ready."""
    attempt: int
    """Number of the newest bootstrap attempt; 0 if there never was one."""
    boot_hash: str | None
    """Of the process whose link was accepted last; None for a level 1 VM."""
    epoch: int
    level: int
    last_bootstrap_at: int | None
    last_heartbeat_at: int | None
    disconnected_at: int | None
    last_error: str | None


@attrs.frozen(kw_only=True)
class SessionRow:
    """A conversation."""

    id: str
    user_id: str
    org_id: str
    agent_id: str | None
    title: str
    runtime_type: str
    openclaw_config: JsonObject | None
    term: int
    holder_vm: str | None
    holder_boot: str | None
    """Hash of the holder's boot id; ``level1`` for a level 1 VM."""
    last_seq: int
    """Committed maximum."""
    created_at: int
    updated_at: int


@attrs.frozen(kw_only=True)
class MessageRow:
    """One message of a conversation."""

    id: str
    run_id: str
    role: Literal["user", "assistant"]
    content: str
    metadata: JsonObject
    """``outcome`` and the like for the assistant's."""
    created_at: int


@attrs.frozen  # by position, because that is quicker, and there are many
class StoredEvent:
    """A committed event."""

    term: int
    seq: int
    run_id: str
    type: str
    data: str = attrs.field(repr=False)
    """JSON text, as the session said it."""


@attrs.frozen(kw_only=True)
class RunRow:
    """One execution of one message."""

    id: str
    session_id: str
    message_id: str
    is_written: bool
    """Whether its message may have reached a VM."""
    wants_cancel: bool
    first_seq: int | None
    last_seq: int | None
    outcome: Outcome | None
    receipt: JsonObject | None
    expires_at: int | None


@attrs.frozen(kw_only=True)
class CommandRow:
    """Something that a VM is to do, in its place in the session's order."""

    id: str
    session_id: str
    kind: Literal["user_message", "cancel", "stop_session", "config_update"]
    run_id: str | None
    payload: JsonObject
    """``user_message``: ``message``, ``message_id``; ``cancel``, ``stop_session``: ``reason``;
    ``config_update``: the patch."""
    boot_hash: str | None
    """Process that it was written to, or None."""
