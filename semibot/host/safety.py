"""What must hold before a host binds anything, and the key that it signs with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from semibot.config.settings import HostSettings
from semibot.errors import ConfigError
from semibot.ports import Disk, IdSource
from semibot.secret import Secret
from semibot.security.principals import is_loopback as is_loopback
from semibot.security.tokens import check_secret
from semibot.workspace.files import open_regular, write_atomically

KEY_FILE: Final = "host.key"
"""Name of the file in the data directory that holds a key made here."""


def has_local_user(settings: HostSettings) -> bool:
    """Return whether everybody who can reach the host is its one local user.

    Not with a key of one's own: whoever sets one has users in mind, and perhaps a proxy, which
    reaches loopback for everybody.
    """
    is_private = is_loopback(settings.host) and settings.run_mode == "development"
    return is_private and settings.jwt_secret is None


def check_safety(settings: HostSettings) -> None:
    """Refuse to run where strangers could act as users.

    Raises:
        ConfigError: If the host can be reached from elsewhere, or runs in production, and
            ``JWT_SECRET`` is missing, shorter than 32 bytes, or one that everybody knows.
    """
    if settings.jwt_secret is None:
        if has_local_user(settings):
            return
        where = "in production" if settings.run_mode == "production" else f"on {settings.host}"
        raise ConfigError(
            f"a host {where} needs JWT_SECRET: at least 32 bytes, such as from "
            "`openssl rand -hex 32`; or let it listen on 127.0.0.1 only"
        )
    check_secret(settings.jwt_secret)


def signing_key(settings: HostSettings, ids: IdSource, disk: Disk) -> Secret:
    """Return the key of all tokens: the configured one, else one that is made once; blocking.

    Args:
        settings: Of the host, who has its data directory.
        ids: Where the 256 random bits come from.
        disk: What makes the file last.

    Raises:
        ConfigError: If the key file cannot be read or made, or others may read it.
    """
    if settings.jwt_secret is not None:
        return settings.jwt_secret
    path = settings.data_dir / KEY_FILE
    try:
        return _read_key(path) or _make_key(path, ids, disk)
    except OSError as exc:
        raise ConfigError(f"cannot read or make {path}: {exc.strerror}") from exc


def _read_key(path: Path) -> Secret | None:
    try:
        descriptor = open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ConfigError(f"{path} may be read by others: delete it, and a new one is made")
        key = Secret(file.read(1024).decode("ascii", "replace").strip())
    return check_secret(key, str(path))


def _make_key(path: Path, ids: IdSource, disk: Disk) -> Secret:
    key = Secret(ids.new_id() + ids.new_id())
    write_atomically(path, key.reveal().encode() + b"\n", sync=disk.sync)
    return key
