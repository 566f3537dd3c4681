"""What the parts of one host share: one object, made once by ``open_host``."""

from __future__ import annotations

from typing import final

import attrs

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.ports import Ports
from semibot.security.principals import Principals
from semibot.store.base import Store

from .dispatch import Dispatcher
from .links import Links
from .metrics import Metrics
from .relay import Relay
from .scheduler import Scheduler


@final
@attrs.define(eq=False)
class HostStatus:
    """Where a host is between start and stop."""

    is_ready: bool = False
    """Whether it has begun to answer: ``/readyz`` says 503 before."""
    is_draining: bool = False
    """Whether it is ending: new messages are refused, streams are closed."""


@attrs.frozen(kw_only=True, eq=False)
class HostCore:
    """The parts of one host, for those who answer requests."""

    settings: HostSettings
    """How it is to run."""
    deadlines: Deadlines
    """The bounds."""
    ports: Ports
    """The seams."""
    store: Store
    """What it remembers."""
    relay: Relay
    """Events, from VMs to readers."""
    links: Links
    """VMs that are connected."""
    dispatcher: Dispatcher
    """Commands, from readers to VMs."""
    scheduler: Scheduler
    """VMs that are started."""
    metrics: Metrics
    """Counts."""
    principals: Principals
    """Who asks."""
    status: HostStatus
    """Where it is between start and stop."""
