"""Make a VM's settings from its environment (protocol section 9) and from flags."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import platformdirs

from semibot.config import Deadlines
from semibot.config.settings import VmSettings
from semibot.errors import RemoteProtocolError, UsageError
from semibot.secret import Secret
from semibot.wire.codec import load_json

LINK_PATH: Final = "/ws/vm"
"""Where hosts take links."""

_SCHEMES: Final[Mapping[str, str]] = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def make_vm_settings(
    environment: Mapping[str, str],
    *,
    url: str | None = None,
    token: str | None = None,
    user_id: str | None = None,
    workspace: Path | None = None,
    state_dir: Path | None = None,
    allow: Sequence[str] = (),
    model: str | None = None,
    deadlines: Deadlines | None = None,
) -> VmSettings:
    """Return how a VM is to run; what is given comes before the environment.

    Args:
        environment: The program's environment variables.
        url: The host, as ``CONTROL_PLANE_WS``; ``http`` and ``https`` are understood.
        token: The VM token, as ``VM_TOKEN``.
        user_id: Whose VM it is, as ``VM_USER_ID``; else the token says.
        workspace: Where agents work, as ``SEMIBOT_WORKSPACE``; else the current directory.
        state_dir: Where it keeps its state, as ``SEMIBOT_STATE_DIR``; else a directory of
            the user or instance, where programs of this machine keep theirs.
        allow: Tools that need not ask, as ``SEMIBOT_ALLOW`` with commas.
        model: Model for agents that name none, as ``SEMIBOT_MODEL``.
        deadlines: The bounds.

    Raises:
        UsageError: If something is missing or makes no sense; says what to give.
    """

    def say(variable: str) -> str | None:
        return environment.get(variable, "").strip() or None

    address = url or say("CONTROL_PLANE_WS")
    secret = token or say("VM_TOKEN")
    if not address:
        raise UsageError("which host? give --url, or set CONTROL_PLANE_WS")
    if not secret:
        raise UsageError(
            "a VM needs a token: set VM_TOKEN, or give --token; "
            "`semibot admin vm-token` on the host makes one"
        )
    user = user_id or say("VM_USER_ID") or user_of_token(secret)
    if user is None:
        raise UsageError("whose VM is it? the token does not say; give --user, or set VM_USER_ID")
    ticket = say("VM_TICKET")
    place = workspace or Path(say("SEMIBOT_WORKSPACE") or ".")
    state = state_dir or _state_dir(say("SEMIBOT_STATE_DIR"), say("VM_INSTANCE_ID") or user)
    if state.absolute() == place.absolute():
        raise UsageError("the state directory must not be the workspace: tools work there")
    return VmSettings(
        url=link_url(address),
        user_id=user,
        token=Secret(secret),
        ticket=None if ticket is None else Secret(ticket),
        workspace=place,
        state_dir=state,
        allow=split_list(allow) or split_list([environment.get("SEMIBOT_ALLOW", "")]),
        model=model or say("SEMIBOT_MODEL"),
        deadlines=deadlines or Deadlines(),
    )


def split_list(entries: Sequence[str]) -> tuple[str, ...]:
    """Return the names in *entries*, each of which may hold several with commas."""
    return tuple(name.strip() for entry in entries for name in entry.split(",") if name.strip())


def link_url(address: str) -> str:
    """Return the WebSocket URL of a host.

    Args:
        address: With ``http``, ``https``, ``ws`` or ``wss``; with or without ``/ws/vm``.

    Raises:
        UsageError: If it is no such URL.
    """
    try:
        parts = urlsplit(address)
        is_known = parts.scheme in _SCHEMES and bool(parts.hostname)
    except ValueError:
        is_known, parts = False, urlsplit("")
    if not is_known:
        raise UsageError("the host's URL looks like https://host.example or ws://127.0.0.1:8080")
    path = parts.path.rstrip("/")
    if not path.endswith(LINK_PATH) and (not path or parts.scheme in {"http", "https"}):
        path += LINK_PATH
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, parts.query, ""))


def user_of_token(token: str) -> str | None:
    """Return the ``userId`` that a token names; nothing is verified, which is the host's task.

    Args:
        token: A JWT.
    """
    payload = token.partition(".")[2].partition(".")[0]
    try:
        claims = load_json(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (RemoteProtocolError, binascii.Error, ValueError):
        return None
    user = claims.get("userId") if isinstance(claims, Mapping) else None
    return user if isinstance(user, str) and user else None


def _state_dir(given: str | None, owner: str) -> Path:
    if given is not None:
        return Path(given)
    # One directory name per owner, whatever the owner is called.
    name = owner if _PLAIN_NAME.fullmatch(owner) else hashlib.sha256(owner.encode()).hexdigest()
    return platformdirs.user_state_path("semibot", appauthor=False) / "vms" / name
