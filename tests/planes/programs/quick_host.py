"""``semibot serve`` with other bounds: a test has not the time to wait for the real ones.

``QUICK_DEADLINES`` is a JSON object of fields of :class:`semibot.config.Deadlines`.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from pathlib import Path

import trio

from semibot.cli.logs import configure_logs
from semibot.cli.serving import _serve
from semibot.config import Deadlines
from semibot.config.loader import HostFlags, load_host_settings
from semibot.live import live_ports


def main() -> int:
    parser = ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    configure_logs(is_verbose=options.verbose)
    ports = live_ports()
    settings = load_host_settings(
        ports.environment,
        HostFlags(port=options.port, data_dir=options.data_dir, workspace=options.workspace),
        default_data_dir=options.data_dir,
        deadlines=Deadlines(**json.loads(os.environ["QUICK_DEADLINES"])),
    )
    return trio.run(_serve, settings, ports, False)


if __name__ == "__main__":
    sys.exit(main())
