"""What ``semibot admin`` does to a data directory."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from semibot.config.loader import HostFlags, load_host_settings
from semibot.config.settings import LOCAL_USER, HostSettings
from semibot.errors import DataDirectoryInUse, UsageError
from semibot.host.host import DATABASE_FILE
from semibot.host.safety import check_safety, has_local_user, signing_key
from semibot.live import live_ports
from semibot.ports import Ports
from semibot.security.tokens import Tokens
from semibot.store.sqlite import open_sqlite_store

from . import exits
from .directories import default_data_dir
from .logs import configure_logs


def print_vm_token(user_id: str, data_dir: Path | None) -> int:
    """Turn a user's VM row ``external``, and print a token for it.

    Args:
        user_id: The user.
        data_dir: The host's data directory, if not the usual one.

    Raises:
        SemibotError: If the data directory cannot be used, or the user is unknown.
    """
    configure_logs(is_verbose=False)
    ports = live_ports()
    settings = load_host_settings(
        ports.environment, HostFlags(data_dir=data_dir), default_data_dir=default_data_dir()
    )
    check_safety(settings)
    token = trio.run(_make_external, settings, ports, user_id)
    print(token)
    if sys.stderr is not None and sys.stderr.isatty():
        print("start the VM with: semibot vm --url URL --token TOKEN", file=sys.stderr)
    return exits.COMPLETED


async def _make_external(settings: HostSettings, ports: Ports, user_id: str) -> str:
    try:
        return await _with_store(settings, ports, user_id, takes_lock=True)
    except DataDirectoryInUse:  # by a host that runs: the row is changed under its eyes
        return await _with_store(settings, ports, user_id, takes_lock=False)


async def _with_store(
    settings: HostSettings, ports: Ports, user_id: str, *, takes_lock: bool
) -> str:
    async with open_sqlite_store(
        settings.data_dir / DATABASE_FILE,
        ports=ports,
        deadlines=settings.deadlines,
        takes_lock=takes_lock,
    ) as store:
        if user_id == LOCAL_USER and has_local_user(settings):
            await store.ensure_user(LOCAL_USER, LOCAL_USER, vm_mode="local")
        user = await store.get_user(user_id)
        if user is None:
            raise UsageError(f"the host knows no user {user_id!r}; who has never come has no VM")
        key = await ports.threads.run_sync(
            signing_key, settings, ports.ids, ports.disk, limiter="files"
        )
        await store.ensure_vm(user_id, ports.ids.new_id(), "external")
    tokens = Tokens(key, ports.wall_clock, settings.vm_token_ttl)
    return tokens.make_vm_token(user.id, user.org_id)
