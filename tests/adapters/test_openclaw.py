"""The runtime ``openclaw``: where its command comes from, and what it says without one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import attrs
import pytest
from bridge_sessions import GOOD, QUICK, newest_checkpoint, no_process_is_left, scripted

from semibot.adapters import openclaw_agent
from semibot.live import live_ports
from semibot.ports import Ports
from semibot.session import open_session
from semibot.wire.events import ExecutionComplete, ExecutionError


def ports_with(command: str | None) -> Ports:
    ports = live_ports()
    environment = {k: v for k, v in ports.environment.items() if k != "OPENCLAW_BRIDGE_CMD"}
    if command is not None:
        environment["OPENCLAW_BRIDGE_CMD"] = command
    return attrs.evolve(ports, environment=environment)


async def test_the_command_is_split_into_words_and_no_shell_sees_it(tmp_path: Path) -> None:
    command = shlex.join([*scripted(GOOD).command, "; touch broken"])
    with no_process_is_left():
        async with open_session(
            openclaw_agent(), workspace=tmp_path, ports=ports_with(command), deadlines=QUICK
        ) as session:
            async with session.run("hello") as run:
                assert await run.wait() == "completed"
            assert isinstance(run.terminal, ExecutionComplete)
            assert run.terminal.final_response == "echo: hello"
    start = json.loads((tmp_path / "heard.jsonl").read_text().splitlines()[0])
    assert start["payload"]["runtime_type"] == "openclaw"
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (None, "set OPENCLAW_BRIDGE_CMD to the command"),
        ("  ", "set OPENCLAW_BRIDGE_CMD to the command"),
        ("bridge 'half", "OPENCLAW_BRIDGE_CMD cannot be read: No closing quotation"),
    ],
)
async def test_without_a_command_every_message_says_what_to_set(
    tmp_path: Path, command: str | None, words: str
) -> None:
    async with open_session(
        openclaw_agent(), workspace=tmp_path, ports=ports_with(command)
    ) as session:
        for _ in range(2):
            async with session.run("hello") as run:
                assert await run.wait() == "failed"
            assert isinstance(run.terminal, ExecutionError)
            assert run.terminal.code == "OPENCLAW_BRIDGE_NOT_CONFIGURED"
            assert words in run.terminal.error
            assert run.terminal.retryable is False


async def test_a_command_that_cannot_be_started_names_the_variable(tmp_path: Path) -> None:
    ports = ports_with("no-such-bridge-xyz --fast")
    async with open_session(openclaw_agent(), workspace=tmp_path, ports=ports) as session:
        async with session.run("hello") as run:
            await run.wait()
        assert isinstance(run.terminal, ExecutionError)
        assert run.terminal.code == "OPENCLAW_BRIDGE_START_FAILED"
        assert "no-such-bridge-xyz" in run.terminal.error
        assert "check OPENCLAW_BRIDGE_CMD" in run.terminal.error


async def test_what_an_earlier_bridge_knew_is_kept_while_there_is_none(tmp_path: Path) -> None:
    command = shlex.join(scripted(GOOD).command)
    for given, outcome in ((command, "completed"), (None, "failed")):
        async with open_session(
            openclaw_agent(),
            workspace=tmp_path,
            session_id="s",
            ports=ports_with(given),
            deadlines=QUICK,
        ) as session:
            async with session.run("hello") as run:
                assert await run.wait() == outcome
        assert newest_checkpoint(tmp_path)["adapter"] == {"checkpoint": {"heard": 3}}
