"""A real host, a fake model and a real browser, for tests of the page."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import httpx2
from chromium import Browser, Page, open_browser, running_chromium

from semibot.testing.model_answers import Answer, Behaviour, Refusal
from semibot.testing.model_server import ModelServer, RecordedRequest, open_model_server

PATIENCE: Final = 30.0
"""How long a process may take to start or stop, in seconds."""

ENTER: Final = ("Enter", 13)
ESCAPE: Final = ("Escape", 27)
TAB: Final = ("Tab", 9)

ANSWERS: Final = "document.querySelectorAll('.turn[data-role=assistant]')"
"""The answers on a page, in JavaScript."""

TURNS: Final = """
[...document.querySelectorAll(".turn")].map((turn) => [
  turn.dataset.role,
  turn.dataset.role === "user"
    ? turn.lastChild.textContent
    : [...turn.querySelectorAll(".text > *")].map((block) => block.textContent).join("\\n"),
])
"""
"""Who said what, in JavaScript."""


def question(request: RecordedRequest) -> str:
    """Return what the user said last."""
    return next(each.content for each in reversed(request.messages) if each.role == "user")


def squeeze(text: str) -> str:
    return " ".join(text.split())


class ChatPage(Page):
    """A tab with the page, and what people do on it."""

    async def say(self, text: str) -> None:
        await self.click("#message")
        await self.type(text)
        await self.press(*ENTER)

    async def wait_state(self, state: str, count: int = 1) -> None:
        """Wait until *count* answers are in *state*."""
        selector = f".turn[data-role=assistant][data-state={state}]"
        await self.wait(f"document.querySelectorAll('{selector}').length === {count}")

    async def turns(self) -> list[tuple[str, str]]:
        """Return who said what, as it is shown; space is not compared, but shaped by blocks."""
        return [(role, squeeze(text)) for role, text in await self.evaluate(TURNS)]

    async def answers(self) -> list[str]:
        return [text for role, text in await self.turns() if role == "assistant"]

    async def stored(self, host: HostProcess) -> list[tuple[str, str]]:
        """Return who said what, as it is stored."""
        session_id = (await self.evaluate("location.hash")).rpartition("/")[2]
        messages = await host.messages(session_id)
        return [(message["role"], squeeze(message["content"])) for message in messages]


@attrs.define(eq=False)
class HostProcess:
    """``semibot serve``, with a data directory of its own, on a port that outlives restarts."""

    directory: Path
    environment: dict[str, str]
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def workspace(self) -> Path:
        return self.directory / "workspace"

    def start(self) -> None:
        """Start it, and wait until it says that it answers."""
        self.workspace.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "semibot", "serve", "--port", str(self.port)]
        command += ["--data-dir", str(self.directory / "data"), "--workspace", str(self.workspace)]
        with (self.directory / "host.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                cwd=self.directory,
            )
        assert self.process.stdout is not None
        with self.process.stdout as stdout:  # it prints nothing else
            said = stdout.readline().decode()
        assert said.startswith("semibot listening on"), f"the host did not start:\n{self.log}"
        self.port = int(said.strip().rpartition(":")[2])

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal, and wait until it is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE)

    @property
    def log(self) -> str:
        return (self.directory / "host.log").read_text(errors="replace")

    async def get(self, path: str) -> Any:
        """Return the ``data`` of an answer."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(self.url + path)
        return answer.json()["data"]

    async def messages(self, session_id: str) -> list[dict[str, Any]]:
        """Return the newest stored messages."""
        return (await self.get(f"api/v1/sessions/{session_id}/messages?limit=200"))["messages"]


@contextmanager
def running_host(directory: Path, **environment: str) -> Generator[HostProcess]:
    """Run a host for the length of the block; with a signal it ends, by force if need be.

    Args:
        directory: An empty one.
        **environment: Variables beside the few that every host gets.
    """
    base = {"PATH": os.environ["PATH"], "HOME": str(directory), "LANG": "C.UTF-8"}
    host = HostProcess(directory, {**base, **environment})
    try:
        host.start()
        yield host
        host.end()
    finally:
        host.end(signal.SIGKILL)


@attrs.frozen
class Programs:
    """What is started once for all tests, because it takes seconds."""

    browser_url: str
    host: HostProcess
    model_port: int


@contextmanager
def running_programs(directory: Path) -> Generator[Programs]:
    """Run a Chromium, and a host whose VMs find a model at a port where tests open one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        model_port = listener.getsockname()[1]
    (directory / "host").mkdir()
    model = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{model_port}/v1",
        "OPENAI_API_KEY": "sk-of-the-page-tests",
        "SEMIBOT_MODEL": "openai:fake",
    }
    with (
        running_chromium(directory / "profile") as browser_url,
        running_host(directory / "host", **model) as host,
    ):
        yield Programs(browser_url, host, model_port)


@attrs.define(eq=False)
class Setting:
    """What a test of the page plays with."""

    host: HostProcess
    model: ModelServer
    browser: Browser
    behave: Callable[[RecordedRequest], Behaviour]

    async def open_page(self, address: str = "") -> ChatPage:
        """Open a tab, and wait until it can be used."""
        page = await self.browser.new_page(self.host.url + address, ChatPage)
        await page.wait("document.activeElement?.id === 'message'")
        return page


@asynccontextmanager
async def open_setting(
    programs: Programs, behaviour: Behaviour | Callable[[RecordedRequest], Behaviour]
) -> AsyncGenerator[Setting]:
    """Run a model for the host's VM, and open a browser, for the length of the block.

    Args:
        programs: What runs already.
        behaviour: What the model does; ``setting.behave`` can be replaced at any time.
    """
    chooser = (lambda _: behaviour) if isinstance(behaviour, Answer | Refusal) else behaviour

    def choose(request: RecordedRequest) -> Behaviour:
        return setting.behave(request)

    async with (
        open_model_server(choose, port=programs.model_port) as model,
        open_browser(programs.browser_url) as browser,
    ):
        setting = Setting(programs.host, model, browser, chooser)
        yield setting
