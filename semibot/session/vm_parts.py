"""What all sessions of a VM share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from semibot.config import Deadlines
from semibot.ports import Ports
from semibot.wire.plane import PlaneLink

from .adapter import AdapterFactory
from .reports import Reporter
from .seats import Seats


@attrs.frozen(kw_only=True)
class VmParts:
    """What all sessions of a VM share."""

    link: PlaneLink
    """The way to the host."""
    adapters: Mapping[str, AdapterFactory]
    """What drives sessions, by ``runtime_type``."""
    workspace: Path
    """Where agents work; absolute."""
    state_dir: Path | None
    """Where sessions are kept; absolute. None means the workspace."""
    deadlines: Deadlines
    """The bounds."""
    ports: Ports
    """The seams."""
    seats: Seats
    """How many sessions may be open at once."""
    reporter: Reporter
    """The way of reports."""
