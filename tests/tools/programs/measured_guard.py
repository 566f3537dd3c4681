"""Run the guard with coverage measurement: the configuration, the data file, then its words.

The guard itself must start in isolation, where coverage's own way of following child
processes does not reach.
"""

import os
import sys

import coverage

config_file, data_file = sys.argv[1:3]
measurement = coverage.Coverage(
    config_file=config_file, data_file=data_file, data_suffix=True
)
measurement.start()

from semibot.tools import guard  # noqa: E402 - importing is part of what is measured


def save_before(function):
    def wrapped(*arguments):
        measurement.save()
        return function(*arguments)

    return wrapped


os.execve = save_before(os.execve)
os._exit = save_before(os._exit)
sys.argv[1:] = sys.argv[3:]
guard.main()
