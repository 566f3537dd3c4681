"""What has to hold of a host after any cancel: its database, its VMs, its connections."""

from __future__ import annotations

from typing import Any

from databases import check_database
from slow_threads import SlowThreads
from trials import Trial


def the_data_is_whole(trial: Trial) -> str | None:
    """Open the database again, and find what was acknowledged."""
    threads = trial.parts.get("threads")
    if isinstance(threads, SlowThreads):
        threads.come_back()
    host: Any = trial.parts.get("host")
    if host is not None:
        left = host.relay.reader_count, len(host.links._open), len(host.scheduler._attempts)
        if any(left):
            return "{} readers, {} links and {} attempts are left".format(*left)
    events: Any = trial.parts.get("events", ())
    return check_database(trial.database, users=trial.kept, events=events)


def vms_have_ended(trial: Trial) -> str | None:
    """Find VM processes that live."""
    starter: Any = trial.parts.get("starter")
    if starter is not None and not all(each.has_ended.is_set() for each in starter.processes):
        return "a VM process is alive"
    return the_data_is_whole(trial)


def no_connection_is_open(trial: Trial) -> str | None:
    server: Any = trial.parts.get("server")
    if server is not None and server.connections:
        return "a connection is open"
    return the_data_is_whole(trial)
