"""``semibot chat``: its options, and what they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

RUNTIME_NAMES: Final = ("graph", "semigraph", "openclaw")
"""What ``--runtime`` takes; a test holds it against the table, which is slow to import."""


@click.command("chat", short_help="Talk to an agent.")
@click.argument("message", required=False)
@click.option("--local", "is_local", is_flag=True, help="Run the agent in this process.")
@click.option(
    "--url",
    metavar="URL",
    help="Host to talk to; by default SEMIBOT_URL, and else http://127.0.0.1:8080.",
)
@click.option(
    "--runtime",
    type=click.Choice(RUNTIME_NAMES),
    default="graph",
    show_default=True,
    help="What drives the agent; semigraph is another name for graph.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="Such as openai:gpt-5. By default what the environment configures, "
    "and else a demonstration without a model.",
)
@click.option(
    "--workspace",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Directory that the agent works in; by default the current one.",
)
@click.option(
    "--session", "session_id", metavar="ID", help="Continue the session of that id, or begin one."
)
@click.option(
    "--allow",
    "grants",
    metavar="LIST",
    multiple=True,
    help="Tools to allow, separated by commas: write, run, write:DIRECTORY, run:PROGRAM. "
    "May be given several times.",
)
@click.option("--json", "is_json", is_flag=True, help="Write one event a line to stdout.")
@click.option("--verbose", "is_verbose", is_flag=True, help="Show logs and tokens on stderr.")
def command(
    *,
    message: str | None,
    is_local: bool,
    url: str | None,
    runtime: str,
    model: str | None,
    workspace: Path,
    session_id: str | None,
    grants: tuple[str, ...],
    is_json: bool,
    is_verbose: bool,
) -> int:
    """Talk to an agent.

    With MESSAGE, or with a message piped in (all of standard input is one message), it
    is answered and the program ends. Else messages are read from the terminal until
    Ctrl-D or /exit.

    The answer goes to standard output, all about it to standard error. Ctrl-C stops an
    answer and shows what was stopped; twice it leaves.

    It talks to a host, which `semibot serve` starts; with --local the agent runs right here,
    in a directory of this machine.

    Exit codes: 0 answered, 1 the run failed, 2 usage, 78 something must be set up first,
    130 interrupted by Ctrl-C, 143 by SIGTERM.
    """
    if is_local and url is not None:
        raise click.UsageError("--local runs the agent right here, and --url on a host: which?")
    if model is not None and not model.strip():
        raise click.UsageError("--model needs a name, such as openai:gpt-5")
    if not is_local and (model is not None or grants or workspace != Path()):
        raise click.UsageError(
            "--model, --workspace and --allow need --local; on a host, whoever runs it decides"
        )
    from .talk import ChatOptions, run_chat

    return run_chat(
        ChatOptions(
            runtime=runtime,
            model=model,
            workspace=workspace,
            session_id=session_id,
            grants=tuple(
                name.strip() for entry in grants for name in entry.split(",") if name.strip()
            ),
            is_json=is_json,
            is_verbose=is_verbose,
            message=message,
            url=url if is_local or url is not None else "",
        )
    )
