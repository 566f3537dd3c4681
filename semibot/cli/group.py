"""The program itself: find a command, run it, and end with its exit code.

Commands are imported when they are used, and what they need when they run: asking for
help must not pay for Trio, a model's SDK or a terminal library.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final, NoReturn, final

import click

from . import exits
from .clean import clean
from .failures import explain

_COMMANDS: Final = ("serve", "chat", "vm", "admin", "doctor", "version")


@final
class _LazyGroup(click.Group):
    """A group whose commands are modules of this package, each with a ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"semibot.cli.{cmd_name}").command
        return command


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from .version import version_line

        click.echo(version_line())
        ctx.exit()


@click.group("semibot", cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions that matter, and exit.",
)
def program() -> None:
    """Run LLM agents that do not leak, do not lose and do not hang."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; a user's mistake raises nothing.

    Args:
        arguments: The words after the program's name.
    """
    try:
        code: object = program.main(list(arguments), prog_name="semibot", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return exits.INTERRUPTED
    except (Exception, BaseExceptionGroup) as exc:
        explanation = explain(exc)
        if explanation is None:
            raise
        lines, exit_code = explanation
        for line in lines:
            click.echo(clean(line), err=True)
        return exit_code
    return code if isinstance(code, int) else exits.COMPLETED


def main() -> NoReturn:
    """Run the command line and end the process."""
    sys.exit(run(sys.argv[1:]))
