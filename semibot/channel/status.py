"""How a VM's link stands, and what has gone over it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import attrs

LinkState: TypeAlias = Literal["connecting", "up", "down"]
"""``connecting`` from the dial to ``resume_response``, ``down`` between two attempts."""


@attrs.frozen(kw_only=True)
class LinkStatus:
    """How a VM's link to its host stands."""

    state: LinkState
    """Whether it is up."""
    since: datetime
    """Since when it has been up, or not up."""
    attempts: int
    """Attempts to connect since it was last up; 0 while it is up."""
    last_error: str | None = None
    """Why the last attempt or link ended; None if none did."""
    epoch: int | None = None
    """Number that the host gave the newest link; None on level 1."""
    level: int | None = None
    """Protocol level of the newest link; None before the first."""


@attrs.frozen(kw_only=True)
class ChannelStatistics:
    """What has gone over a channel, and what waits in it."""

    links: int
    """Links that came up."""
    frames_sent: int
    """Frames sent, those in a batch counted one by one."""
    messages_sent: int
    """WebSocket messages sent; a batch is one."""
    frames_received: int
    """Frames received, those in a batch counted one by one."""
    unacknowledged_bytes: int
    """Bytes of session events and notes that the host has not acknowledged."""
    pending_requests: int
    """Requests without an answer."""
    outbox_rows: int
    """Reports that the host has not acknowledged."""
    outbox_bytes: int
    """Bytes of those reports."""
    waiting_commands: int
    """Commands that nobody has taken yet."""
    dropped_frames: int
    """Frames of the host that were malformed, late or meant for nobody."""
    lost_sessions: int
    """Sessions that the host told to end (``fenced``, ``gone``)."""
