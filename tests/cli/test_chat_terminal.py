from __future__ import annotations

import os
import sys
import termios
from pathlib import Path

import pytest
import trio
from cli_programs import Terminal, open_terminal

from semibot.testing import model_answers as answers
from semibot.testing.model_server import RecordedRequest, call_tools, open_model_server, say

CTRL_C, CTRL_D = "\x03", "\x04"
STUBBORN = """
import os, signal, time
def note(name):
    with open(name + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(name + ".part", name)
signal.signal(signal.SIGTERM, lambda *_: note("asked"))
note("started")
while True:
    time.sleep(60)
"""


async def made(path: Path) -> None:
    """Wait until another process has made the file."""
    while not await trio.Path(path).exists():  # noqa: ASYNC110 - nothing here knows when
        await trio.sleep(0.01)


def settings(terminal: Terminal) -> list[object]:
    return termios.tcgetattr(terminal.master)


async def test_ctrl_c_stops_an_answer_and_the_next_message_works(tmp_path: Path) -> None:
    behaviours = [
        answers.Answer(steps=(answers.Text("Once \x1b]0;owned\x07upon "), answers.Hang())),
        say("A second ", "answer.", reasoning="hmm\nwell"),
    ]
    async with (
        open_model_server(behaviours) as server,
        open_terminal(
            ["chat", "--local", "--session", "s", "--allow", "write"],
            cwd=tmp_path, OPENAI_BASE_URL=server.base_url, SEMIBOT_MODEL="fake",
        ) as terminal,
    ):  # fmt: skip
        before = settings(terminal)
        first_line = await terminal.see("\n")
        assert f"graph with openai:fake in {tmp_path}, session s, grants: write" in first_line
        await terminal.see("> ")
        await terminal.type("tell me\n")
        await terminal.see("]0;ownedupon ")
        await terminal.type(CTRL_C)
        await terminal.see("cancelled by you, in ")
        await terminal.see("  stopped    model call openai:fake")
        await server.connections[0].peer_closed.wait()
        await terminal.see("> ")
        await terminal.type("and now?\n")
        await terminal.see("A second answer.")
        await terminal.see("> ")
        await terminal.type(" /help \n")
        await terminal.see("/exit  leaves")
        await terminal.see("> ")
        await terminal.type("\n")
        await terminal.see("> ")
        await terminal.type("half a line" + CTRL_C)
        await terminal.see("Ctrl-C once more leaves")
        await terminal.see("> ")
        await terminal.type(CTRL_C)
        assert await terminal.see_end() == 130
        assert settings(terminal) == before
    assert server.problems == []
    assert [message.content for message in server.requests[1].messages if message.role == "user"]
    assert "\x1b]" not in terminal.seen  # what the model said did not steer the terminal
    assert "\x07" not in terminal.seen
    assert "\x1b[2m" in terminal.seen  # though there are styles of our own
    assert terminal.seen.endswith("^C\r\n")


async def test_a_conversation_goes_on_in_the_session_of_the_same_id(tmp_path: Path) -> None:
    async with open_model_server([say("Hello Ada."), say("Ada.")]) as server:
        for question, leave in [("I am Ada", CTRL_D), ("Who am I?", "/exit\n")]:
            async with open_terminal(
                ["chat", "--local", "--session", "ada"],
                cwd=tmp_path, OPENAI_BASE_URL=server.base_url, NO_COLOR="1",
            ) as terminal:  # fmt: skip
                await terminal.see("> ")
                await terminal.type(question + "\n")
                await terminal.see("Ada.")
                await terminal.see("> ")
                await terminal.type(leave)
                assert await terminal.see_end() == 0
                assert "\x1b" not in terminal.seen
    said = [message.content for message in server.requests[1].messages[1:]]
    assert said == ["I am Ada", "Hello Ada.", "Who am I?"]


async def test_ctrl_c_twice_leaves_at_once_also_while_a_run_is_being_stopped(
    tmp_path: Path,
) -> None:
    def run_something_stubborn(_: RecordedRequest) -> answers.Answer:
        return call_tools(("run_command", {"argv": [sys.executable, "-c", STUBBORN]}))

    async with (
        open_model_server(run_something_stubborn) as server,
        open_terminal(
            ["chat", "--local", "--allow", "run"], cwd=tmp_path, OPENAI_BASE_URL=server.base_url
        ) as terminal,
    ):
        await terminal.see("> ")
        await terminal.type("go\n")
        await terminal.see("* run_command argv=")
        await made(tmp_path / "started")
        await terminal.type(CTRL_C)
        await made(tmp_path / "asked")  # but it does not end
        await terminal.type(CTRL_C)
        began = trio.current_time()
        assert await terminal.see_end() == 130
        assert trio.current_time() - began < 4
        assert terminal.seen.endswith("^C^C")  # not a word about what was cut short
        pid = int((tmp_path / "asked").read_text())
        while True:  # its guard ends it, if we did not
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            await trio.sleep(0.01)


@pytest.mark.parametrize("is_json", [False, True])
async def test_on_a_terminal_the_answer_and_what_is_about_it_share_no_line(
    tmp_path: Path, *, is_json: bool
) -> None:
    (tmp_path / "notes.txt").write_text("the sky is \x9b31mgreen", encoding="utf-8")

    def read_and_tell(request: RecordedRequest) -> answers.Answer:
        result = next((item for item in request.messages if item.role == "tool"), None)
        if result is None:
            return call_tools(("read_file", {"path": "notes.txt"}), text="Let me look.")
        return say("It says: ", result.content)

    async with (
        open_model_server(read_and_tell) as server,
        open_terminal(
            ["chat", "--local", *(["--json"] if is_json else []), "What is in notes.txt?"],
            cwd=tmp_path, OPENAI_BASE_URL=server.base_url, NO_COLOR="1",
        ) as terminal,
    ):  # fmt: skip
        assert await terminal.see_end() == 0
    assert "\x1b" not in terminal.seen
    assert "\x9b" not in terminal.seen
    lines = terminal.seen.replace("\r\n", "\n").splitlines()
    if is_json:
        assert any(r"\u009b31mgreen" in line for line in lines)
        assert [line for line in lines if not line.startswith('{"type":')] == []
        return
    start = lines.index("Let me look.")
    assert start == 0
    assert lines[1].startswith("* read_file path=notes.txt  ok ")
    assert lines[2] == "It says: the sky is 31mgreen"
    assert len(lines) == 3
