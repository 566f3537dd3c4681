"""What the page says of an execution plane that does not do well."""

from __future__ import annotations

import json

from page_kit import Programs, open_setting

BLOCK = {"seconds": 20.04, "where": "agent.py:12 in work", "stack": []}
WORDS = {
    "alive": "",
    "busy": "The execution plane is busy; answers may be slow.",
    "blocked": "The execution plane stood still for 20.0 s, held up by agent.py:12 in work.",
    "silent": "The execution plane has said nothing for 16.0 s; waiting for it.",
    "dead": "The execution plane has said nothing for 16.0 s and may be gone.",
}


async def test_every_state_has_its_words(programs: Programs) -> None:
    async with open_setting(programs, lambda request: None) as setting:
        page = await setting.open_page()
        for state, words in WORDS.items():
            told = json.dumps({"state": state, "heardMsAgo": 16_000, "block": BLOCK})
            said = f"import('/words.js').then((words) => words.describePlane({told}))"
            assert await page.evaluate(said) == words
        assert await page.evaluate("document.querySelector('#plane').innerText") == ""
