"""Ask a host from a program on asyncio; a broken stream is taken up where it broke.

Nothing of semibot is imported: this is HTTP with server-sent events, and httpx. The address
of the host is the first argument, or SEMIBOT_URL; SEMIBOT_TOKEN is sent if it is set.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from dataclasses import dataclass

import httpx  # noqa: ASYNC127 - to show that it does not have to be semibot's own client

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SEMIBOT_URL", "http://127.0.0.1:8080")
TOKEN = os.environ.get("SEMIBOT_TOKEN")
SILENCE = 45.0  # seconds without a byte; a host says something every 15


@dataclass
class Answer:
    """What has been seen of one run, on however many streams."""

    session_id: str = ""
    run_id: str = ""
    last_id: bytes = b""
    said: str = ""
    outcome: str | None = None

    def say(self, text: str) -> None:
        """Print a piece of the answer."""
        print(text, end="", flush=True)
        self.said += text

    def take(self, message: bytes) -> None:
        """Act on one message of a stream: lines of ``field: value``."""
        lines = [line.partition(b": ") for line in message.split(b"\n")]
        data = b"\n".join(value for field, _, value in lines if field == b"data")
        if not data:
            return  # a keepalive, or how long to wait before coming again
        self.last_id = next((value for field, _, value in lines if field == b"id"), self.last_id)
        match json.loads(data):
            case {"type": "text_chunk", "content": str(text)}:
                self.say(text)
            case {"type": "resync", "run": {"run_id": self.run_id, "text": str(text)}}:
                self.say(text[len(self.said) :])  # away for long: the state, instead of its steps
            case {"type": "resync", "messages": list(messages)}:
                for each in messages:
                    if each["run_id"] == self.run_id and each["role"] == "assistant":
                        self.say(each["content"][len(self.said) :])
                        self.outcome = each["metadata"]["outcome"]
            case {"type": "execution_error", "run_id": self.run_id, "error": str(error)}:
                self.outcome = error
            case {"type": "execution_complete", "run_id": self.run_id} as event:
                self.outcome = "cancelled" if event.get("cancelled") else "completed"


async def follow(answer: Answer, response: httpx.Response) -> None:
    """Read one stream until it ends, breaks, or has said how the run ended."""
    rest = b""
    async for data in response.aiter_bytes():
        *messages, rest = (rest + data).split(b"\n\n")
        for message in messages:
            answer.take(message)
        if answer.outcome is not None:
            return


async def ask(http: httpx.AsyncClient, message: str) -> Answer:
    """Send a message, and print the answer as it comes."""
    answer = Answer()
    # The key makes it safe to send the message again: it is answered once.
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"message": message, "on_disconnect": "continue"}
    stream = http.stream("POST", "/api/v1/chat/start", json=body, headers=key)
    for attempt in range(10):
        try:
            async with stream as response:
                response.raise_for_status()
                answer.session_id = response.headers["X-Session-ID"]
                answer.run_id = response.headers.get("X-Run-ID", answer.run_id)
                await follow(answer, response)
        except httpx.TransportError as exc:
            print(f"[{exc!r}]", file=sys.stderr)
        if answer.outcome is not None:
            break
        await asyncio.sleep(min(10.0, 0.5 * 2**attempt))
        if answer.run_id:  # from here on it follows the session, after the last event seen
            path = f"/api/v1/sessions/{answer.session_id}/stream"
            since = {b"Last-Event-ID": answer.last_id} if answer.last_id else {}
            stream = http.stream("GET", path, headers=since)
        else:
            stream = http.stream("POST", "/api/v1/chat/start", json=body, headers=key)
    return answer


async def main() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"} if TOKEN else {}
    timeout = httpx.Timeout(SILENCE, connect=10.0)
    async with httpx.AsyncClient(base_url=URL, headers=headers, timeout=timeout) as http:
        answer = await ask(http, "What is here?")
        print(f"\n[{answer.outcome or 'given up'}; session {answer.session_id}]")


if __name__ == "__main__":
    asyncio.run(main())
