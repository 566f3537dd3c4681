# ruff: noqa: T201 - it says where it listens
"""A real host in a process of its own, with users made beforehand, each with a VM to come.

``python plain_host.py DATA_DIR USERS PORT DEADLINES``: users are called ``user-0`` and so on,
port 0 takes a free one, DEADLINES is a JSON object of fields of
:class:`semibot.config.Deadlines`. Prints ``listening on PORT``. Ends with whoever started it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import trio

from semibot.cli.logs import configure_logs
from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.host.host import DATABASE_FILE, open_host
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.secret import Secret
from semibot.store.sqlite import open_sqlite_store


def end_with_parent() -> None:
    """End this process once its stdin is closed, as it is when whoever started it has gone."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


async def main(data_dir: Path, users: int, port: int, deadlines: Deadlines) -> None:
    ports = live_ports()
    settings = HostSettings(
        data_dir=data_dir,
        run_mode="production",  # so that there is no local user, and no VM is started
        jwt_secret=Secret(os.environ["PLAIN_HOST_SECRET"]),
        deadlines=deadlines,
    )
    if not (settings.data_dir / DATABASE_FILE).exists():
        async with open_sqlite_store(
            settings.data_dir / DATABASE_FILE, ports=ports, deadlines=deadlines
        ) as store:
            for number in range(users):
                await store.ensure_user(f"user-{number}", "bench", vm_mode="external")
                await store.ensure_vm(f"user-{number}", f"vm-{number}", "external")
    async with open_host(settings, ports=ports) as host:
        server = open_server(host.asgi, "127.0.0.1", port, deadlines=deadlines, ports=ports)
        async with server as listening:
            await host.announce(f"http://127.0.0.1:{listening.port}")
            print("listening on", listening.port, flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    end_with_parent()
    configure_logs(is_verbose=False)
    trio.run(
        main,
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        Deadlines(**json.loads(sys.argv[4])),
    )
