"""``semibot vm``: its options, and what they may be."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("vm", short_help="Run agents on this machine for a host.")
@click.option(
    "--url",
    metavar="URL",
    help="The host, such as https://host.example; by default CONTROL_PLANE_WS.",
)
@click.option(
    "--token",
    metavar="TOKEN",
    help="The VM token; by default VM_TOKEN, which other users of this machine cannot see.",
)
@click.option(
    "--user",
    "user_id",
    metavar="ID",
    help="Whose VM it is; by default VM_USER_ID, and else the user that the token names.",
)
@click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory that agents work in; by default SEMIBOT_WORKSPACE, and else the current one.",
)
@click.option(
    "--state-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory for sessions and for reports that the host does not have yet, of one VM "
    "at a time; by default SEMIBOT_STATE_DIR, and else one of the user.",
)
@click.option(
    "--allow",
    "grants",
    metavar="LIST",
    multiple=True,
    help="Tools to allow, separated by commas: write, run, write:DIRECTORY, run:PROGRAM. "
    "May be given several times; by default SEMIBOT_ALLOW.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="Such as openai:gpt-5, for agents that name none; by default SEMIBOT_MODEL.",
)
@click.option("--verbose", "is_verbose", is_flag=True, help="Log what is merely of interest, too.")
def command(
    *,
    url: str | None,
    token: str | None,
    user_id: str | None,
    workspace: Path | None,
    state_dir: Path | None,
    grants: tuple[str, ...],
    model: str | None,
    is_verbose: bool,
) -> int:
    """Run a user's agents on this machine, for a host somewhere else.

    The VM connects to the host and stays; a lost connection is made again for ever, and
    agents work on meanwhile. Ctrl-C or SIGTERM ends what runs, tells the host, and leaves;
    a second one leaves within two seconds.

    Exit codes: 0 told to end, 1 the host refuses this VM or something broke, 2 usage,
    78 something must be set up first, 130 and 143 ended by a second Ctrl-C or SIGTERM.
    """
    from .vm_process import run_vm_process

    return run_vm_process(
        url=url,
        token=token,
        user_id=user_id,
        workspace=workspace,
        state_dir=state_dir,
        allow=grants,
        model=model,
        is_verbose=is_verbose,
    )
