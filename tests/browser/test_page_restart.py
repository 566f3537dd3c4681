"""A page that is open while the host goes away and comes back."""

from __future__ import annotations

import signal

import trio
from page_kit import ANSWERS, ChatPage, Programs, open_setting, question

from semibot.testing.model_answers import Answer, Behaviour, Done, Finish, Gate, Hang, Text, say
from semibot.testing.model_server import RecordedRequest


async def check_problems(page: ChatPage) -> None:
    """A browser notes every connection that fails; nothing else may be wrong."""
    assert [each for each in page.problems if "Failed to load resource" not in each] == []


async def test_an_answer_ends_before_its_host_does(programs: Programs) -> None:
    host = programs.host
    may_end = trio.Event()
    answer = Answer(steps=(Text("I shall "), Gate(may_end), Text("end."), Finish(), Done()))
    async with open_setting(programs, answer) as setting:
        page = await setting.open_page()
        await page.say("How are you?")
        await page.wait(f"{ANSWERS}[0]?.innerText.includes('I shall')")
        host.process.send_signal(signal.SIGTERM)
        await page.wait("fetch('/readyz').then((answer) => answer.status === 503)")
        await page.say("Another one")
        notice = "document.querySelector('#notice')"
        assert await page.wait(f"!{notice}.hidden && {notice}.innerText")
        may_end.set()
        await page.wait_state("completed")
        await page.wait("document.querySelector('#link').innerText === 'Reconnecting…'")
        await trio.to_thread.run_sync(host.end)
        await trio.to_thread.run_sync(host.start)
        await page.wait("document.body.dataset.link === 'up'")
        # What the stopping host refused is still in the box.
        setting.behave = lambda request: say(question(request))
        await page.press("Enter", 13)
        await page.wait_state("completed", 2)
        assert await page.answers() == ["I shall end.", "Another one"]
        assert await page.turns() == await page.stored(host)
        await check_problems(page)


def behave(request: RecordedRequest) -> Behaviour:
    if question(request).startswith("Talk"):
        return Answer(steps=(Text("I shall talk "), Hang()))
    return say("I am well.")


async def test_an_answer_whose_host_was_killed_is_interrupted_and_the_page_goes_on(
    programs: Programs,
) -> None:
    host = programs.host
    async with open_setting(programs, behave) as setting:
        page = await setting.open_page()
        await page.say("How are you?")
        await page.wait_state("completed")
        await page.say("Talk for ever")
        await page.wait(f"{ANSWERS}[1]?.innerText.includes('I shall talk')")
        await trio.to_thread.run_sync(host.end, signal.SIGKILL)
        await page.wait("document.querySelector('#link').innerText === 'Reconnecting…'")
        await trio.to_thread.run_sync(host.start)
        await page.wait("document.body.dataset.link === 'up'")
        await page.wait_state("failed")
        said = await page.evaluate(f"{ANSWERS}[1].querySelector('.end').innerText")
        assert said.startswith("This answer was interrupted.")
        assert await page.turns() == await page.stored(host)
        # And it can be asked again, with the button that it offers, and still does after a reload.
        assert await page.evaluate("document.querySelectorAll('.end button').length") == 1
        await page.reload()
        await page.wait_state("failed")
        setting.behave = lambda _: say("Better now.")
        await page.click(".end button")
        await page.wait_state("completed", 2)
        assert await page.turns() == await page.stored(host)
        assert (await page.answers())[-1] == "Better now."
        await check_problems(page)
