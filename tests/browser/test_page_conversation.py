"""The page as one reader among others: what it shows is what is stored, once."""

from __future__ import annotations

import trio
from page_kit import ANSWERS, Programs, open_setting, question

from semibot.testing.model_answers import (
    Answer,
    Behaviour,
    Done,
    Finish,
    Gate,
    Text,
    call_tools,
    say,
)
from semibot.testing.model_server import RecordedRequest

WORDS = tuple(f"word{number} " for number in range(60))


async def test_an_answer_is_streamed_with_the_file_that_was_read(programs: Programs) -> None:
    may_end = trio.Event()

    def behave(request: RecordedRequest) -> Behaviour:
        results = [message.content for message in request.messages if message.role == "tool"]
        if not results:
            return call_tools(("read_file", {"path": "notes.txt"}))
        first = results[-1].splitlines()[0]
        return Answer(
            steps=(Text(f"It says {first}"), Gate(may_end), Text(" today."), Finish(), Done())
        )

    async with open_setting(programs, behave) as setting:
        (setting.host.workspace / "notes.txt").write_text("Buy milk\nand bread\n")
        page = await setting.open_page()
        await page.say("What is in notes.txt?")
        # The answer is on the page before the model has ended it.
        await page.wait(f"{ANSWERS}[0]?.innerText.includes('It says Buy milk')")
        assert await page.evaluate(f"{ANSWERS}[0].dataset.state") == "running"
        row = "document.querySelector('[data-call=read_file]')"
        assert await page.evaluate(f"{row}.open") is False
        assert "notes.txt" in await page.evaluate(f"{row}.innerText")
        assert "✓" in await page.evaluate(f"{row}.innerText")
        await page.click("[data-call=read_file] summary")
        await page.wait(f"{row}.open && {row}.innerText.includes('and bread')")
        may_end.set()
        await page.wait_state("completed")
        assert await page.answers() == ["It says Buy milk today."]
        assert await page.stored(setting.host) == await page.turns()
        assert setting.model.requests[0].headers["authorization"] == "Bearer sk-of-the-page-tests"
        assert setting.model.problems == []
        assert page.problems == []


async def test_a_reload_and_a_second_tab_in_the_middle_of_a_run_miss_and_repeat_nothing(
    programs: Programs,
) -> None:
    gates = [trio.Event() for _ in range(3)]
    parts = (WORDS[:20], WORDS[20:40], WORDS[40:])
    steps: list[object] = [Text("Let me see. ")]
    for gate, part in zip(gates, parts, strict=True):
        steps += [Gate(gate), *map(Text, part)]

    def behave(request: RecordedRequest) -> Behaviour:
        if not any(message.role == "tool" for message in request.messages):
            return call_tools(("list_files", {}), text="First a look. ")
        return Answer(steps=(*steps, Finish(), Done()))

    async with open_setting(programs, behave) as setting:
        first = await setting.open_page()
        await first.say("Count, please.")
        gates[0].set()
        await first.wait(f"{ANSWERS}[0]?.innerText.includes('word19')")
        await first.reload()
        second = await setting.open_page(await first.evaluate("location.hash"))
        for page in (first, second):
            await page.wait(f"{ANSWERS}[0]?.innerText.includes('word19')")
            # What has happened before is there too, not only the text.
            assert await page.evaluate("document.querySelectorAll('[data-call]').length") == 1
        gates[1].set()
        await second.wait(f"{ANSWERS}[0].innerText.includes('word39')")
        await second.reload()
        gates[2].set()
        for page in (first, second):
            await page.wait_state("completed")
        turns = await first.turns()
        assert turns == await second.turns() == await first.stored(setting.host)
        assert turns == [
            ("user", "Count, please."),
            ("assistant", "First a look. Let me see. " + "".join(WORDS).strip()),
        ]
        assert first.problems == second.problems == []


async def test_what_one_tab_says_every_tab_shows_once(programs: Programs) -> None:
    async with open_setting(
        programs, lambda request: say(f"You said {question(request)}")
    ) as setting:
        first = await setting.open_page()
        await first.say("one")
        await first.wait_state("completed")
        second = await setting.open_page(await first.evaluate("location.hash"))
        await second.wait_state("completed")
        await second.say("two")
        await second.wait_state("completed", 2)
        await first.wait_state("completed", 2)
        await first.say("three")
        for page in (first, second):
            await page.wait_state("completed", 3)
        said = [("user", "one"), ("assistant", "You said one"), ("user", "two")]
        said += [("assistant", "You said two"), ("user", "three"), ("assistant", "You said three")]
        assert await first.turns() == await second.turns() == said
        assert said == await first.stored(setting.host)
        session_id = (await first.evaluate("location.hash")).rpartition("/")[2]
        # A conversation that is deleted in one tab is gone in the other.
        await first.click("#delete")
        await first.click("#confirm button[value=yes]")
        await first.wait("!document.querySelector('#welcome').hidden && !location.hash")
        await second.wait("document.body.dataset.link === 'gone'")
        assert "does not exist any more" in await second.evaluate(
            "document.querySelector('[role=alert]').innerText"
        )
        for page in (first, second):
            await page.wait(f"!document.querySelector('#conversations a[href$=\"{session_id}\"]')")
            assert page.problems == []


