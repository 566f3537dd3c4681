"""What goes wrong is said in words that tell what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import find_chromium, open_browser
from page_kit import ANSWERS, ChatPage, Programs, open_setting, running_host

from semibot.live import live_ports
from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.testing.model_answers import Refusal

KEY = "a key for the tests of the page, long enough"
ALERT = "document.querySelector('#notice')"


async def test_what_a_model_refuses_is_said_under_the_question(programs: Programs) -> None:
    refusal = Refusal(status=401, error={"type": "auth", "message": "no such key"})
    async with open_setting(programs, refusal) as setting:
        page = await setting.open_page()
        await page.say("Hello")
        await page.wait_state("failed")
        said = await page.evaluate(f"{ANSWERS}[0].querySelector('.end').innerText")
        assert "401" in said
        await page.reload()
        await page.wait_state("failed")
        assert await page.evaluate(f"{ANSWERS}[0].querySelector('.end').innerText") == said
        assert page.problems == []


async def test_signing_in_and_a_plane_that_does_not_start(
    programs: Programs, tmp_path: Path
) -> None:
    environment = {"SEMIBOT_ENV": "production", "JWT_SECRET": KEY, "VM_BOOTSTRAP_CMD": "false"}
    tokens = Tokens(Secret(KEY), live_ports().wall_clock, 3600)
    with running_host(tmp_path, **environment) as host:
        async with open_browser(programs.browser_url) as browser:
            page = await browser.new_page(host.url, ChatPage)
            await page.wait("document.querySelector('#sign-in').open")
            await page.type("not-a-token")
            await page.press("Enter", 13)
            await page.wait("!document.querySelector('#sign-in-wrong').hidden")
            await page.type(tokens.make_user_token("somebody", "org").strip())
            await page.press("Enter", 13)
            await page.wait("!document.querySelector('#sign-in').open")
            await page.reload()  # it is remembered while the tab is open
            assert not await page.evaluate("document.querySelector('#sign-in').open")

            await page.say("Is anybody there?")
            said = await page.wait(f"!{ALERT}.hidden && {ALERT}.innerText", 40)
            assert said.startswith("The execution plane is "), said
            assert "nothing was sent" in said
            # What was typed is still there to be sent again, and nothing was stored.
            assert await page.evaluate("document.querySelector('#message').value")
            assert await page.evaluate("location.hash") == ""
            await page.click("#notice-close")
            await page.wait(f"{ALERT}.hidden")

            host.end()
            await page.click("#send")
            said = await page.wait(f"!{ALERT}.hidden && {ALERT}.innerText")
            assert "cannot be reached" in said
            await page.close()


async def test_an_address_that_leads_nowhere_says_so(programs: Programs) -> None:
    async with open_browser(programs.browser_url) as browser:
        page = await browser.new_page(f"{programs.host.url}#/nonsense", ChatPage)
        await page.wait("document.body.dataset.link === 'gone'")
        assert "does not exist" in await page.evaluate(f"{ALERT}.innerText")
        await page.click("#new")
        await page.wait(f"{ALERT}.hidden && document.activeElement.id === 'message'")


def test_without_a_browser_the_tests_fail_and_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AssertionError, match="apt-get install chromium"):
        find_chromium()
