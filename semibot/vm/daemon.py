"""Assemble a VM: the channel to its host, and the manager of its sessions inside it."""

from __future__ import annotations

from typing import Final

import trio

from semibot.adapters.graph import GraphAgent, parse_grants
from semibot.adapters.openclaw import openclaw_agent
from semibot.channel import open_control_channel
from semibot.config.settings import VmSettings
from semibot.live import live_ports
from semibot.logs import get_logger
from semibot.observe.watchdog import open_watchdog
from semibot.ports import Ports
from semibot.session import open_session_manager
from semibot.session.opening import existing_directory, on_disk

from .models import PlaneModels

log: Final = get_logger(__name__)


async def run_vm(settings: VmSettings, ports: Ports | None = None) -> None:
    """Run a user's sessions for a host, until cancelled or refused for good.

    While the link is down the sessions run on, and it is dialled again for ever. When it
    is cancelled the runs are interrupted, what is to be said is delivered if the host is
    there, and the link is closed; all of that is bounded by ``stop_bound`` and
    ``channel.close``.

    Args:
        settings: How it is to run.
        ports: The seams; real ones by default.

    Raises:
        LinkRefused: If the host refuses this VM; dialling again would not help.
        UsageError: If a tool in ``allow`` does not exist.
        WorkspaceUnusable: If the workspace is missing.
        StoreError: If another VM has the state directory.
    """
    ports = ports or live_ports()
    bounds = settings.deadlines
    # What the user has to mend is said before anybody is dialled.
    workspace = await on_disk(ports, bounds, existing_directory, settings.workspace)
    models = PlaneModels(settings.model)
    agent = GraphAgent(grants=parse_grants(settings.allow), resolve=models.resolve)
    async with (
        open_watchdog(ports) as watchdog,
        open_control_channel(
            settings.url,
            user_id=settings.user_id,
            token=settings.token,
            ticket=settings.ticket,
            state_dir=settings.state_dir,
            deadlines=bounds,
            ports=ports,
            watchdog=watchdog,
        ) as channel,
        open_session_manager(
            channel,
            adapters={"graph": agent, "openclaw": openclaw_agent()},
            workspace=workspace,
            state_dir=settings.state_dir,
            on_configure=models.configure,
            deadlines=bounds,
            ports=ports,
        ),
    ):
        log.info("VM runs", user_id=settings.user_id, workspace=str(workspace))
        # Unbounded on purpose: until somebody ends it.
        await trio.sleep_forever()
