"""Make an orphan that ends by itself, say its process id, and stay until the end of the input."""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import os
import sys

reader, writer = os.pipe()
if os.fork() == 0:
    middle = os.getpid()
    if os.fork() == 0:
        while os.getppid() == middle:
            pass
        os.write(writer, str(os.getpid()).encode())
    os._exit(0)
os.wait()
print(os.read(reader, 20).decode(), flush=True)
sys.stdin.read()
