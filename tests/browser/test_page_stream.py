"""What the page makes of a stream, whatever is in it: here the test writes the stream."""

from __future__ import annotations

import json
from typing import Any

from page_kit import ANSWERS, ChatPage, Programs, open_setting

from semibot.testing.model_answers import say

FAKE_STREAM = """
(() => {
  const real = window.fetch;
  window.asked = [];
  window.fetch = (path, options) => {
    if (!path.endsWith("/stream")) return real(path, options);
    window.asked.push(options.headers["Last-Event-ID"]);
    const body = new ReadableStream({
      start(controller) {
        window.write = (text) => controller.enqueue(new TextEncoder().encode(text));
        window.cut = () => controller.error(new Error("cut"));
      },
    });
    return Promise.resolve(new Response(body, { status: 200 }));
  };
})()
"""


async def write(page: ChatPage, number: int, event: dict[str, Any], end: str = "\n") -> None:
    text = json.dumps(event, indent=1).replace("\n", f"{end}data: ")
    frame = f": keepalive{end}{end}id: 7-{number}{end}event: message{end}data: {text}{end}{end}"
    for half in (frame[:20], frame[20:]):
        await page.evaluate(f"window.write({json.dumps(half)})")


async def test_gaps_repeats_and_strange_events_leave_the_page_as_the_host_says(
    programs: Programs,
) -> None:
    async with open_setting(programs, say("Well.")) as setting:
        page = await setting.open_page()
        await page.say("Before")
        await page.wait_state("completed")
        await page.send("Page.addScriptToEvaluateOnNewDocument", source=FAKE_STREAM)
        await page.reload()
        await page.wait("window.asked.length === 1 && document.body.dataset.link === 'up'")
        messages = [
            {"id": "m1", "run_id": "r1", "role": "user", "content": "One", "metadata": {}},
            {
                "id": "r1.answer",
                "run_id": "r1",
                "role": "assistant",
                "content": "First",
                "metadata": {"outcome": "timeout", "error": {"code": "DEADLINE_EXCEEDED"}},
            },
            {"id": "m2", "run_id": "r2", "role": "user", "content": "Two", "metadata": {}},
            {"id": "m3", "run_id": "r3", "role": "user", "content": "Three", "metadata": {}},
        ]
        calls = [{"call_id": "c1", "tool_name": "read_file"}]
        run = {"run_id": "r2", "message_id": "m2", "text": "Two ", "open_calls": calls}
        resync = {"type": "resync", "messages": messages, "run": run, "truncated": False}
        await write(page, 1, resync, "\r\n")
        await page.wait(f"{ANSWERS}[1]?.dataset.state === 'running'")
        assert not await page.evaluate("document.querySelector('#stop').hidden")
        assert "took too long" in await page.evaluate(f"{ANSWERS}[0].innerText")
        # A run that is told to begin again is the one that is there.
        await write(
            page, 2, {"type": "run_started", "run_id": "r2", "message_id": "m2", "message": "Two"}
        )
        done = {"call_id": "c1", "tool_name": "read_file", "success": True, "duration": 3}
        await write(page, 3, {"type": "tool_call_complete", **done, "result": "x"}, "\r")
        await page.evaluate(r"window.write('id: 7-4\ndata: {not json\n\n')")
        # What cannot be read ends the connection, and is not asked for again.
        await page.wait("window.asked.length === 2 && document.body.dataset.link === 'up'")
        assert await page.evaluate("window.asked[1]") == "7-4"
        for number, event in enumerate(
            (
                {"type": "something_new", "content": "from a later version"},
                {"type": "skill_call_start", "skill_id": "s", "skill_name": "sew"},
                {"type": "skill_call_complete", "skill_id": "s", "success": False, "error": "No"},
                {"type": "mcp_call_complete", "server_id": "m", "tool_name": "mend", "result": 1},
                {"type": "tool_auth_required", "tool_name": "run", "reason": "It asks.",
                 "suggested_grants": ["run:make"]},
                {"type": "file_created", "filename": "a.txt", "size": 3, "url": "javascript:1"},
                {"type": "text_chunk", "content": "it is"},
                {"type": "execution_complete", "run_id": "r2", "final_response": "Two it is"},
                # A run that this page never saw to begin, and one that ends before it began.
                {"type": "execution_error", "run_id": "nobody", "code": "X", "error": "no"},
                {"type": "run_started", "run_id": "r3", "message_id": "m3", "message": "Three"},
                {"type": "execution_complete", "run_id": "r3", "cancelled": True},
            ),
            5,
        ):  # fmt: skip
            await write(page, number, event)
        await page.wait_state("cancelled")
        assert await page.turns() == [
            ("user", "One"),
            ("assistant", "First"),
            ("user", "Two"),
            ("assistant", "Two it is"),  # around the rows
            ("user", "Three"),
            ("assistant", ""),
        ]
        rows = await page.evaluate(
            "[...document.querySelectorAll('.row')].map((row) => row.innerText.split(/\\n/)[0])"
        )
        assert [row.split()[0] for row in rows] == ["tool", "skill", "MCP", "Permission", "a.txt"]
        text = await page.evaluate("document.querySelector('#turns').textContent")
        assert "semibot serve --allow run:make" in text
        assert await page.evaluate("document.querySelectorAll('#turns a').length") == 0
        assert await page.evaluate("document.querySelector('#stop').hidden")
        assert page.problems == []
