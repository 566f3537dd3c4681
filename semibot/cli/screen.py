"""Two streams that may be one terminal: the answer, and all about it.

Lines are only ever added, so that what is shown reads the same in a terminal, a file and
a log. Where both streams are one terminal, a line about the run never lands in the middle
of a line of the answer.
"""

from __future__ import annotations

import sys
from typing import Final, Literal, final

from rich.console import Console
from rich.text import Text

from semibot.ports import Ports

from .clean import clean, clean_json
from .output import Output

PLAIN: Final = ""
"""Style of lines that are neither good nor bad."""
DIM: Final = "dim"
"""Style of what can be skipped."""
CALL: Final = "cyan"
"""Style of what the agent does."""
GOOD: Final = "green"
"""Style of what worked."""
ODD: Final = "yellow"
"""Style of what deserves a look."""
BAD: Final = "red"
"""Style of what did not work."""


@final
class Screen:
    """Where everything is shown. Used by one task at a time.

    Every method raises :exc:`~semibot.cli.failures.OutputClosed` if nobody reads any more.

    Args:
        ports: For ``NO_COLOR``.
    """

    def __init__(self, ports: Ports) -> None:
        self._out = Output(sys.stdout)
        self._err = Output(sys.stderr)
        self._is_one_terminal = self._out.is_terminal and self._err.is_terminal
        self._console = Console(
            file=sys.stderr,
            color_system=None if ports.environment.get("NO_COLOR") else "auto",
            highlight=False,
            soft_wrap=True,
        )
        self._is_mid_answer = False
        self._open: Literal["thought", "call"] | None = None
        self._is_at_prompt = False
        self._was_noted = False
        self._is_after_key = False
        self._held_back = ""

    async def answer(self, text: str) -> None:
        """Show a piece of the answer."""
        await self._end_note()
        text = clean(text)
        if self._was_noted and not self._is_mid_answer and self._is_one_terminal:
            text = text.lstrip("\n")  # the note has ended the paragraph already
        if text:
            await self._out.write(text)
            self._is_mid_answer = not text.endswith("\n")
            self._was_noted = False

    async def end_answer(self) -> None:
        """End the answer's last line, or a thought's."""
        await self._end_note()
        if self._is_mid_answer:
            await self._out.write("\n")
            self._is_mid_answer = False

    async def json(self, line: str) -> None:
        """Put a line of JSON on standard output, byte for byte if it is no terminal."""
        await self._end_note()
        await self._out.write((clean_json(line) if self._out.is_terminal else line) + "\n")

    async def note(self, text: str, style: str = PLAIN) -> None:
        """Show a line about the run; *text* may hold several."""
        await self._end_note()
        await self._begin_note()
        await self._print(text, style, end="\n")

    async def begin_call(self, text: str, style: str) -> None:
        """Show what is done, and leave the line open for :meth:`end_call`."""
        await self._end_note()
        await self._begin_note()
        self._open = "call"
        await self._print(text, style, end="")

    async def end_call(self, text: str, style: str) -> None:
        """Show what came of a call: on its line, or if that was ended, on one of its own."""
        await self._end_key()
        if self._open != "call":
            await self.note(text, style)
            return
        self._open = None
        await self._print(text, style, end="\n")

    async def think(self, text: str) -> None:
        """Show a piece of thought, which the next piece continues on the same line."""
        await self._end_key()
        if self._open != "thought":
            await self._end_note()
            await self._begin_note()
            self._open = "thought"
            text = "~ " + text.lstrip()
        text = self._held_back + text
        thought = text.rstrip("\n")
        self._held_back = text[len(thought) :]  # the end of the thought ends its line anyway
        await self._print(thought.replace("\n", "\n  "), DIM, end="")

    async def end_line(self) -> None:
        """Let whatever comes next begin a line, the next piece of thought included."""
        await self._end_note()

    async def prompt(self) -> None:
        """Ask for a message."""
        await self._end_note()
        self._is_at_prompt = True
        await self._print("> ", "bold", end="")

    def key_was_shown(self) -> None:
        """Let what comes next begin a line: the terminal has shown ``^C`` in this one."""
        self._is_after_key = self._err.is_terminal

    def take_line(self) -> str:
        """Return the end of the line that is open, if one is, and count it as shown.

        For what is written to standard error past this object, from any thread.
        """
        is_open = self._open is not None or self._is_at_prompt or self._is_after_key
        if self._is_one_terminal and self._is_mid_answer:
            is_open, self._is_mid_answer = True, False
        self._open, self._held_back = None, ""
        self._is_at_prompt = self._is_after_key = False
        self._was_noted = True
        return "\n" if is_open else ""

    async def _begin_note(self) -> None:
        if self._is_one_terminal and self._is_mid_answer:
            await self._out.write("\n")
            self._is_mid_answer = False
        self._was_noted = True

    async def _end_note(self) -> None:
        await self._end_key()
        self._held_back = ""
        self._is_at_prompt = False  # Enter has ended its line
        if self._open is not None:
            self._open = None
            await self._err.write("\n")

    async def _end_key(self) -> None:
        if self._is_after_key:
            self._is_after_key = False
            self._open, self._held_back = None, ""
            if self._is_one_terminal:
                self._is_mid_answer = False
            await self._err.write("\n")

    async def _print(self, text: str, style: str, *, end: str) -> None:
        with self._console.capture() as capture:
            self._console.print(Text(clean(text), style), end=end)
        await self._err.write(capture.get())
