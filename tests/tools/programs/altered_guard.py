"""Run the guard under measurement, or sabotaged: ALTERATION CONFIG DATA GUARD, then its words.

It must start in isolation, where coverage's own way of following child processes does not
reach. CONFIG is empty if nothing is measured.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from types import SimpleNamespace

alteration, config_file, data_file, guard_file = sys.argv[1:5]
sys.argv[1:] = sys.argv[5:]
word, _, number = alteration.partition(" ")
guard_pid = os.getpid()

if config_file:
    import coverage

    measurement = coverage.Coverage(config_file=config_file, data_file=data_file, data_suffix=True)
    measurement.set_option("run:disable_warnings", ["module-not-imported"])
    measurement.start()

    def saving(function, *, is_time=lambda: True):
        def wrapped(*arguments):
            if is_time():
                measurement.save()
            return function(*arguments)

        return wrapped

    # A program that cannot be started is killed as soon as it has said so, not after saving.
    os.write = saving(os.write, is_time=lambda: os.getpid() != guard_pid)
    os.execve = saving(os.execve)
    os._exit = saving(os._exit, is_time=lambda: os.getpid() == guard_pid or word == "dying")

guard = runpy.run_path(guard_file, run_name="semibot.tools.guard")

real = SimpleNamespace(
    fork=os.fork, getppid=os.getppid, kill=os.kill, listdir=os.listdir, pidfd_open=os.pidfd_open
)


def refuse(*_):
    raise PermissionError(1, "not here")


def fork_from_a_dying_guard():
    child = real.fork()
    if child == 0:
        os.getppid = lambda: 1
    return child


def kill_others(target, signum):
    return refuse() if signum == signal.SIGTERM else real.kill(target, signum)


match word:
    case "no-ctypes":
        sys.modules["ctypes"] = None
    case "no-prctl":
        library = SimpleNamespace(prctl=lambda *_: -1)
        sys.modules["ctypes"] = SimpleNamespace(CDLL=lambda *_, **__: library, c_int=0, c_ulong=0)
    case "no-pidfd":
        os.pidfd_open = refuse
    case "silent":
        time.sleep(1000)
    case "crashing":
        raise SystemExit("out of luck")
    case "late":  # the owner is another already
        sys.argv[3] = "1"
    case "owner":  # pretend that this process started us
        sys.argv[3] = number
        os.getppid = lambda: int(number) if os.getpid() == guard_pid else real.getppid()
    case "dying":
        os.fork = fork_from_a_dying_guard
    case "powerless":  # as against programs that run as somebody else
        os.kill = kill_others
    case "hasty":  # /proc lists what has ended before one can look at it
        os.listdir = lambda path: [*real.listdir(path), "4194305"]
guard["main"]()
