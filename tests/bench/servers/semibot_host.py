"""The real host on a free port: what ``semibot serve`` runs, with users made beforehand.

Everything counts: SQLite on disk with ``synchronous=FULL``, acknowledgements, checks of
every event, replay. Prints ``listening on PORT``. Ends when it is killed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio
from parent import end_with_parent

from semibot.cli.logs import configure_logs
from semibot.config.settings import HostSettings
from semibot.host.host import DATABASE_FILE, open_host
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.secret import Secret
from semibot.store.sqlite import open_sqlite_store


async def main(data_dir: Path, users: int) -> None:
    ports = live_ports()
    settings = HostSettings(
        data_dir=data_dir,
        port=0,
        run_mode="production",  # so that there is no local user, and no VM is started
        jwt_secret=Secret(os.environ["BENCH_SECRET"]),
    )
    database = settings.data_dir / DATABASE_FILE
    async with open_sqlite_store(database, ports=ports, deadlines=settings.deadlines) as store:
        for number in range(users):
            await store.ensure_user(f"user-{number}", "bench", vm_mode=None)
            await store.ensure_vm(f"user-{number}", f"vm-{number}", "external")
    async with open_host(settings, ports=ports) as host:
        server = open_server(host.asgi, "127.0.0.1", 0, deadlines=settings.deadlines, ports=ports)
        async with server as listening:
            await host.announce(f"http://127.0.0.1:{listening.port}")
            print("listening on", listening.port, flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    end_with_parent()
    configure_logs(is_verbose=False)
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
