"""``semibot serve``: its options, and what they may be."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("serve", short_help="Run a host: web page, API and VMs.")
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Address to listen on; by default 127.0.0.1. Any that others can reach needs JWT_SECRET.",
)
@click.option("--port", type=click.IntRange(0, 65535), metavar="PORT", help="By default 8080.")
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where everything is kept; by default the user's data directory.",
)
@click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory that the agent works in; by default one in the data directory.",
)
@click.option(
    "--allow",
    "grants",
    metavar="LIST",
    multiple=True,
    help="Tools to allow, separated by commas: write, run, write:DIRECTORY, run:PROGRAM. "
    "May be given several times.",
)
@click.option("--open", "is_opened", is_flag=True, help="Open the page in a browser.")
@click.option("--verbose", "is_verbose", is_flag=True, help="Show logs on stderr.")
def command(
    *,
    host: str | None,
    port: int | None,
    data_dir: Path | None,
    workspace: Path | None,
    grants: tuple[str, ...],
    is_opened: bool,
    is_verbose: bool,
) -> int:
    """Run a host on this machine: a web page to talk to an agent, and an API.

    Prints `semibot listening on http://HOST:PORT` once it answers. Ctrl-C or SIGTERM lets
    answers end, 30 seconds at most, and leaves; a second one leaves within two seconds.

    Options win over SEMIBOT_* variables, these over semibot.toml in the data directory.

    Exit codes: 0 stopped, 1 failed, 2 usage, 78 something must be set up first, 130 and 143
    stopped at once by a second Ctrl-C or SIGTERM.
    """
    from semibot.config.loader import HostFlags

    from .serving import run_host

    return run_host(
        HostFlags(
            host=host,
            port=port,
            data_dir=data_dir,
            workspace=workspace,
            allow=tuple(
                name.strip() for entry in grants for name in entry.split(",") if name.strip()
            ),
        ),
        is_opened=is_opened,
        is_verbose=is_verbose,
    )
