"""Stopping an answer from the page, as far as the model's connection."""

from __future__ import annotations

import statistics
import sys

import pytest
import trio
from page_kit import ANSWERS, ESCAPE, ChatPage, Programs, Setting, open_setting

from semibot.testing.model_answers import Answer, Gate, Hang, Text

CLICKS = 10
BOUND = 0.3
"""What it may take from the click to the close of the model's connection, in seconds."""


async def begin(setting: Setting, page: ChatPage, number: int) -> trio.Event:
    """Ask for an answer that hangs; return when its model's connection is seen to be closed."""
    await page.say(f"Talk for ever, {number}")
    await page.wait(f"{ANSWERS}[{number}]?.innerText.includes('I shall')")
    return setting.model.requests[-1].connection.peer_closed


async def test_the_models_connection_is_closed_at_once(
    programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds: list[float] = []
    async with open_setting(programs, Answer(steps=(Text("I shall "), Hang()))) as setting:
        page = await setting.open_page()
        for number in range(CLICKS):
            closed = await begin(setting, page, number)
            spot = await page.find("#stop")
            assert not closed.is_set()
            clicked_at = trio.current_time()
            await page.click_at(spot)
            with trio.fail_after(10):
                await closed.wait()
            closed_at = setting.model.requests[-1].connection.peer_closed_at
            assert closed_at is not None
            seconds.append(closed_at - clicked_at)
            await page.wait(f"{ANSWERS}[{number}].dataset.state === 'cancelled'")
            await page.wait("document.querySelector('#stop').hidden")
        # The receipt says what was stopped, and how long it took.
        receipt = await page.wait(f"{ANSWERS}[0].querySelector('.end').innerText")
        assert receipt.startswith("Stopped in 0.")
        assert "Stopped model call" in receipt
        assert await page.turns() == await page.stored(setting.host)
        assert page.problems == []
    median = statistics.median(seconds)
    with capsys.disabled():
        figures = ", ".join(f"{1000 * each:.0f}" for each in sorted(seconds))
        sys.stdout.write(
            f"\nclick on stop to close of the model's connection: {figures} ms"
            f" (median {1000 * median:.0f})\n"
        )
    assert median < BOUND


async def test_until_the_receipt_comes_the_button_says_so(programs: Programs) -> None:
    may_end = trio.Event()
    async with open_setting(programs, Answer(steps=(Text("I shall "), Gate(may_end)))) as setting:
        page = await setting.open_page()
        await begin(setting, page, 0)
        await page.evaluate(
            "new MutationObserver(() => (window.said ??= []).push("
            "  document.querySelector('#stop').textContent"
            ")).observe(document.querySelector('#stop'), {childList: true, subtree: true})"
        )
        await page.press(*ESCAPE)
        await page.wait("document.querySelector('#stop').hidden")
        assert (await page.evaluate("window.said"))[0] == "Stopping…"
        # Whoever stops by keyboard goes on typing.
        assert await page.evaluate("document.activeElement.id") == "message"
        await page.wait(f"{ANSWERS}[0].querySelector('.end').innerText.includes('Stopped in')")
        # It is the same after a reload, but for the receipt, which is the stopping tab's.
        await page.reload()
        await page.wait_state("cancelled")
        assert await page.answers() == ["I shall"]
        assert await page.evaluate(f"{ANSWERS}[0].querySelector('.end').innerText") == "Stopped."
        assert page.problems == []
