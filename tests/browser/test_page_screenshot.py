"""The picture of the page in the README: taken here, and written if it is asked for.

``SEMIBOT_WRITE_SCREENSHOT=1 python -m pytest tests/browser/test_page_screenshot.py``
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from page_kit import Programs, open_setting, question

from semibot.testing.model_answers import Behaviour, call_tools, say
from semibot.testing.model_server import RecordedRequest

PICTURE = Path(__file__).parents[2] / "docs" / "_static" / "screenshot.png"
SIZE = (1200, 800)

NOTES = """# Release notes

- Stopping closes the model's connection at once.
- A page that was reloaded goes on where it was.
"""
ANSWER = """`release.md` lists **two changes**:

1. Stopping an answer closes the model's connection at once.
2. A page that was reloaded goes on where it was.

To read it yourself:

```sh
cat release.md
```
"""


def behave(request: RecordedRequest) -> Behaviour:
    if "release.md" not in question(request):
        return say("Of course.")
    if any(message.role == "tool" for message in request.messages):
        return say(ANSWER)
    return call_tools(("read_file", {"path": "release.md"}))


async def test_the_picture_of_the_readme_can_be_taken(programs: Programs) -> None:
    async with open_setting(programs, behave) as setting:
        (setting.host.workspace / "release.md").write_text(NOTES)
        page = await setting.open_page()
        # The same picture whatever the hour, and whatever was said before.
        await page.evaluate(
            "fetch('/api/v1/sessions?limit=100').then((answer) => answer.json()).then((answer) =>"
            " Promise.all(answer.data.sessions.map(({id}) =>"
            " fetch(`/api/v1/sessions/${id}`, {method: 'DELETE'}))))"
        )
        await page.send(
            "Page.addScriptToEvaluateOnNewDocument",
            source="Date.prototype.toLocaleTimeString = () => '10:24'",
        )
        await page.prefer("light", "reduce")
        await page.reload()
        for words in ("Why does this test take so long?", "Draft an announcement"):
            await page.say(words)
            await page.wait_state("completed")
            await page.click("#new")
        await page.say("What is in release.md?")
        await page.wait_state("completed")
        await page.wait("document.querySelectorAll('#conversations a').length === 3")
        await page.evaluate(
            "document.activeElement.blur();"
            "document.querySelector('[data-call]').open = true;"
            "document.querySelector('[data-call] .state').textContent = '✓ 4 ms'"
        )
        await page.wait("document.querySelector('#conversations a').ariaCurrent === 'page'")
        await page.send("Page.bringToFront")
        await page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        picture = await page.screenshot()
        assert page.problems == []
    assert struct.unpack(">II", picture[16:24]) == SIZE
    if os.environ.get("SEMIBOT_WRITE_SCREENSHOT") == "1":
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes(picture)
    assert struct.unpack(">II", PICTURE.read_bytes()[16:24]) == SIZE
