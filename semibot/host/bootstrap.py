"""What a VM is started with: its command, its environment, its directories."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from semibot.config.settings import LOCAL_USER, HostSettings
from semibot.secret import Secret
from semibot.store.base import VmRow

INHERITED: Final = frozenset(
    {
        "PATH",
        "HOME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "NODE_EXTRA_CA_CERTS",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "OPENAI_BASE_URL",
        "SEMIBOT_MODEL",
    }
)
"""Variables of the host that a VM gets as well; no key of a provider is ever among them."""

INHERITED_PREFIXES: Final = ("LC_", "OPENCLAW_")
"""Beginnings of the names of further ones; the latter are what bridges are set up with."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def vm_command(settings: HostSettings) -> tuple[str, ...]:
    """Return what starts a VM, as words."""
    return settings.vm_bootstrap_cmd or (sys.executable, "-m", "semibot", "vm")


def vm_environment(
    settings: HostSettings,
    vm: VmRow,
    *,
    url: str,
    token: Secret,
    ticket: Secret,
    is_forced: bool,
) -> Mapping[str, str]:
    """Return the whole environment of a VM (protocol section 9).

    Args:
        settings: Of the host.
        vm: The row.
        url: Where the VM is to dial.
        token: The VM token.
        ticket: The ticket of this attempt.
        is_forced: Whether an instance that may be running is to be replaced.
    """
    inherited = {
        key: value
        for key, value in settings.environment.items()
        if key in INHERITED or key.startswith(INHERITED_PREFIXES)
    }
    own = {
        "CONTROL_PLANE_WS": url,
        "VM_USER_ID": vm.user_id,
        "VM_TOKEN": token.reveal(),
        "VM_TICKET": ticket.reveal(),
        "VM_ORG_ID": vm.org_id,
        "VM_INSTANCE_ID": vm.id,
        "VM_MODE": vm.mode,
        "FORCE_RESTART_RUNTIME": "true" if is_forced else "false",
    }
    if vm.mode == "local":  # elsewhere the directories of this machine mean nothing
        own["SEMIBOT_WORKSPACE"] = str(workspace_of(settings, vm.user_id))
        own["SEMIBOT_STATE_DIR"] = str(state_dir_of(settings, vm.user_id))
    if settings.allow:
        own["SEMIBOT_ALLOW"] = ",".join(settings.allow)
    if settings.model is not None:
        own["SEMIBOT_MODEL"] = settings.model
    return {**inherited, **own}


def workspace_of(settings: HostSettings, user_id: str) -> Path:
    """Return where the agents of a user work."""
    if user_id == LOCAL_USER and settings.workspace is not None:
        return settings.workspace
    return settings.data_dir / "workspaces" / _directory_name(user_id)


def state_dir_of(settings: HostSettings, user_id: str) -> Path:
    """Return where a user's VM keeps outbox and sessions.

    It is the user's, not the row's: a later VM finds what an earlier one has left, and the
    lock in it keeps two from running at once.
    """
    return settings.data_dir / "vms" / _directory_name(user_id)


def prepare_directories(settings: HostSettings, user_id: str) -> None:
    """Make a user's directories; blocking.

    Raises:
        OSError: If the disk refuses.
    """
    state_dir_of(settings, user_id).mkdir(mode=0o700, parents=True, exist_ok=True)
    workspace_of(settings, user_id).mkdir(parents=True, exist_ok=True)


def _directory_name(user_id: str) -> str:
    """Return a user id as a name that is safe in a path, and different for different users."""
    if _PLAIN.fullmatch(user_id):
        return user_id
    return "u." + hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()[:40]
