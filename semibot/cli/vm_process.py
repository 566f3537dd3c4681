"""The process behind ``semibot vm``: settings, logs, signals and the VM itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import trio

from semibot.config.settings import VmSettings
from semibot.live import live_ports
from semibot.ports import Ports
from semibot.vm import make_vm_settings, run_vm

from . import exits
from .clean import clean
from .interrupts import open_interrupts
from .logs import configure_logs


def run_vm_process(
    *,
    url: str | None,
    token: str | None,
    user_id: str | None,
    workspace: Path | None,
    state_dir: Path | None,
    allow: Sequence[str],
    model: str | None,
    is_verbose: bool,
) -> int:
    """Be a VM until a signal ends it, and return the exit code.

    Args:
        url: See :func:`semibot.vm.make_vm_settings`, as the others.
        token: The VM token.
        user_id: Whose VM it is.
        workspace: Where agents work.
        state_dir: Where it keeps its state.
        allow: Tools that need not ask.
        model: Model for agents that name none.
        is_verbose: Whether to log what is merely of interest.

    Raises:
        SemibotError: If it cannot be a VM, or the host refuses it.
    """
    ports = live_ports()
    settings = make_vm_settings(
        ports.environment,
        url=url,
        token=token,
        user_id=user_id,
        workspace=workspace,
        state_dir=state_dir,
        allow=allow,
        model=model,
    )
    configure_logs(is_verbose=is_verbose)
    return trio.run(_serve, settings, ports)


async def _serve(settings: VmSettings, ports: Ports) -> int:
    async with open_interrupts() as interrupts:
        click.echo(
            clean(f"VM of user {settings.user_id} in {settings.workspace}; Ctrl-C ends it"),
            err=True,
        )
        await run_vm(settings, ports)
    if interrupts.was_hurried and interrupts.exit_code is not None:
        return interrupts.exit_code
    return exits.COMPLETED
