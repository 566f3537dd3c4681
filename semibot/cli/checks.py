"""The checks of ``semibot doctor``: each looks at one thing and says what to do about it."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from rich.console import Console
from rich.text import Text

from semibot.adapters.openclaw import COMMAND_VARIABLE
from semibot.config import Deadlines
from semibot.errors import ChildStartFailed, DeadlineExceeded, ModelNotConfigured
from semibot.live import live_ports
from semibot.models import resolve_model
from semibot.models.openai import read_settings
from semibot.ports import Ports
from semibot.tools.processes import run_child
from semibot.workspace.state import STATE_DIRECTORY

from . import exits
from .clean import clean
from .directories import default_data_dir
from .findings import Check, Status
from .host_checks import check_host
from .logs import configure_logs
from .screen import BAD, GOOD, ODD

_SET: Final = "set (hidden)"
_UNSET: Final = "not set"
_STYLES: Final[Mapping[Status, str]] = {"ok": GOOD, "warn": ODD, "fail": BAD}


def run_doctor(workspace: Path) -> int:
    """Make all checks, show them and return the exit code.

    Args:
        workspace: The directory that an agent would work in.
    """
    configure_logs(is_verbose=False)
    ports = live_ports()
    checks = trio.run(make_checks, ports, workspace, default_data_dir())
    _show(checks, ports.environment)
    has_failed = any(check.status == "fail" for check in checks)
    return exits.CONFIGURATION if has_failed else exits.COMPLETED


async def make_checks(ports: Ports, workspace: Path, data_dir: Path) -> tuple[Check, ...]:
    """Make all checks, one after the other.

    Args:
        ports: For the environment, and for starting a child.
        workspace: The directory that an agent would work in.
        data_dir: The data directory of a host if nobody names one.
    """
    return (
        check_python(),
        check_platform(),
        await check_children(ports),
        check_workspace(workspace),
        await check_model(ports),
        check_bridge(ports.environment),
        *await check_host(ports, data_dir),
    )


def _show(checks: tuple[Check, ...], environment: Mapping[str, str]) -> None:
    """Show what was found, with what to do beneath; no line is cut, so paths can be copied."""
    console = Console(
        color_system=None if environment.get("NO_COLOR") else "auto",
        highlight=False,
        soft_wrap=True,
    )
    width = max(len(check.name) for check in checks)
    for check in checks:
        status = (f"{check.status:4}", _STYLES[check.status])
        console.print(Text.assemble(f"{check.name:{width}}  ", status, f"  {clean(check.found)}"))
        if check.hint:
            console.print(Text(f"{'':{width}}        {clean(check.hint)}"))


def check_python() -> Check:
    """Look at the interpreter."""
    implementation = platform.python_implementation()
    found = f"{implementation} {platform.python_version()} at {sys.executable}"
    if implementation != "CPython":
        return Check("python", "warn", found, "semibot is tested with CPython only.")
    return Check("python", "ok", found)


def check_platform() -> Check:
    """Look at the operating system."""
    found = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if os.name != "posix":
        return Check("platform", "fail", found, "Use Linux or macOS; on Windows, WSL.")
    return Check("platform", "ok", found)


async def check_children(ports: Ports) -> Check:
    """Start a child the strong way, to see whether it works here."""
    weaker = "process groups: if semibot is killed with SIGKILL, its children may live on"
    if sys.platform != "linux":
        return Check("child processes", "warn", weaker, "A guard process needs Linux.")
    try:
        await run_child(
            [sys.executable, "-I", "-S", "-c", ""],
            ports=ports,
            deadlines=Deadlines(),
            environment={},
            tier="guard",
        )
    except (ChildStartFailed, DeadlineExceeded) as exc:
        return Check("child processes", "warn", weaker, str(exc))
    return Check("child processes", "ok", "guarded: children die with semibot")


def check_workspace(workspace: Path) -> Check:
    """Write a file where sessions would be kept, and take it away again."""
    state = workspace / STATE_DIRECTORY
    where = state if state.exists() else workspace
    try:
        with tempfile.NamedTemporaryFile(dir=where, prefix=".semibot-doctor-"):
            pass
    except OSError as exc:
        return Check(
            "workspace",
            "fail",
            f"{where}: {exc.strerror}",
            "Choose a directory that you may write in, with --workspace.",
        )
    return Check("workspace", "ok", f"{workspace.resolve()} can be written")


async def check_model(ports: Ports) -> Check:
    """Say which model would answer, and look at what it needs; asks no server."""
    key = ports.environment.get("OPENAI_API_KEY", "").strip()
    base_url = ports.environment.get("OPENAI_BASE_URL", "").strip()
    async with resolve_model(None)(ports, Deadlines()) as model:
        name = model.name
    if not key and not base_url:
        return Check(
            "model",
            "warn",
            f"{name}: no language model is connected",
            "Set OPENAI_API_KEY, or OPENAI_BASE_URL for any compatible server.",
        )
    found = (
        f"{name}, OPENAI_API_KEY {_SET if key else _UNSET}, OPENAI_BASE_URL {base_url or _UNSET}"
    )
    try:
        read_settings(name, ports.environment)
    except ModelNotConfigured as exc:
        return Check("model", "fail", found, str(exc))
    return Check("model", "ok", found)


def check_bridge(environment: Mapping[str, str]) -> Check:
    """Look for the program that the runtime openclaw would start."""
    text = environment.get(COMMAND_VARIABLE, "")
    try:
        words = shlex.split(text)
    except ValueError as exc:
        return Check("bridge", "fail", f"{COMMAND_VARIABLE}: {exc}", "Mend its quotes.")
    if not words:
        return Check("bridge", "ok", f"{COMMAND_VARIABLE} is not set; only openclaw needs it")
    program = shutil.which(words[0], path=environment.get("PATH"))
    if program is None:
        return Check(
            "bridge",
            "fail",
            f"there is no program {words[0]}",
            f"Set {COMMAND_VARIABLE} to a command that exists.",
        )
    return Check("bridge", "ok", f"{COMMAND_VARIABLE} starts {program}")
