"""The parts of one host, and how they are put together: once, for ``open_host``."""

from __future__ import annotations

from typing import final

import attrs

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.ports import Ports
from semibot.security.principals import Principals
from semibot.security.tokens import Tokens
from semibot.store.base import Store

from .dispatch import Dispatcher
from .links import Links
from .metrics import Metrics
from .relay import Relay
from .safety import has_local_user
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


def make_core(settings: HostSettings, store: Store, *, tokens: Tokens, ports: Ports) -> HostCore:
    """Put the parts of a host together; nothing runs yet.

    Args:
        settings: How it is to run.
        store: What it remembers; whoever opened it closes it.
        tokens: Makes and checks tokens.
        ports: The seams.
    """
    deadlines = settings.deadlines
    metrics = Metrics()
    relay = Relay(store, ports, deadlines)
    links = Links(
        store=store,
        relay=relay,
        tokens=tokens,
        settings=settings,
        metrics=metrics,
        ports=ports,
        deadlines=deadlines,
    )
    dispatcher = Dispatcher(
        store=store,
        relay=relay,
        links=links,
        settings=settings,
        ports=ports,
        deadlines=deadlines,
    )
    scheduler = Scheduler(
        store=store,
        links=links,
        tokens=tokens,
        settings=settings,
        deadlines=deadlines,
        ports=ports,
    )
    links.observe(scheduler)
    return HostCore(
        settings=settings,
        deadlines=deadlines,
        ports=ports,
        store=store,
        relay=relay,
        links=links,
        dispatcher=dispatcher,
        scheduler=scheduler,
        metrics=metrics,
        principals=Principals(is_local=has_local_user(settings), tokens=tokens),
        status=HostStatus(),
    )
