"""Leave a grandchild in a session of its own that ignores signals; say "up"; stay.

With "leave" as the second argument, end instead of staying.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import os
import signal
import sys

reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        os.write(writer, b"x")
        while True:
            signal.pause()
    os._exit(0)
os.wait()
os.read(reader, 1)
print("up", flush=True)
while "leave" not in sys.argv:
    signal.pause()
