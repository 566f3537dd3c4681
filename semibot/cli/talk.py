"""The conversation behind ``semibot chat``: ask, show, ask again; with whoever answers."""

from __future__ import annotations

import re
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, Protocol, final

import attrs
import trio

from semibot.errors import CursorExpired, HostRefused, HostUnreachable, UsageError
from semibot.live import live_ports
from semibot.ports import Ports
from semibot.session import JournalEntry
from semibot.wire.events import ExecutionComplete, ExecutionError, TerminalEvent
from semibot.wire.receipts import Receipt

from . import exits
from .failures import is_configuration_code
from .interrupts import Interrupts, Stoppable, open_interrupts
from .keyboard import Keyboard
from .logs import configure_logs
from .render import JsonView, TextView, show_end
from .screen import BAD, DIM, ODD, Screen

HELP: Final = """\
Type a message and press Enter. Ctrl-C stops an answer, twice it leaves.
  /help  shows this
  /exit  leaves, as Ctrl-D does"""
"""What ``/help`` says."""

_COMMAND: Final = re.compile(r"/[A-Za-z]+")
"""One word like ``/help``; whatever has more in it, such as a path, is a message."""


@attrs.frozen(kw_only=True)
class ChatOptions:
    """What the user asked for on the command line."""

    runtime: str
    """Name of the runtime."""
    model: str | None
    """The model; None leaves it to the runtime."""
    workspace: Path
    """The directory that the agent works in."""
    session_id: str | None
    """The session to continue; None makes a new one."""
    grants: tuple[str, ...]
    """What else the agent may do."""
    is_json: bool
    """Whether standard output carries events as JSON."""
    is_verbose: bool
    """Whether to show what is merely of interest."""
    message: str | None
    """The one message; None asks for messages."""
    url: str | None = None
    """The host that answers; empty means the environment's or the usual one, and None runs the
    agent in this process."""


class Answer(Stoppable, Protocol):
    """One answer as it comes."""

    @property
    def receipt(self) -> Receipt | None:
        """What was stopped, if the answer was, and has ended."""
        ...

    async def next_entry(self) -> JournalEntry:
        """Return the next event, up to the terminal one.

        Raises:
            CursorExpired: If events are no longer kept; the next call goes on after them.
        """
        ...


class Partner(Protocol):
    """Who answers: a session in this process, or one on a host."""

    def introduction(self) -> str:
        """Return who it is, where it works and what it may do."""
        ...

    def ask(self, message: str) -> AbstractAsyncContextManager[Answer]:
        """Ask, and hold the answer."""
        ...


def run_chat(options: ChatOptions) -> int:
    """Chat until the user leaves, and return the exit code.

    Args:
        options: What the user asked for.

    Raises:
        SemibotError: If there can be no session, or it broke.
        ExceptionGroup: Of such errors.
        OutputClosed: If nobody reads standard output any more.
    """
    return trio.run(_chat, options)


async def _chat(options: ChatOptions) -> int:
    ports = live_ports()
    screen = Screen(ports)
    configure_logs(is_verbose=options.is_verbose, take_line=screen.take_line)
    exit_code = exits.COMPLETED
    async with open_interrupts() as interrupts:
        exit_code = await _open(options, ports, screen, interrupts)
    return exit_code if interrupts.exit_code is None else interrupts.exit_code


async def _open(options: ChatOptions, ports: Ports, screen: Screen, interrupts: Interrupts) -> int:
    keyboard = Keyboard(sys.stdin)
    message = options.message
    if message is None and not keyboard.is_terminal:
        message = await keyboard.read_all()
    if message is not None and not message.strip():
        raise UsageError("the message is blank; write it after the options, or pipe it in")
    async with _open_partner(options, ports) as partner:
        dialogue = Dialogue(options, partner, screen, keyboard, interrupts)
        if message is not None:
            if options.is_verbose:
                await dialogue.introduce()
            return await dialogue.ask_once(message)
        return await dialogue.ask_on()


def _open_partner(options: ChatOptions, ports: Ports) -> AbstractAsyncContextManager[Partner]:
    # Imported here: only one of the two is needed, and each takes its time.
    if options.url is None:
        from .local import open_local_partner

        return open_local_partner(options, ports)
    from .remote import open_remote_partner

    return open_remote_partner(options, ports)


@final
@attrs.frozen
class Dialogue:
    """Somebody who answers, and the person in front of it."""

    options: ChatOptions
    """What they asked for."""
    partner: Partner
    """Who answers."""
    screen: Screen
    """What they see."""
    keyboard: Keyboard
    """What they type."""
    interrupts: Interrupts
    """What their Ctrl-C means."""

    async def ask_once(self, message: str) -> int:
        """Ask *message* and return the exit code that its outcome means."""
        terminal = await self._ask(message, is_interactive=False)
        match terminal:
            case ExecutionComplete(cancelled=None):
                return exits.COMPLETED
            case ExecutionError(code=code) if is_configuration_code(code):
                return exits.CONFIGURATION
            case _:
                return exits.FAILED

    async def ask_on(self) -> int:
        """Ask what the user types, until they leave."""
        await self.introduce()
        await self.screen.note(
            "/help says more, Ctrl-D leaves; --session with the id above continues later", DIM
        )
        while self.interrupts.exit_code is None:
            await self.screen.prompt()
            line: str | None = None
            with self.interrupts.at_prompt() as scope:
                line = await self.keyboard.read_line()
            if scope.cancelled_caught:
                self.keyboard.forget()
                self.screen.key_was_shown()
                await self.screen.end_line()
                if self.interrupts.exit_code is None:
                    await self.screen.note("Ctrl-C once more leaves, and so does Ctrl-D.", DIM)
            elif line is None:
                self.screen.key_was_shown()
                await self.screen.end_line()
                break
            elif line.strip() == "/exit":
                break
            elif line.strip() == "/help":
                await self.screen.note(HELP)
            elif _COMMAND.fullmatch(line.strip()):
                await self.screen.note(
                    f"there is no command {line.strip()}; there are /help and /exit", ODD
                )
            elif line.strip():
                try:
                    await self._ask(line, is_interactive=True)
                except (HostRefused, HostUnreachable) as exc:
                    # The host may take the next message, or be there again by then.
                    await self.screen.end_answer()
                    await self.screen.note(f"failed: {exc}", BAD)
        return exits.COMPLETED

    async def introduce(self) -> None:
        """Say who is talking, where, and what the agent may do."""
        await self.screen.note(self.partner.introduction(), DIM)

    async def _ask(self, message: str, *, is_interactive: bool) -> TerminalEvent:
        async with self.partner.ask(message) as answer:
            with self.interrupts.during(
                answer, is_interactive=is_interactive, on_key=self.screen.key_was_shown
            ):
                terminal = await self._show(answer)
                await show_end(
                    self.screen, terminal, answer.receipt, is_verbose=self.options.is_verbose
                )
        return terminal

    def _make_view(self) -> JsonView | TextView:
        if self.options.is_json:
            return JsonView(self.screen)
        return TextView(self.screen, is_verbose=self.options.is_verbose)

    async def _show(self, answer: Answer) -> TerminalEvent:
        """Show the events of an answer up to its terminal one, and return that."""
        view = self._make_view()
        while True:
            try:
                entry = await answer.next_entry()
            except CursorExpired as exc:
                await self.screen.note(
                    f"events {exc.after + 1} to {exc.oldest - 1} are not shown: "
                    "what reads this output was too slow",
                    ODD,
                )
                continue
            await view.show(entry)
            if isinstance(entry.event, ExecutionComplete | ExecutionError):
                return entry.event
