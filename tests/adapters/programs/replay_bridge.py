"""A bridge that says what a recorded one said: ``replay_bridge.py RECORDING``.

The recording lists both directions. Before it says what followed a recorded line of the
adapter, it waits for a line of that type; a line that nothing followed is not waited for,
so that another adapter may order such lines otherwise. Pauses are left out. The ids of
snapshots, which the adapter makes, are put into the answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text("utf-8").splitlines()]
    reactions: list[tuple[str, list[dict]]] = []
    for line in lines:
        if line["dir"] == "adapter->bridge":
            reactions.append((line["msg"]["type"], []))
        elif line["dir"] == "bridge->adapter":
            reactions[-1][1].append(line["msg"])
    received: dict[str, list[dict]] = {}
    for kind, sayings in reactions:
        if not sayings:
            continue
        while not received.get(kind):
            frame = next_frame()
            received.setdefault(frame["type"], []).append(frame)
        frame = received[kind].pop(0)
        for saying in sayings:
            if saying["type"] == "snapshot_response":
                saying["id"] = frame["id"]
            sys.stdout.write(json.dumps(saying) + "\n")
            sys.stdout.flush()
    while True:
        next_frame()


def next_frame() -> dict:
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    frame = json.loads(line)
    if frame["type"] == "stop":
        sys.exit(0)
    return frame


main()
