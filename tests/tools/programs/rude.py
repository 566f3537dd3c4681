"""Ignore the end of the input and every signal that can be ignored; say "up"; stay."""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import signal

for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
