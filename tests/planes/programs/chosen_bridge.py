"""A bridge that is what the session's configuration says: ``openclaw_config.behaviour``.

``talk``: it says as many numbers as the message asks for, ``stream COUNT PAUSE``. With
``stubborn`` it ignores the end of its input and SIGTERM while it talks, has a child that has
left its session and ignores both, too, and floods stderr. Every other behaviour is one of
``tests/outcomes/bridge.py``.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

OTHERS = Path(__file__).parents[2] / "outcomes" / "bridge.py"


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def be_stubborn() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(60)
        os._exit(0)
    os.wait()


def talk(is_stubborn: bool) -> None:
    say(type="ready", features=[])
    for line in sys.stdin:
        frame = json.loads(line)
        if frame["type"] == "snapshot":
            say(type="snapshot_response", id=frame["id"], session_id="s", snapshot={})
        if frame["type"] == "stop" and not is_stubborn:
            return
        if frame["type"] != "user_message":
            continue
        _, count, pause, *_ = frame["payload"]["message"].split()
        text = ""
        for index in range(int(count)):
            time.sleep(float(pause))
            piece = f"{index} "
            text += piece
            say(type="text_chunk", content=piece)
            if is_stubborn:
                sys.stderr.write("e" * 20_000 + "\n")
        say(type="execution_complete", final_response=text)
    while is_stubborn:
        time.sleep(60)


start = json.loads(sys.stdin.readline())
behaviour = start["payload"]["openclaw_config"]["behaviour"]
if behaviour in {"talk", "stubborn"}:
    if behaviour == "stubborn":
        be_stubborn()
    talk(behaviour == "stubborn")
else:
    sys.argv[1:] = [behaviour]
    runpy.run_path(str(OTHERS), run_name="__main__")
