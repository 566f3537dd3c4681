"""Say "up", then run away for ever: fork, and end, before anybody can take aim.

With "setsid" as the first argument, each has a session of its own.
"""

# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import os
import sys

print("up", flush=True)
while True:
    if os.fork():
        os._exit(0)
    if sys.argv[1] == "setsid":
        os.setsid()
