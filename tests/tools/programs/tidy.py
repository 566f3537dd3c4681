"""Have a grandchild that, asked to end, waits for its parent's end and then tidies up.

The argument is the file that it writes when it has tidied up.
"""
# What it prints is its answer, and pathlib would slow its start.
# ruff: noqa: T201, PTH123

from __future__ import annotations

import os
import signal
import sys
import time

reader, writer = os.pipe()
ready_reader, ready_writer = os.pipe()


def tidy_up(*_):
    os.read(reader, 1)
    time.sleep(0.2)  # tidying up is work
    with open(sys.argv[1], "w") as file:
        file.write("tidy")
    os._exit(0)


if os.fork() == 0:
    os.setsid()
    os.close(writer)
    signal.signal(signal.SIGTERM, tidy_up)
    os.write(ready_writer, b"x")
    while True:
        signal.pause()
os.read(ready_reader, 1)
print("up", flush=True)
while True:
    signal.pause()
