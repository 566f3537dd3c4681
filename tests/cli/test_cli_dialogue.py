from __future__ import annotations

import os
import pty
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from semibot.cli.interrupts import Interrupts, open_interrupts
from semibot.cli.keyboard import Keyboard
from semibot.cli.local import LocalPartner
from semibot.cli.logs import configure_logs
from semibot.cli.runtimes import Runtime
from semibot.cli.screen import GOOD, PLAIN, Screen
from semibot.cli.talk import ChatOptions, Dialogue
from semibot.logs import get_logger
from semibot.session import ActiveRun, Session, open_session
from semibot.testing import adapter_from, simulated_ports
from semibot.wire.events import TextChunk, Thinking


async def answer(run: ActiveRun) -> None:
    """Repeat the message, or never end if that is what the message says."""
    await run.emit(Thinking(content="Hm.", stage="reasoning"))
    await run.emit(TextChunk(content=f"You say {run.message}"))
    if "forever" in run.message:
        await trio.sleep_forever()
    await run.emit(Thinking(content="So.", stage="concluding"))
    await run.emit(TextChunk(content="\n\nYes."))
    await run.complete()


@attrs.frozen
class Scene:
    """A terminal of this very process."""

    master: int
    terminal: int
    screen: Screen
    keyboard: Keyboard

    def dialogue(self, session: Session, interrupts: Interrupts) -> Dialogue:
        options = ChatOptions(
            runtime="graph", model=None, workspace=session.workspace, session_id=None,
            grants=(), is_json=False, is_verbose=False, message=None,
        )  # fmt: skip
        runtime = Runtime(adapter=adapter_from(answer), model="pen", payload={})
        partner = LocalPartner(options, runtime, session)
        return Dialogue(options, partner, self.screen, self.keyboard, interrupts)

    async def see(self, text: str) -> str:
        """Wait until *text* is shown."""
        seen = ""
        while text not in seen:
            await trio.lowlevel.wait_readable(self.master)
            seen += os.read(self.master, 65536).decode()
        return seen.replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    master, slave = pty.openpty()
    with os.fdopen(slave, "r+b", buffering=0) as raw, open(slave, "w", closefd=False) as out:
        with open(slave, closefd=False) as stdin:
            monkeypatch.setattr(sys, "stdout", out)
            monkeypatch.setattr(sys, "stderr", out)
            screen = Screen(simulated_ports(environment={"NO_COLOR": "1"}))
            monkeypatch.undo()
            yield Scene(master, slave, screen, Keyboard(stdin))
    assert raw.closed
    os.close(master)


async def test_a_dialogue_goes_on_until_the_user_leaves(scene: Scene) -> None:
    with trio.fail_after(10):
        async with (
            open_interrupts() as interrupts,
            open_session(adapter_from(answer), session_id="s") as session,
            trio.open_nursery() as nursery,
        ):

            async def person() -> None:
                shown = await scene.see("> ")
                assert shown.splitlines() == [
                    f"graph with pen in {session.workspace}, session s, grants: none",
                    "/help says more, Ctrl-D leaves; --session with the id above continues later",
                    "> ",
                ]
                scene.type("one\n")
                shown = await scene.see("Yes.\r\n> ")
                assert shown == "one\n~ Hm.\nYou say one\n~ So.\nYes.\n> "
                scene.type("forever\n")
                await scene.see("forever\r\n~ Hm.\r\nYou say forever")
                signal.raise_signal(signal.SIGINT)
                shown = await scene.see("> ")
                assert shown.startswith("\ncancelled by you, in ")
                for line in ["", "  ", "/help"]:
                    scene.type(line + "\n")
                    shown = await scene.see("> ")
                assert "/exit  leaves" in shown
                scene.type("/nosuch \n")
                shown = await scene.see("> ")
                assert "there is no command /nosuch; there are /help and /exit\n> " in shown
                for line in ["//help", "/etc/hosts", "/etc is it there?"]:
                    scene.type(line + "\n")
                    shown = await scene.see("Yes.\r\n> ")
                    assert f"You say {line}\n" in shown
                signal.raise_signal(signal.SIGINT)
                shown = await scene.see("> ")
                assert shown.startswith("\nCtrl-C once more leaves")
                scene.type("\x04")

            nursery.start_soon(person)
            assert await scene.dialogue(session, interrupts).ask_on() == 0


async def test_what_is_logged_never_lands_in_a_line_that_is_open(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, log = scene.screen, get_logger("semibot.test")
    with os.fdopen(os.dup(scene.terminal), "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        configure_logs(is_verbose=True, take_line=screen.take_line)
        log.info("at the start")
        await screen.think("Hm,")
        log.warning("in a thought")
        await screen.think(" well.")
        await screen.begin_call("* read", PLAIN)
        log.warning("in a call")
        await screen.end_call("  ok", GOOD)
        await screen.answer("One")
        log.info("in the answer")
        await screen.answer(" two")
        await screen.end_answer()
        await screen.prompt()
        log.info("at the prompt")
        screen.key_was_shown()
        log.info("after a key")
        await screen.note("end")
    assert (await scene.see("end\r\n")).splitlines() == [
        "info: at the start",
        "~ Hm,",
        "warning: in a thought",
        "~ well.",
        "* read",
        "warning: in a call",
        "  ok",
        "One",
        "info: in the answer",
        " two",
        "> ",
        "info: at the prompt",
        "",
        "info: after a key",
        "end",
    ]


async def test_leaving_with_ctrl_c_ends_the_prompts_line(scene: Scene) -> None:
    with trio.fail_after(10):
        async with (
            open_interrupts() as interrupts,
            open_session(adapter_from(answer)) as session,
            trio.open_nursery() as nursery,
        ):

            async def person() -> None:
                await scene.see("> ")
                signal.raise_signal(signal.SIGINT)
                await scene.see("> ")
                signal.raise_signal(signal.SIGINT)
                assert await scene.see("\n") == "\n"

            nursery.start_soon(person)
            await scene.dialogue(session, interrupts).ask_on()
    assert interrupts.exit_code == 130


async def test_a_command_that_leaves_leaves(scene: Scene) -> None:
    scene.type("/exit\n")
    async with (
        open_interrupts() as interrupts,
        open_session(adapter_from(answer)) as session,
    ):
        assert await scene.dialogue(session, interrupts).ask_on() == 0
    assert interrupts.exit_code is None


# --- one message ----------------------------------------------------------------------


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Screen]:
    """Show things in the files ``out`` and ``err``."""
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        yield Screen(simulated_ports())
        monkeypatch.undo()


async def test_a_reader_that_is_too_slow_is_told_what_it_missed(
    screen: Screen, tmp_path: Path
) -> None:
    async def flood(run: ActiveRun) -> None:
        for letter in "abcdefghijklmnopqrst":  # 20 MiB at once, of which 16 are kept
            await run.emit(Thinking(content=letter * 1024 * 1024, stage="reasoning"))
        await run.complete()

    async with open_interrupts() as interrupts, open_session(adapter_from(flood)) as session:
        dialogue = Scene(-1, -1, screen, Keyboard(None)).dialogue(session, interrupts)
        assert await dialogue.ask_once("hello") == 0
    line, thought = (tmp_path / "err").read_text().splitlines()
    assert thought.startswith("~ f")  # one event a letter: with its envelope it is over 1 MiB
    assert sorted(set(thought[2:])) == [*"fghijklmnopqrst"]
    pattern = r"events \d to \d+ are not shown: what reads this output was too slow"
    assert re.fullmatch(pattern, line)
