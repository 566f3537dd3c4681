"""The checks of ``semibot doctor`` about hosts: could one run here, and does one?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio

from semibot.config.loader import HostFlags, load_host_settings
from semibot.config.settings import HostSettings
from semibot.errors import ConfigError, HostUnreachable
from semibot.host.safety import check_safety, has_local_user
from semibot.ports import Ports
from semibot.store._directory import find_holder
from semibot.wire.codec import JsonValue

from .findings import Check
from .remote import ask_readiness

ANSWER_BOUND: Final = 3.0
"""How long a host may take to say whether it is ready, in seconds."""

_MEND: Final = "Set SEMIBOT_URL to the address of a host, or SEMIBOT_PORT to a port that is free."


async def check_host(ports: Ports, data_dir: Path) -> tuple[Check, ...]:
    """Make all checks about hosts; asks nobody but the address that a host here would have.

    Args:
        ports: For the environment.
        data_dir: The data directory if nobody names one.
    """
    try:
        settings = load_host_settings(ports.environment, HostFlags(), default_data_dir=data_dir)
    except ConfigError as exc:
        return (Check("host settings", "fail", str(exc), "Mend it; `semibot serve` needs it."),)
    return (
        check_data_dir(settings.data_dir),
        check_access(settings),
        check_bootstrap(settings),
        await check_address(settings, ports.environment),
    )


def check_data_dir(path: Path) -> Check:
    """Say who uses the data directory, and whether a host could."""
    name, hint = "data directory", "Choose another with --data-dir or SEMIBOT_DATA_DIR."
    try:
        holder = find_holder(path)
        if holder is not None:
            pid = "" if holder.pid is None else f", process {holder.pid}"
            return Check(name, "ok", f"{path}, in use by the host that runs{pid}")
        if path.exists() and not path.is_dir():
            return Check(name, "fail", f"{path} is not a directory", hint)
        place = next(each for each in (path, *path.parents) if each.is_dir())
    except OSError as exc:
        return Check(name, "fail", f"{path}: {exc.strerror}", hint)
    if not os.access(place, os.W_OK | os.X_OK):
        return Check(name, "fail", f"{place} cannot be written", hint)
    return Check(name, "ok", str(path) if place == path else f"{path}, made by the first host")


def check_access(settings: HostSettings) -> Check:
    """Say who may use a host with these settings."""
    try:
        check_safety(settings)
    except ConfigError as exc:
        return Check("access", "fail", str(exc), "Set JWT_SECRET, or unset what asks for it.")
    if has_local_user(settings):
        return Check("access", "ok", f"one local user, on {settings.host}")
    return Check("access", "ok", f"users with tokens, JWT_SECRET is good, on {settings.host}")


def check_bootstrap(settings: HostSettings) -> Check:
    """Look for the program that starts VMs."""
    if settings.vm_bootstrap_cmd is None:
        return Check("vm", "ok", "a host starts `semibot vm`")
    word = settings.vm_bootstrap_cmd[0]
    program = shutil.which(word, path=settings.environment.get("PATH"))
    if program is None:
        hint = "Set VM_BOOTSTRAP_CMD to a command that exists, or unset it."
        return Check("vm", "fail", f"there is no program {word}", hint)
    return Check("vm", "ok", f"VM_BOOTSTRAP_CMD starts {program}")


async def check_address(settings: HostSettings, environment: Mapping[str, str]) -> Check:
    """Ask the host that ``semibot chat`` would talk to, or say that its port is free."""
    near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    near = f"[{near}]" if ":" in near and not near.startswith("[") else near
    own = f"http://{near}:{settings.port}"
    url = environment.get("SEMIBOT_URL") or own
    problem = "it takes too long"
    with trio.move_on_after(ANSWER_BOUND):  # noqa: ASYNC912 - asking is a checkpoint
        try:
            answer = await ask_readiness(url, is_near=url == own)
        except HostUnreachable as exc:
            problem = exc.reason
        else:
            return _judge(url, answer, is_own=url == own)
    return Check("host", "fail", f"nothing useful answers at {url}: {problem}", _MEND)


def _judge(url: str, answer: tuple[int, JsonValue] | None, *, is_own: bool) -> Check:
    if answer is None and is_own:
        found = f"none runs at {url}, and the port is free"
        return Check("host", "ok", found, "Start one with `semibot serve`.")
    if answer is None:
        return Check("host", "fail", f"none runs at {url}", _MEND)
    status, said = answer
    if not isinstance(said, Mapping) or "success" not in said:
        return Check("host", "fail", f"what answers at {url} is no host", _MEND)
    if status == 200:
        return Check("host", "ok", f"one runs at {url}, and is ready")
    error = said.get("error")
    text = error.get("message") if isinstance(error, Mapping) else None
    return Check("host", "warn", f"one runs at {url}: {text}", "Wait, or look at its logs.")
