"""The program ``semibot vm``, with a host on a real port and real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from vm_host import Frame, VmHost, open_real_host

PATIENCE = 20.0

TIDY = """
import sys
for line in sys.stdin:
    if '"start"' in line:
        print('{"type":"ready"}', flush=True)
    if '"user_message"' in line:
        print('{"type":"text_chunk","content":"working"}', flush=True)
"""

STUBBORN = (
    "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)"
    + TIDY
    + "while True:\n    signal.pause()\n"
)


@asynccontextmanager
async def open_vm(host: VmHost, directory: Path, **variables: str) -> AsyncGenerator[trio.Process]:
    """Start a VM; leaving the block ends it."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "semibot", "vm"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=directory,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "CONTROL_PLANE_WS": f"http://127.0.0.1:{host.port}",
            "VM_TOKEN": "t1",
            "VM_USER_ID": "u1",
            "SEMIBOT_STATE_DIR": str(directory / "state"),
            **variables,
        },
    )
    try:
        with trio.fail_after(PATIENCE):
            yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            assert process.stderr is not None
            await process.stderr.aclose()


async def read_errors(process: trio.Process) -> str:
    assert process.stderr is not None
    return "".join([data.decode() async for data in process.stderr])


def codes_in(frames: list[Frame]) -> list[object]:
    said = [json.loads(str(f["data"])) for f in frames if f["type"] == "sse_event"]
    return [event["code"] for event in said if "code" in event]


async def test_sigterm_ends_runs_tells_the_host_and_leaves(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(TIDY)
    bridge = f"{sys.executable} {tmp_path / 'child.py'}"
    async with open_real_host() as host:
        async with open_vm(host, tmp_path, OPENCLAW_BRIDGE_CMD=bridge) as process:
            link = await host.accept()
            await link.bring_up()
            await link.start("hello", runtime_type="openclaw")
            await link.receive_until("text_chunk")
            process.send_signal(signal.SIGTERM)
            frames, close_code = await link.wait_closed()
            assert codes_in(frames) == ["INTERRUPTED"]
            assert close_code == 1000
            assert await process.wait() == 0
            assert "VM of user u1" in await read_errors(process)


async def test_a_second_signal_leaves_within_two_seconds(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(STUBBORN)
    bridge = f"{sys.executable} {tmp_path / 'child.py'}"
    async with open_real_host() as host:
        async with open_vm(host, tmp_path, OPENCLAW_BRIDGE_CMD=bridge) as process:
            link = await host.accept()
            await link.bring_up()
            await link.start("hello", runtime_type="openclaw")
            await link.receive_until("text_chunk")
            process.send_signal(signal.SIGTERM)
            await trio.sleep(0.2)  # two signals at once may arrive as one
            process.send_signal(signal.SIGTERM)
            begin = trio.current_time()
            code = await process.wait()
            assert trio.current_time() - begin < 3
            assert code == 143


async def test_a_host_that_refuses_ends_the_program_with_the_reason(tmp_path: Path) -> None:
    async with open_real_host() as host:
        async with open_vm(host, tmp_path) as process:
            link = await host.accept()
            await link.receive()
            await link.socket.aclose(4001, "")
            assert await process.wait() == 1
            assert "token or ticket is not accepted" in await read_errors(process)
