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
from semibot.cli.runtimes import Runtime
from semibot.cli.screen import Screen
from semibot.cli.talk import ChatOptions, Dialogue
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
    screen: Screen
    keyboard: Keyboard

    def dialogue(self, session: Session, interrupts: Interrupts) -> Dialogue:
        options = ChatOptions(
            runtime="graph", model=None, workspace=session.workspace, session_id=None,
            grants=(), is_json=False, is_verbose=False, message=None,
        )  # fmt: skip
        return Dialogue(options, session, self.screen, self.keyboard, interrupts)

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
            yield Scene(master, screen, Keyboard(stdin))
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
                assert shown.startswith("\ncancelled (user_cancelled) in ")
                for line in ["", "  ", "/help"]:
                    scene.type(line + "\n")
                    shown = await scene.see("> ")
                assert "/exit  leaves" in shown
                signal.raise_signal(signal.SIGINT)
                shown = await scene.see("> ")
                assert shown.startswith("\nCtrl-C once more leaves")
                scene.type("\x04")

            nursery.start_soon(person)
            runtime = Runtime(adapter=adapter_from(answer), model="pen", payload={})
            assert await scene.dialogue(session, interrupts).ask_on(runtime) == 0


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
            runtime = Runtime(adapter=adapter_from(answer), model="pen", payload={})
            await scene.dialogue(session, interrupts).ask_on(runtime)
    assert interrupts.exit_code == 130


async def test_a_command_that_leaves_leaves(scene: Scene) -> None:
    scene.type("/exit\n")
    async with (
        open_interrupts() as interrupts,
        open_session(adapter_from(answer)) as session,
    ):
        runtime = Runtime(adapter=adapter_from(answer), model="pen", payload={})
        assert await scene.dialogue(session, interrupts).ask_on(runtime) == 0
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
            await run.emit(TextChunk(content=letter * 1024 * 1024))
        await run.complete()

    async with open_interrupts() as interrupts, open_session(adapter_from(flood)) as session:
        dialogue = Scene(-1, screen, Keyboard(None)).dialogue(session, interrupts)
        assert await dialogue.ask_once("hello") == 0
    out, err = ((tmp_path / name).read_text() for name in ("out", "err"))
    assert out.startswith("e")
    assert sorted(set(out)) == ["\n", *"efghijklmnopqrst"]
    (line,) = err.splitlines()
    pattern = r"events \d to \d+ are not shown: what reads this output was too slow"
    assert re.fullmatch(pattern, line)
