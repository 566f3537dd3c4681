"""A real host in a process of its own: started, looked at from outside, killed, started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from semibot.live import live_ports
from semibot.secret import Secret
from semibot.security.tokens import Tokens

PROGRAM = Path(__file__).parent / "programs" / "plain_host.py"
SECRET = "of-no-worth-outside-of-this-test-7a1c93e2"
ORG = "bench"

PATIENCE = 60.0
"""What anything may take on a machine that is busy, in seconds; never waited for in vain."""


@attrs.define(eq=False)
class HostProcess:
    """A host that runs. Made by :func:`open_host_process`."""

    _directory: Path
    _users: int
    _deadlines: Mapping[str, float]
    _process: trio.Process | None = None
    port: int = 0
    """Where it listens; the same after a restart."""
    tokens: Tokens = attrs.field(
        factory=lambda: Tokens(Secret(SECRET), live_ports().wall_clock, 3600.0)
    )
    """Makes the tokens that it accepts."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def rss_bytes(self) -> int:
        """What it has in memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    @property
    def sockets(self) -> int:
        """How many sockets it has open."""
        directory = Path(f"/proc/{self.pid}/fd")
        return sum(_is_socket(each) for each in directory.iterdir())

    async def start(self) -> None:
        """Start it; returns when it listens."""
        command = [sys.executable, str(PROGRAM), str(self._directory / "data")]
        command += [str(self._users), str(self.port), json.dumps(dict(self._deadlines))]
        self._process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PLAIN_HOST_SECRET": SECRET},
        )
        said = b""
        with trio.fail_after(PATIENCE):
            while not said.endswith(b"\n"):
                piece = await self._process.stdout.receive_some()
                assert piece, "the host did not start"
                said += piece
        self.port = int(said.split()[-1])

    async def kill(self) -> None:
        """End it as SIGKILL does, and wait until it is gone."""
        process = self._process
        if process is not None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdin.aclose()
                await process.stdout.aclose()


def _is_socket(entry: Path) -> bool:
    try:
        return str(entry.readlink()).startswith("socket:")
    except OSError:  # closed since the listing
        return False


@asynccontextmanager
async def open_host_process(
    directory: Path, *, users: int = 1, deadlines: Mapping[str, float] | None = None
) -> AsyncGenerator[HostProcess]:
    """Run a host until the block is left.

    Args:
        directory: For its files; empty.
        users: How many there are: ``user-0`` and so on.
        deadlines: Bounds that are not the usual ones.
    """
    host = HostProcess(directory, users, deadlines or {})
    try:
        await host.start()
        yield host
    finally:
        await host.kill()
