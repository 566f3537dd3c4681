"""``semibot admin``: what only whoever runs a host may do."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("admin", short_help="Look after a host.")
def command() -> None:
    """Look after a host: what needs its data directory, running or not."""


@command.command("vm-token", short_help="Make a token for a VM that you start yourself.")
@click.option("--user", "user_id", metavar="ID", default="local", show_default=True)
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The host's data directory; by default as for semibot serve.",
)
def vm_token(*, user_id: str, data_dir: Path | None) -> int:
    """Make a VM token and print it; the user's VM is from then on started by hand.

    The host starts no VM for this user any more. A running one is replaced as soon as
    yours connects: semibot vm --url URL --token TOKEN
    """
    from .administration import print_vm_token

    return print_vm_token(user_id, data_dir)
