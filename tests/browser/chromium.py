"""Drive a real headless Chromium over the DevTools protocol, from Trio."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
from trio_websocket import ConnectionClosed, open_websocket_url

PATIENCE = 20.0
"""How long anything may take that a page is expected to do, in seconds."""

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
)


def find_chromium() -> str:
    """Return the browser's program."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise AssertionError(
        "the browser tests need Chromium: on Debian and Ubuntu `apt-get install chromium`"
    )


class PageError(AssertionError):
    """Raised when a script in a page throws, or a page does not do what it should in time."""


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session_id: str, target_id: str) -> None:
        self._browser = browser
        self._session_id = session_id
        self._target_id = target_id

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._browser.send(method, params, self._session_id)

    async def goto(self, url: str) -> None:
        await self.send("Page.navigate", url=url)
        await self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def reload(self) -> None:
        await self.evaluate("window.isOld = true")
        await self.send("Page.reload")
        await self.wait("!window.isOld && document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        answer = await self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    async def wait(self, condition: str, patience: float = PATIENCE) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        value = None
        with trio.move_on_after(patience):
            while True:
                try:
                    value = await self.evaluate(
                        f"(value => value instanceof Node ? true : value || null)({condition})"
                    )
                except PageError:
                    value = None  # a page that is just being left
                if value is not None:
                    return value
                await trio.sleep(0.02)
        text = await self.evaluate("document.body.innerText")
        raise PageError(f"{condition} did not come true; the page says:\n{text}")

    async def find(self, selector: str) -> dict[str, float]:
        """Wait until an element can be clicked, and return its middle.

        Brings the tab to the front, as nobody can click in another one.
        """
        await self.send("Page.bringToFront")
        return await self.wait(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " if (!e || e.hidden || e.disabled) return null;"
            " e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
            " return b.width ? {x: b.x + b.width / 2, y: b.y + b.height / 2} : null; })()"
        )

    async def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element once it stands still."""
        before, spot = None, await self.find(selector)
        with trio.fail_after(PATIENCE):
            while spot != before:
                await self.evaluate("new Promise(requestAnimationFrame)")
                before, spot = spot, await self.find(selector)
        await self.click_at(spot)

    async def click_at(self, spot: dict[str, float]) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **spot
            )

    async def type(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **text,
            )

    async def resize(self, width: int, height: int, *, is_mobile: bool = False) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=is_mobile,
        )
        await self.wait(f"innerWidth === {width}")

    async def prefer(self, scheme: str = "light", motion: str = "no-preference") -> None:
        """Prefer ``light`` or ``dark``, and ``reduce`` motion or not."""
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        await self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )

    async def screenshot(self) -> bytes:
        """Return a PNG of what is seen."""
        answer = await self.send("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])

    @property
    def problems(self) -> list[str]:
        """What the page complained about: exceptions, and errors on its console."""
        return self._browser.problems[self._session_id]

    async def close(self) -> None:
        await self._browser.send("Target.closeTarget", {"targetId": self._target_id})


AnyPage = TypeVar("AnyPage", bound=Page)


class Browser:
    """One Chromium. Made by :func:`open_browser`."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._next_id = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._news = trio.lowlevel.ParkingLot()
        self.context = ""
        self.problems: dict[str, list[str]] = defaultdict(list)

    async def send(
        self, method: str, params: dict[str, Any], session_id: str | None = None
    ) -> dict[str, Any]:
        self._next_id += 1
        number = self._next_id
        message = {"id": number, "method": method, "params": params}
        if session_id is not None:
            message["sessionId"] = session_id
        with trio.fail_after(PATIENCE):
            await self._socket.send_message(json.dumps(message))
            while number not in self._answers:
                await self._news.park()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    async def serve(self) -> None:
        while True:
            try:
                message = json.loads(await self._socket.get_message())
            except ConnectionClosed:
                return
            if "id" in message:
                self._answers[message["id"]] = message
                self._news.unpark_all()
                continue
            session_id, params = message.get("sessionId", ""), message.get("params", {})
            match message["method"]:
                case "Runtime.exceptionThrown":
                    details = params["exceptionDetails"]
                    text = details.get("exception", {}).get("description", details["text"])
                    self.problems[session_id].append(text)
                case "Log.entryAdded" if params["entry"]["level"] == "error":
                    entry = params["entry"]
                    self.problems[session_id].append(f"{entry['text']} {entry.get('url', '')}")
                case _:
                    pass

    async def new_page(self, url: str, kind: type[AnyPage] = Page) -> AnyPage:
        target = await self.send(
            "Target.createTarget", {"url": "about:blank", "browserContextId": self.context}
        )
        attached = await self.send(
            "Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}
        )
        page = kind(self, attached["sessionId"], target["targetId"])
        for domain in ("Page", "Runtime", "Log"):
            await page.send(f"{domain}.enable")
        await page.resize(1200, 800)
        await page.goto(url)
        return page


@contextmanager
def running_chromium(profile: Path) -> Generator[str]:
    """Run a Chromium for the length of the block.

    Args:
        profile: A directory of its own; made if missing.

    Yields:
        The URL of its DevTools.
    """
    profile.mkdir(exist_ok=True)
    command = [find_chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    log_path, port_path = profile / "chromium.log", profile / "DevToolsActivePort"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        began = time.monotonic()
        while not (port_path.exists() and len(port_path.read_text().split()) == 2):
            has_failed = process.poll() is not None or time.monotonic() - began > PATIENCE
            assert not has_failed, f"Chromium did not start: {log_path.read_text()}"
            time.sleep(0.02)  # it tells nobody, and there is nothing else to do yet
        port, path = port_path.read_text().split()
        yield f"ws://127.0.0.1:{port}{path}"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def open_browser(url: str) -> AsyncGenerator[Browser]:
    """Use a Chromium as if it was fresh: with no tabs, and storage of its own.

    Args:
        url: Of its DevTools.
    """
    async with open_websocket_url(url, max_message_size=2**26) as socket:
        browser = Browser(socket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(browser.serve)
            context = await browser.send("Target.createBrowserContext", {})
            browser.context = context["browserContextId"]
            try:
                yield browser
            finally:
                with trio.move_on_after(5, shield=True):
                    await browser.send(
                        "Target.disposeBrowserContext", {"browserContextId": browser.context}
                    )
            nursery.cancel_scope.cancel()
