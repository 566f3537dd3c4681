"""Leave a child of one's own in the background, in the same group, and end."""

from __future__ import annotations

import os
import signal

if os.fork() == 0:
    signal.pause()
