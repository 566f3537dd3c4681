"""A bridge that does what its script says: ``scripted_bridge.py JSON``.

The argument is a list of scripts, one for each time that it is started in its directory;
the last one is for all further times. A script is a list of steps, ``[verb, argument]``.
In what is said, ``"$run_id"`` and ``"$id"`` stand for the fields of the line read last.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

frame: dict = {}


def put(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(saying: dict) -> None:
    text = json.dumps(saying)
    put(text.replace("$run_id", frame.get("run_id", "")).replace("$id", frame.get("id", "")))


def read() -> None:
    global frame
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    frame = json.loads(line)
    with Path("heard.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
    if frame["type"] == "stop":
        sys.exit(0)


def wait(kind: str) -> None:
    while True:
        read()
        if frame["type"] == kind:
            return


def serve(_: object) -> None:
    """Answer messages and snapshots for ever, like a good bridge of level 1."""
    while True:
        read()
        if frame["type"] == "user_message":
            answer = "echo: " + frame["payload"]["message"]
            say({"type": "text", "content": answer})
            say({"type": "execution_complete", "final_response": answer})
        elif frame["type"] == "snapshot":
            answer_snapshot({"heard": len(Path("heard.jsonl").read_text().splitlines())})


def answer_snapshot(snapshot: dict) -> None:
    say({"type": "snapshot_response", "id": "$id", "session_id": "s", "snapshot": snapshot})


def count(limit: int) -> None:
    put("\n".join(json.dumps({"type": "text", "content": f"{n},"}) for n in range(limit)))


def put_long_line(size: int) -> None:
    piece = b"x" * 65536
    for _ in range(size // len(piece)):
        os.write(1, piece)
    put("")


def flood(times: int) -> None:
    """Say text of nearly the length that a line may have, again and again."""
    run = {"run_id": frame["run_id"]} if "run_id" in frame else {}
    for _ in range(times):
        say({"type": "text", "content": "x" * 900_000, **run})


def complain(size: int) -> None:
    for _ in range(size // 1000):
        sys.stderr.write("e" * 999 + "\n")
    sys.stderr.flush()


def fork_twice(path: str) -> None:
    """Leave behind a process in a session of its own that holds all pipes."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Path(path).write_text(str(os.getpid()))
            time.sleep(600)
        os._exit(0)
    os.wait()
    while not (Path(path).exists() and Path(path).read_text()):
        time.sleep(0.001)


VERBS = {
    "say": say,
    "put": put,
    "wait": wait,
    "serve": serve,
    "snapshot": answer_snapshot,
    "count": count,
    "exit": os._exit,
    "signal": lambda number: os.kill(os.getpid(), number),
    "long_line": put_long_line,
    "flood": flood,
    "complain": complain,
    "fork_twice": fork_twice,
    "ignore": lambda number: signal.signal(number, signal.SIG_IGN),
    "close": os.close,
    "hang": lambda _: time.sleep(600),
    "wait_file": lambda path: [time.sleep(0.001) for _ in iter(Path(path).exists, True)],
    "environment": lambda path: Path(path).write_text(json.dumps(dict(os.environ))),
}


def main() -> None:
    starts = Path("starts")
    number = len(starts.read_text()) if starts.exists() else 0
    starts.write_text("s" * (number + 1))
    scripts = json.loads(sys.argv[1])
    for verb, argument in scripts[min(number, len(scripts) - 1)]:
        VERBS[verb](argument)


main()
