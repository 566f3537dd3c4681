"""The page without a mouse, without eyes, in the dark, on a small screen, without motion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
from chromium import Page
from page_kit import ANSWERS, ENTER, ESCAPE, TAB, ChatPage, Programs, open_setting, question

from semibot.testing.model_answers import (
    Answer,
    Behaviour,
    Gate,
    Hang,
    Refusal,
    Text,
    call_tools,
    say,
)
from semibot.testing.model_server import RecordedRequest

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()

LONG = "Donaudampfschifffahrtsgesellschaft" * 8
RICH = f"""Some `code`, **bold** and https://example.org:

## A heading

> A quotation

1. {LONG}

```python
print("{LONG}")
```
"""


def behave(request: RecordedRequest) -> Behaviour:
    match question(request):
        case "Hang":
            return Answer(steps=(Text("I shall "), Hang()))
        case "Fail":
            return Refusal(status=400, error={"type": "bad"})
        case _ if any(message.role == "tool" for message in request.messages):
            return say(RICH)
        case _:
            denied = ("run_command", {"argv": ["make", LONG]})
            return call_tools(denied, ("read_file", {"path": LONG}), text="First, a look.")


async def show_everything(page: ChatPage) -> None:
    """Bring the page to where it shows all that it can show."""
    await page.say("Rich")
    await page.wait_state("completed")
    await page.say("Fail")
    await page.wait_state("failed")
    await page.say("Hang")
    await page.wait(f"{ANSWERS}[2]?.innerText.includes('I shall')")
    await page.press(*ESCAPE)
    await page.wait_state("cancelled")
    await page.evaluate("document.querySelectorAll('details').forEach((row) => (row.open = true))")


async def tree(page: Page) -> list[dict[str, Any]]:
    """Return what assistive technology gets to know, as ``{role, name}``."""
    await page.send("Accessibility.enable")
    answer = await page.send("Accessibility.getFullAXTree")
    return [
        {key: node[key]["value"].strip() for key in ("role", "name") if key in node}
        for node in answer["nodes"]
        if not node.get("ignored")
    ]


CONTROLS = {"button", "link", "textbox", "DisclosureTriangle", "dialog", "combobox", "checkbox"}
LANDMARKS = {"navigation", "main", "region", "log", "status", "alert"}


async def test_every_control_has_a_name_and_everything_has_enough_contrast(
    programs: Programs,
) -> None:
    async with open_setting(programs, behave) as setting:
        page = await setting.open_page()
        await show_everything(page)
        nodes = await tree(page)
        nameless = [node for node in nodes if node["role"] in CONTROLS and not node.get("name")]
        assert nameless == []
        roles = {node["role"] for node in nodes}
        assert {"navigation", "main", "region", "log", "status"} <= roles
        named = {node.get("name") for node in nodes if node["role"] in CONTROLS}
        assert {"New conversation", "Message", "Send", "Delete this conversation"} <= named
        headings = [node.get("name") for node in nodes if node["role"] == "heading"]
        assert "Rich" in headings
        # The latest answer is told, whole and once.
        log = "document.querySelector('[role=log]').textContent"
        assert (await page.evaluate(log)).startswith("Stopped")
        await page.evaluate(
            "document.querySelector('#notice').hidden = false;"
            "document.querySelector('#notice-text').textContent = 'Something is wrong'"
        )
        for scheme in ("light", "dark"):
            await page.prefer(scheme)
            assert await page.evaluate(CONTRAST) == [], scheme
            await page.click("#delete")
            assert await page.evaluate(CONTRAST) == [], scheme
            await page.press(*ESCAPE)
            await page.wait("!document.querySelector('dialog[open]')")
        assert page.problems == []


async def test_a_small_screen_shows_everything_without_scrolling_sideways(
    programs: Programs,
) -> None:
    async with open_setting(programs, behave) as setting:
        page = await setting.open_page()
        await page.resize(320, 640, is_mobile=True)
        await page.prefer(motion="reduce")  # what slides in cannot be clicked in passing
        await show_everything(page)
        for element in ("documentElement", "querySelector('#scroll')"):
            width = await page.evaluate(f"document.{element}.scrollWidth")
            assert width <= 320, element
        outside = (
            "[...document.querySelectorAll('#main *')]"
            ".filter((each) => each.checkVisibility() && !each.closest('.code pre, .sr'))"
            ".filter((each) => each.getBoundingClientRect().right > 320.5)"
            ".map((each) => each.outerHTML.slice(0, 80))"
        )
        assert await page.evaluate(outside) == []
        # The list comes over the conversation, takes the focus, and goes away again.
        assert not await page.evaluate(
            "document.querySelector('#new').checkVisibility({visibilityProperty: true})"
        )
        await page.click("#menu")
        await page.wait(
            "document.activeElement.id === 'new' && document.querySelector('#main').inert"
        )
        await page.press(*ESCAPE)
        await page.wait(
            "document.activeElement.id === 'menu' && !document.querySelector('#main').inert"
        )
        await page.click("#menu")
        await page.click("#new")
        await page.wait("!document.querySelector('#welcome').hidden && !location.hash")
        assert page.problems == []


async def test_everything_can_be_done_by_keyboard(programs: Programs) -> None:
    async with open_setting(programs, behave) as setting:
        page = await setting.open_page()
        # The message box has the focus already.
        await page.type("Rich")
        await page.press(*ENTER)
        await page.wait_state("completed")
        await page.type("Hang")
        await page.press(*ENTER)
        await page.wait(f"{ANSWERS}[1]?.innerText.includes('I shall')")
        await page.press(*ESCAPE)
        await page.wait_state("cancelled")
        # Round the page once: everything that can be used is reached, and seen to be.
        await page.evaluate("document.querySelector('.skip').focus()")
        reached: list[str] = []
        for _ in range(40):
            await page.press(*TAB)
            name = await page.evaluate(
                "((e) => e.id || e.dataset.sessionId || e.tagName + e.className)"
                "(document.activeElement)"
            )
            has_ring = await page.evaluate(
                "((e) => getComputedStyle(e).outlineStyle !== 'none' || e.id === 'message')"
                "(document.activeElement)"
            )
            assert has_ring, name
            reached.append(name)
            if name == "send":
                break
        order = ["new", "delete", "scroll", "SUMMARY", "message", "send"]
        places = [reached.index(name) for name in order]
        assert places == sorted(places), reached
        # A row opens with Enter, on its heading.
        await page.evaluate("document.querySelector('[data-call] summary').focus()")
        await page.press(*ENTER)
        assert await page.evaluate("document.querySelector('[data-call]').open")
        # Delete: the dialog begins with the harmless choice, and Enter takes what has the focus.
        await page.evaluate("document.querySelector('#delete').focus()")
        await page.press(*ENTER)
        await page.wait("document.activeElement.value === 'no'")
        await page.press(*TAB)
        await page.press(*ENTER)
        await page.wait("!document.querySelector('#welcome').hidden && !location.hash")
        assert await page.evaluate("document.activeElement.id") == "message"
        assert page.problems == []


async def test_the_end_is_followed_only_by_who_is_there_and_nothing_jumps(
    programs: Programs,
) -> None:
    gates = [trio.Event(), trio.Event()]
    lines = [Text(f"Line {number}.\n\n") for number in range(60)]
    answer = Answer(steps=(*lines[:40], Gate(gates[0]), *lines[40:], Gate(gates[1]), Hang()))
    async with open_setting(programs, answer) as setting:
        page = await setting.open_page()
        await page.say("Talk")
        await page.wait(f"{ANSWERS}[0]?.innerText.includes('Line 39.')")
        scroll = "document.querySelector('#scroll')"
        distance = f"({scroll}.scrollHeight - {scroll}.scrollTop - {scroll}.clientHeight)"
        await page.wait(f"{distance} < 2")
        await page.evaluate(
            "window.shifts = []; new PerformanceObserver((list) => window.shifts.push("
            "...list.getEntries().map((entry) => entry.value))).observe({type: 'layout-shift'})"
        )
        # Who reads further up stays there, and is told that there is more.
        await page.evaluate(f"{scroll}.scrollTop = 200")
        await page.wait("!document.querySelector('#to-end').hidden")
        gates[0].set()
        await page.wait(f"{ANSWERS}[0].innerText.includes('Line 59.')")
        assert await page.evaluate(f"{scroll}.scrollTop") == 200
        await page.click("#to-end")
        await page.wait(f"{distance} < 2 && document.querySelector('#to-end').hidden")
        assert sum(await page.evaluate("window.shifts")) < 0.01
        # Nothing moves for those who do not want it.
        await page.prefer(motion="reduce")
        assert await page.evaluate("document.getAnimations().length") == 0
        await page.press(*ESCAPE)
        await page.wait_state("cancelled")
        assert page.problems == []
