"""Ignore the end of the input and every signal that can be ignored; say "up"; stay."""

import signal

for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
