"""Real hosts, VMs and models for tests: processes that can be killed, stopped and looked at.

A :class:`Plane` is a host in a directory of its own, started as users start it, with a fake
model inside the test. Every process that belongs to it can be found by that directory.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import attrs
import trio
from following import Follower, Stored
from http_client import Answer, ask

from semibot.testing.model_answers import Answer as ModelAnswer
from semibot.testing.model_answers import Hang, Text, call_tools, say
from semibot.testing.model_server import ModelServer, RecordedRequest, open_model_server

SERVE = ("-m", "semibot", "serve")
QUICK_HOST = Path(__file__).parent / "programs" / "quick_host.py"

PATIENCE = 40.0
"""What anything may take on a machine that is busy, in seconds; never waited for in vain."""


# --- processes ------------------------------------------------------------------------


@attrs.frozen
class ProcessEntry:
    """A process, as the operating system shows it."""

    pid: int
    parent: int
    state: str
    command: str


def process_table(mark: str = "") -> list[ProcessEntry]:
    """Return the living processes with *mark* in command line, environment or directory."""
    entries = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1")
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            text = command + (directory / "environ").read_bytes().decode("latin-1")
            text += str((directory / "cwd").readlink())
        except OSError:  # it has ended since the listing, or belongs to somebody else
            continue
        if mark in text and state not in "ZX":
            entries.append(ProcessEntry(int(directory.name), int(parent), state, command))
    return entries


async def seconds_until(condition: Callable[[], bool], limit: float = PATIENCE) -> float | None:
    """Look again and again; return how long it took, or None after *limit* seconds.

    For what the operating system tells nobody about, such as the end of a stranger's child.
    """
    start = trio.current_time()
    while not condition():
        if trio.current_time() - start > limit:
            return None
        await trio.sleep(0.005)
    return trio.current_time() - start


def resources(pid: int) -> tuple[int, int]:
    """Return how many descriptors a process has open, and its resident set in KiB."""
    directory = Path(f"/proc/{pid}")
    found = re.search(r"VmRSS:\s+(\d+) kB", (directory / "status").read_text())
    return len(list((directory / "fd").iterdir())), int(found[1]) if found else 0


# --- the model ------------------------------------------------------------------------


def question(request: RecordedRequest) -> str:
    """Return what the user said last."""
    return next(m.content for m in reversed(request.messages) if m.role == "user")


def obedient_model(request: RecordedRequest) -> ModelAnswer:
    """Do what the message says.

    ``stream COUNT DELAY [SIZE [MARK]]``, ``hang``, ``sleep MARK``, and ``append FILE COUNT
    PAUSE MARK``: so many tool calls, each of which appends a line and then takes a while.
    """
    words = question(request).split()
    if words[0] == "stream":
        width = int(words[3]) if len(words) > 3 else 0
        pieces = [f"{index} ".ljust(width, "x") for index in range(int(words[1]))]
        return say(*pieces, delay=float(words[2]))
    if words[0] == "hang":
        return ModelAnswer(steps=(Text("one "), Hang()))
    if words[0] == "sleep" and not any(m.role == "tool" for m in request.messages):
        program = "import time, sys; time.sleep(1000)"
        return call_tools(("run_command", {"argv": [sys.executable, "-c", program, words[1]]}))
    if words[0] == "append":
        return _append(request, *words[1:])
    return say("well")


def _append(request: RecordedRequest, file: str, count: str, pause: str, mark: str) -> ModelAnswer:
    done = 0
    for message in reversed(request.messages):
        if message.role == "user":
            break
        done += message.role == "tool"
    if done == int(count):
        return say("appended")
    script = 'echo "$1" >> "$0"; sleep "$2"'
    argv = ["/bin/sh", "-c", script, file, f"{mark}.{done}", pause]
    return call_tools(("run_command", {"argv": argv}), prefix=f"append{done}")


# --- a host ---------------------------------------------------------------------------


@attrs.define(eq=False)
class Plane:
    """A host that runs, in a directory of its own."""

    directory: Path
    model: ModelServer
    process: trio.Process
    url: str
    variables: Mapping[str, str]
    command: tuple[str, ...]
    token: str = attrs.field(default="", repr=False)
    """Of the VM that the user starts, if the host starts none."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> str:
        return (self.directory / "host.log").read_text()

    @property
    def vm_log_path(self) -> Path:
        return self.directory / "vm.log"

    @property
    def vm_log(self) -> str:
        """What the VM said that the user started last."""
        return self.vm_log_path.read_text()

    # --- what can be asked ---

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send a request and return the whole answer."""
        with trio.fail_after(PATIENCE):
            return await ask(self.port, method, path, body, headers)

    async def messages(self, session_id: str) -> list[dict[str, object]]:
        answer = await self.ask("GET", f"/api/v1/sessions/{session_id}/messages?limit=200")
        assert answer.status == 200, answer
        return answer.data["messages"] if "messages" in answer.data else answer.data["items"]

    async def start(self, follower: Follower, message: str, **body: object) -> None:
        """Begin a session and follow its first run to the end of the stream."""
        await follower.post(self.port, "/api/v1/chat/start", {"message": message, **body})

    async def say(self, follower: Follower, session_id: str, message: str, **body: object) -> None:
        """Say something in a session and follow that run to the end of the stream."""
        path = f"/api/v1/chat/sessions/{session_id}"
        await follower.post(self.port, path, {"message": message, **body})

    async def follow(self, follower: Follower, session_id: str) -> None:
        """Follow a session from where *follower* is, to the end of the stream."""
        await follower.get(self.port, f"/api/v1/sessions/{session_id}/stream")

    # --- what can be looked at ---

    def rows(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        """Return what the database holds."""
        database = self.data_dir / "semibot.db"
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, values).fetchall()

    def stored(self, session_id: str) -> Stored:
        """Return the session's events in the store."""
        rows = self.rows(
            "SELECT term, seq, run_id, data FROM events WHERE session_id = ? ORDER BY seq",
            session_id,
        )
        return [(term, seq, run_id, json.loads(data)) for term, seq, run_id, data in rows]

    def processes(self) -> list[ProcessEntry]:
        """Return every living process of this plane."""
        return process_table(str(self.directory))

    def connections(self) -> list[str]:
        """Return the established connections to the host, VMs included."""
        port = f":{self.port:04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        fields = [line.split() for line in lines]
        return [
            remote
            for _, local, remote, state, *_ in fields
            if local.endswith(port) and state == "01"
        ]

    def vm_pid(self) -> int | None:
        """Return the process of the VM that the host has started."""
        vms = [entry.pid for entry in self.processes() if " semibot vm" in entry.command]
        return max(vms, default=None)

    # --- what can be done to it ---

    async def run(self, *arguments: str) -> str:
        """Run a command of the program to its end, and return what it prints."""
        done = await _run_program(self.directory, self.variables, *arguments)
        assert done.returncode == 0, done
        return done.stdout.decode().strip()

    async def serve_again(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run another host, which cannot start, to its end."""
        with trio.fail_after(PATIENCE):
            return await _run_program(self.directory, self.variables, "serve", *arguments)

    def limit_files(self, size: int | None) -> None:
        """Let no file of the host grow beyond *size* bytes; None takes the limit away."""
        hard = resource.RLIM_INFINITY
        limit = (hard if size is None else size, hard)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, limit)

    async def restart(self) -> None:
        """Start the host again after its end, on the same port and the same data."""
        await self.spawn()
        await wait_listening(self.process, self.directory)

    async def spawn(self) -> None:
        """Begin to start the host again after its end, and do not wait until it listens."""
        await self.process.wait()
        self.process = await _spawn(self.directory, self.port, self.variables, self.command)


@asynccontextmanager
async def open_plane(
    directory: Path,
    choose: Callable[[RecordedRequest], ModelAnswer] = obedient_model,
    *,
    deadlines: Mapping[str, float] | None = None,
    is_external: bool = False,
    **variables: str,
) -> AsyncGenerator[Plane]:
    """Run a host; afterwards nothing of it is left.

    Args:
        directory: Is made, for this plane alone.
        choose: What the model says.
        deadlines: Bounds of the host that are not the usual ones.
        is_external: Whether the VM is the user's, who has a token for it; see
            :func:`open_external_vm`.
        **variables: More for its environment.
    """
    command = SERVE if deadlines is None else (str(QUICK_HOST),)
    (directory / "work").mkdir(parents=True)
    (directory / "tmp").mkdir()
    try:
        async with open_model_server(choose) as model:
            given = {
                "PATH": os.environ["PATH"],
                "HOME": str(directory),
                "TMPDIR": str(directory / "tmp"),
                "LANG": "C.UTF-8",
                "OPENAI_API_KEY": "sk-test",
                "OPENAI_BASE_URL": model.base_url,
                "SEMIBOT_ALLOW": "run",
                "QUICK_DEADLINES": json.dumps(deadlines or {}),
                **variables,
            }
            token = ""
            if is_external:
                make_token = ("admin", "vm-token", "--data-dir", str(directory / "data"))
                done = await _run_program(directory, given, *make_token)
                assert done.returncode == 0, done
                token = done.stdout.decode().strip()
            process = await _spawn(directory, 0, given, command)
            url = await wait_listening(process, directory)
            plane = Plane(directory, model, process, url, given, command, token)
            try:
                yield plane
            except Exception as exc:
                exc.add_note(plane.log[-6000:])
                with suppress(OSError):
                    exc.add_note(plane.vm_log[-6000:])
                raise
            finally:
                await _reap(plane.process)
    finally:
        await end_all(str(directory))


async def _spawn(
    directory: Path, port: int, variables: Mapping[str, str], command: tuple[str, ...]
) -> trio.Process:
    arguments = ("--port", str(port), "--data-dir", str(directory / "data"))
    with (directory / "host.log").open("ab") as log:
        return await trio.lowlevel.open_process(
            [
                sys.executable,
                *command,
                *arguments,
                "--workspace",
                str(directory / "work"),
                "--verbose",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=directory,
            env=dict(variables),
            start_new_session=True,
        )


async def wait_listening(process: trio.Process, directory: Path) -> str:
    """Wait until a host that was started listens, and return its address."""
    said = ""
    try:
        async with process.stdout:
            with trio.fail_after(PATIENCE):
                while "listening on" not in said:
                    data = await process.stdout.receive_some()
                    assert data, (directory / "host.log").read_text()
                    said += data.decode()
    except BaseException:
        await _reap(process)
        raise
    return said.rpartition("listening on")[2].strip()


async def _run_program(
    directory: Path, variables: Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(
        [sys.executable, "-m", "semibot", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=dict(variables),
        cwd=directory,
    )


async def _reap(process: trio.Process) -> None:
    """Kill a child of this process, whatever state it is in, and wait for its end."""
    process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()


@asynccontextmanager
async def open_external_vm(plane: Plane, *, url: str | None = None) -> AsyncGenerator[trio.Process]:
    """Run a VM as users do, with a token; wait until its link is up.

    Args:
        plane: Whose VM it is.
        url: Where it dials, if not straight to the host.
    """
    process = await spawn_external_vm(plane, url=url)
    try:
        await wait_linked(plane)
        yield process
    finally:
        await _reap(process)


async def spawn_external_vm(plane: Plane, *, url: str | None = None) -> trio.Process:
    """Start a VM as users do, and do not wait for its link."""
    environment = {
        **{key: value for key, value in plane.variables.items() if not key.startswith("OPENAI")},
        "VM_TOKEN": plane.token,
        "SEMIBOT_STATE_DIR": str(plane.directory / "vm-state"),
        "SEMIBOT_WORKSPACE": str(plane.directory / "work"),
    }
    with plane.vm_log_path.open("wb") as log:
        return await trio.lowlevel.open_process(
            [sys.executable, "-m", "semibot", "vm", "--url", url or plane.url, "--verbose"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=plane.directory,
            env=environment,
            start_new_session=True,
        )


async def wait_linked(plane: Plane) -> None:
    """Wait until the VM that was started last has its link."""
    assert await seconds_until(lambda: "link is up" in plane.vm_log) is not None, plane.vm_log
    await wait_vm(plane, mode="external")


async def wait_vm(plane: Plane, *, status: str = "ready", mode: str = "local") -> None:
    """Wait until the host says this of the local user's VM."""
    with trio.fail_after(PATIENCE):
        while True:
            data = (await plane.ask("GET", "/api/v1/vm/status")).data
            if (data.get("status"), data.get("mode")) == (status, mode):
                return
            await trio.sleep(0.02)


async def end_all(mark: str) -> None:
    """Kill every process with *mark*, and wait until they are gone."""
    with trio.CancelScope(shield=True):
        await seconds_until(lambda: not _kill(mark), 10)


def _kill(mark: str) -> list[ProcessEntry]:
    left = process_table(mark)
    for entry in left:
        with suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)
    return left
