"""``semibot chat`` with a host, both as users start them."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cli_programs import RunHere, open_program, open_terminal, read_rest, read_until, run_program

from semibot.testing import model_answers as answers
from semibot.testing.model_server import ModelServer, RecordedRequest, open_model_server, say

UNENDING = answers.Answer(steps=(answers.Text("Once upon "), answers.Hang()))


def tell_or_answer(request: RecordedRequest) -> answers.Answer:
    """Tell for ever if that is what the newest message asks for."""
    return UNENDING if "tell" in request.messages[-1].content else say("It is ", "green.")


@asynccontextmanager
async def open_plane(
    path: Path, *, is_hurried: bool = False
) -> AsyncGenerator[tuple[ModelServer, str]]:
    """Run a host with a VM and a model; yield the model and the host's address."""
    (path / "host").mkdir()
    async with (
        open_model_server(tell_or_answer) as model,
        open_program(
            "serve", "--port", "0", "--data-dir", "data",
            cwd=path / "host", OPENAI_BASE_URL=model.base_url, SEMIBOT_MODEL="fake",
        ) as host,
    ):  # fmt: skip
        assert host.stdout is not None
        url = (await read_until(host.stdout, "\n")).split()[-1]
        yield model, url
        host.terminate()
        if is_hurried:  # what is under way would have half a minute
            assert host.stderr is not None
            await read_until(host.stderr, "semibot is stopping")
            host.terminate()
        assert await host.wait() == (143 if is_hurried else 0)


async def test_a_host_answers_a_message_and_a_conversation(tmp_path: Path) -> None:
    async with open_plane(tmp_path) as (model, url):
        done = await run_program("chat", "--url", url, "hello", cwd=tmp_path)
        assert (done.code, done.out, done.err) == (0, "It is green.\n", "")
        async with open_terminal(["chat"], cwd=tmp_path, SEMIBOT_URL=url) as terminal:
            await terminal.see(f"host {url}, session new")
            await terminal.see("> ")
            await terminal.type("hello\n")
            await terminal.see("It is green.")
            await terminal.see("> ")
            await terminal.type("tell\n")
            await terminal.see("Once upon ")
            await terminal.type("\x03")
            await terminal.see("cancelled by you, in ")
            await terminal.see("> ")
            await terminal.type("and now?\n")
            await terminal.see("It is green.")
            await terminal.see("> ")
            await terminal.type("\x04")
            assert await terminal.see_end() == 0
    assert len(model.requests[-1].messages) > 3  # one session


async def test_ctrl_c_stops_the_run_on_the_host_and_sigterm_leaves_it_alone(
    tmp_path: Path,
) -> None:
    async with open_plane(tmp_path, is_hurried=True) as (model, url):
        async with open_program("chat", "--url", url, "tell", cwd=tmp_path) as chat:
            assert chat.stdout is not None
            assert chat.stderr is not None
            await read_until(chat.stdout, "Once upon ")
            chat.send_signal(signal.SIGINT)
            errors = await read_rest(chat.stderr)
            assert await chat.wait() == 130
        assert "cancelled by you, in " in errors
        assert "  stopped    model call openai:" in errors
        with trio.fail_after(5):
            await model.connections[-1].peer_closed.wait()
        async with open_program("chat", "--url", url, "--json", "tell", cwd=tmp_path) as chat:
            assert chat.stdout is not None
            await read_until(chat.stdout, "Once upon ")
            chat.terminate()
            assert await chat.wait() == 143
        assert not model.connections[-1].peer_closed.is_set()


async def test_a_session_that_does_not_exist_exits_2(tmp_path: Path) -> None:
    async with open_plane(tmp_path) as (_, url):
        done = await run_program("chat", "--url", url, "--session", "nosuch", "hi", cwd=tmp_path)
    assert done.code == 2
    assert "NOT_FOUND" in done.err


def test_without_a_host_there_is_a_word_about_how_to_start_one(
    run_here: RunHere, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_here("chat", "--url", "http://127.0.0.1:1", "hello") == 78
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("semibot: no host answers at http://127.0.0.1:1 (")
    assert "semibot serve" in line
