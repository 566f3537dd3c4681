"""A bridge child whose faults are chosen by its argument."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

behaviour = sys.argv[1]


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def ignore_signals() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def fork_twice() -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ignore_signals()
            while True:
                time.sleep(60)
        os._exit(0)
    os.wait()


def answer() -> None:
    say(type="text_chunk", content="an answer")
    say(type="execution_complete", final_response="an answer")


if behaviour in {"rude", "forks"}:
    ignore_signals()
if behaviour == "forks":
    fork_twice()
say(type="ready", features=[])
for line in sys.stdin:
    if json.loads(line)["type"] != "user_message":
        continue
    match behaviour:
        case "exit-0":
            sys.exit(0)
        case "exit-1":
            sys.exit(1)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "long-line":
            sys.stdout.write("x" * 20_000_000 + "\n")
            sys.stdout.flush()
            time.sleep(60)
        case "garbage":
            sys.stdout.write("not json\n[1]\n{}\n\x00\n")
            answer()
        case "flood":
            for _ in range(100):
                sys.stderr.write("x" * 100_000 + "\n")
            answer()
        case "two-ends":
            answer()
            answer()
        case "rude" | "forks":
            say(type="text_chunk", content="never ends")
        case _:
            answer()
while behaviour in {"rude", "forks"}:
    time.sleep(60)
