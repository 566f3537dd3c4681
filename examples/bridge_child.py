"""A bridge: an agent that is a program of its own, in any language. It speaks JSON lines."""

from __future__ import annotations

import io
import json
import select
import sys

stdin = io.FileIO(0)  # without a buffer, so that select() sees every line
session: dict[str, object] = {"greeting": "You said:"}


def say(kind: str, **fields: object) -> None:
    print(json.dumps({"type": kind, "session_id": session["id"], **fields}), flush=True)


def react(run_id: str | None = None, seconds: float | None = None) -> dict[str, object]:
    """Do what the next line asks for, and return it; or nothing if none comes within *seconds*."""
    if not select.select([stdin], [], [], seconds)[0]:
        return {}
    frame: dict[str, object] = json.loads(stdin.readline() or '{"type": "stop"}')
    match frame:
        case {"type": "start", "session_id": id}:
            session["id"] = id
            say("ready", features=["run_id"])  # so a cancel need not stop this process
        case {"type": "user_message", "run_id": str(id), "payload": {"message": str(message)}}:
            answer(id, message)
        case {"type": "cancel", "run_id": id} if id == run_id:
            raise InterruptedError
        case {"type": "config_update", "payload": {"agent_config": {"greeting": str(words)}}}:
            session["greeting"] = words
        case {"type": "snapshot", "id": id}:  # what is to be kept beside the conversation
            say("snapshot_response", id=id, snapshot={"checkpoint": session})
        case {"type": "stop"}:
            sys.exit(0)
        case _:
            pass  # what a later version may say
    return frame


def answer(run_id: str, message: str) -> None:
    """Answer one message: each line about the run names it, and the last one ends it."""
    words = f"{session['greeting']} {message}".split()
    try:
        say("cp_request", id=run_id, method="memory_search", params={"query": message})
        while (reply := react(run_id)).get("type") != "cp_response":
            pass
        say("thinking", run_id=run_id, content=f"I remember {reply['result']}", stage="planning")
        for word in words:
            say("text_chunk", run_id=run_id, content=f"{word} ")
            react(run_id, seconds=0.02)  # a pause that a cancel ends
        say("execution_complete", run_id=run_id, final_response=" ".join(words))
    except InterruptedError:
        say("execution_complete", run_id=run_id, cancelled=True)


while True:
    react()
