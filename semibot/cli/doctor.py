"""``semibot doctor``: its options."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("doctor", short_help="Check what semibot needs on this machine.")
@click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Directory that an agent would work in; by default the current one.",
)
def command(*, workspace: Path) -> int:
    """Check what semibot needs on this machine, and say what to do about the rest.

    Asks nobody but the host that `semibot chat` would talk to. Exit codes: 0 if nothing
    fails, 78 if something must be set up first.
    """
    from .checks import run_doctor

    return run_doctor(workspace)
