"""What all sessions of a VM share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from semibot.config import Deadlines
from semibot.errors import AdapterError
from semibot.ports import Ports
from semibot.wire.plane import PlaneLink

from .adapter import AdapterFactory
from .reports import Reporter
from .seats import Seats

DEFAULT_RUNTIME: Final = "graph"
"""The adapter of a session whose host names none."""

_OTHER_NAMES: Final[Mapping[str | None, str]] = {
    None: DEFAULT_RUNTIME,
    "semigraph": DEFAULT_RUNTIME,  # what hosts call it
}


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

    def find_adapter(self, runtime_type: str | None) -> AdapterFactory:
        """Return what drives sessions of a runtime.

        Args:
            runtime_type: As the host names it.

        Raises:
            AdapterError: ``UNKNOWN_RUNTIME``.
        """
        name = _OTHER_NAMES.get(runtime_type, runtime_type) or DEFAULT_RUNTIME
        factory = self.adapters.get(name)
        if factory is None:
            known = ", ".join(sorted(self.adapters)) or "none at all"
            raise AdapterError(
                f"this VM does not have the runtime {name[:100]!r}; it has {known}",
                code="UNKNOWN_RUNTIME",
            )
        return factory
