"""Run the guard under measurement, or sabotaged: ALTERATION CONFIG DATA, then its own words.

It must start in isolation, where coverage's own way of following child processes does not
reach. CONFIG is empty if nothing is measured.
"""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace

alteration, config_file, data_file = sys.argv[1:4]
sys.argv[1:] = sys.argv[4:]

if config_file:
    import coverage

    measurement = coverage.Coverage(config_file=config_file, data_file=data_file, data_suffix=True)
    measurement.start()

    def save_before(function):
        def wrapped(*arguments):
            measurement.save()
            return function(*arguments)

        return wrapped

    os.execve = save_before(os.execve)
    os._exit = save_before(os._exit)

from semibot.tools import guard  # noqa: E402 - importing it is part of what is measured

if alteration == "without ctypes":
    sys.modules["ctypes"] = None
elif alteration == "without prctl":
    library = SimpleNamespace(prctl=lambda *_: -1)
    sys.modules["ctypes"] = SimpleNamespace(CDLL=lambda *_, **__: library, c_int=0, c_ulong=0)
elif alteration == "without pidfd":
    del os.pidfd_open
elif alteration == "silent":
    time.sleep(1000)
elif alteration == "crashing":
    raise SystemExit("out of luck")
guard.main()
