"""``semibot version``: what is running here, in one line."""

from __future__ import annotations

import platform
from importlib import metadata

import click

import semibot


def version_line() -> str:
    """Return the versions of semibot, Python and Trio; imports none of them to ask."""
    trio = metadata.version("trio")
    return f"semibot {semibot.__version__}, Python {platform.python_version()}, trio {trio}"


@click.command("version", short_help="Show the versions that matter.")
def command() -> None:
    """Show the versions of semibot, Python and Trio in one line."""
    click.echo(version_line())