async def test_a_message_that_is_sent_twice_at_once_is_one_message(programs: Programs) -> None:
    async with open_setting(programs, say("Well.")) as setting:
        page = await setting.open_page()
        await page.type("Once")
        await page.evaluate(
            "for (let i = 0; i < 3; i += 1) document.querySelector('#composer').requestSubmit()"
        )
        await page.wait_state("completed")
        assert await page.stored(setting.host) == [("user", "Once"), ("assistant", "Well.")]
        sessions = (await setting.host.get("api/v1/sessions"))["sessions"]
        assert [session["title"] for session in sessions].count("Once") == 1
        # A message while an answer is under way ends that answer first.
        setting.behave = lambda request: (
            Answer(steps=(Text("For ever"), Gate(trio.Event())))
            if question(request) == "Long"
            else say("Short.")
        )
        await page.say("Long")
        await page.wait(f"{ANSWERS}[1]?.innerText.includes('For ever')")
        await page.say("Other")
        await page.wait_state("completed", 2)
        assert await page.turns() == await page.stored(setting.host)
        assert [role for role, _ in await page.turns()] == ["user", "assistant"] * 3
        assert await page.evaluate(f"{ANSWERS}[1].dataset.state") == "cancelled"
        assert page.problems == []


async def test_markup_from_outside_stays_text(programs: Programs) -> None:
    attack = '<img src=x onerror="window.isHurt = true"><script>window.isHurt = true</script>'
    link = "[a](javascript:window.isHurt=true)"

    def behave(request: RecordedRequest) -> Behaviour:
        if not any(message.role == "tool" for message in request.messages):
            return call_tools(("read_file", {"path": "evil.txt"}))
        return say(f"{attack} {link} `{attack}`\n\n```\n{attack}\n```\n\n- {attack}\n\n# {attack}")

    async with open_setting(programs, behave) as setting:
        (setting.host.workspace / "evil.txt").write_text(attack)
        page = await setting.open_page()
        await page.say(attack)
        await page.wait_state("completed")
        await page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        log = "document.querySelector('#log')"
        assert (
            await page.evaluate(f"{log}.querySelectorAll('.turns img, script, iframe').length") == 0
        )
        assert await page.evaluate(f"{log}.querySelectorAll('a[href^=javascript]').length") == 0
        text = await page.evaluate(f"{log}.textContent")
        assert text.count("onerror") >= 6  # question, call, answer: shown, and as it is
        await page.reload()
        await page.wait_state("completed")
        await page.wait("document.querySelectorAll('#conversations li > *').length > 0")
        assert await page.evaluate("window.isHurt === undefined")
        assert page.problems == []


async def test_earlier_messages_and_many_conversations_come_page_by_page(
    programs: Programs,
) -> None:
    async with open_setting(programs, lambda request: say(f"No. {question(request)}")) as setting:
        page = await setting.open_page()
        await page.say("0")
        await page.wait_state("completed")
        address = await page.evaluate("location.hash")
        session_id = address.rpartition("/")[2]
        # Through the API, as a person with many tabs, because it is quicker.
        await page.evaluate(
            "(async () => { for (let number = 1; number < 27; number += 1) {"
            f" const answer = await fetch('/api/v1/chat/sessions/{session_id}', {{ method: 'POST',"
            " headers: {'Content-Type': 'application/json'},"
            " body: JSON.stringify({message: String(number)}) }); await answer.text(); } })()"
        )
        await page.wait_state("completed", 27)
        await page.reload()
        await page.wait_state("completed", 25)
        await page.click("#earlier")
        await page.wait_state("completed", 27)
        assert await page.evaluate("document.querySelector('#earlier').hidden")
        expected = [
            item for n in range(27) for item in (("user", f"{n}"), ("assistant", f"No. {n}"))
        ]
        assert await page.turns() == expected
        assert page.problems == []
