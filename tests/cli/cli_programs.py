"""What the tests of the command line share: the real program on pipes and on a terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

RunHere = Callable[..., int]

PATIENCE = 20.0


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Return an environment in which nothing is configured but *variables*."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        **variables,
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "semibot", *arguments]


@attrs.frozen
class Finished:
    """How the program ended, and what it said."""

    code: int
    out: str
    err: str


async def run_program(*arguments: str, cwd: Path, stdin: bytes = b"", **variables: str) -> Finished:
    """Run the program on pipes to its end."""
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            command(*arguments),
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=cwd,
            env=environment(cwd, **variables),
        )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


@asynccontextmanager
async def open_program(
    *arguments: str, cwd: Path, stdin: int = subprocess.DEVNULL, **variables: str
) -> AsyncGenerator[trio.Process]:
    """Start the program on pipes; leaving the block ends it."""
    process = await trio.lowlevel.open_process(
        command(*arguments),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment(cwd, **variables),
    )
    try:
        with trio.fail_after(PATIENCE):
            yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()


async def read_until(stream: trio.abc.ReceiveStream, text: str) -> str:
    """Read until *text* has come."""
    seen = ""
    while text not in seen:
        data = await stream.receive_some()
        assert data, f"{text!r} never came, only {seen!r}"
        seen += data.decode()
    return seen


async def read_rest(stream: trio.abc.ReceiveStream) -> str:
    return "".join([data.decode() async for data in stream])


@attrs.define
class Terminal:
    """A pseudo-terminal with the program on it, and a person in front."""

    process: trio.Process
    master: int
    slave: int
    seen: str = ""
    _position: int = 0

    async def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    async def see(self, text: str) -> str:
        """Wait for *text* after what was seen before, and return what came up to its end."""
        while (found := self.seen.find(text, self._position)) < 0:
            assert await self._read(), f"{text!r} never came, only {self.seen[self._position :]!r}"
        start, self._position = self._position, found + len(text)
        return self.seen[start : self._position]

    async def see_end(self) -> int:
        """Wait until the program has ended, and return its exit code."""
        code = await self.process.wait()
        os.close(self.slave)  # the last one who has it, so that the master sees the end
        self.slave = -1
        while await self._read():
            pass
        return code

    def settings(self) -> list[object]:
        return termios.tcgetattr(self.master)

    async def _read(self) -> bool:
        await trio.lowlevel.wait_readable(self.master)
        try:
            data = os.read(self.master, 65536)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            return False
        self.seen += data.decode()
        return True


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@asynccontextmanager
async def open_terminal(
    arguments: Sequence[str], *, cwd: Path, **variables: str
) -> AsyncGenerator[Terminal]:
    """Start the program on a terminal of its own, which turns Ctrl-C into SIGINT."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 400, 0, 0))
    process = await trio.lowlevel.open_process(
        command(*arguments),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env=environment(cwd, **variables),
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    terminal = Terminal(process, master, slave)
    try:
        with trio.fail_after(PATIENCE):
            yield terminal
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
        os.close(master)
        if terminal.slave >= 0:
            os.close(terminal.slave)
