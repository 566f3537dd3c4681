"""How long semibot waits for the outside world, and how long clean-up may take."""

from __future__ import annotations

import math

import attrs


def _not_negative(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value >= 0:
        message = f"{attribute.name} must be a number of seconds, at least 0; it is {value!r}"
        raise ValueError(message)


def _finite(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{attribute.name} bounds clean-up, so it must be finite")


def _seconds(default: float) -> float:
    """Make a field for a wait; infinite waits for ever."""
    field: float = attrs.field(default=default, validator=_not_negative)
    return field


def _grace(default: float) -> float:
    """Make a field for clean-up, which must end."""
    field: float = attrs.field(default=default, validator=[_not_negative, _finite])
    return field


@attrs.frozen(kw_only=True)
class Deadlines:
    """Every bound, in seconds. An error names the field, with its first ``_`` as a dot."""

    run_limit: float = _seconds(1800.0)
    """One run, from its start to the request that it stop."""
    run_cancel_grace: float = _grace(10.0)
    """What a run's work may take to stop after a cancel; the rest is ``abandoned``."""
    session_adapter_start: float = _seconds(30.0)
    """Entering the adapter's scope, and each change of its configuration."""
    session_adapter_stop: float = _grace(10.0)
    """Leaving the adapter's scope."""
    session_save: float = _grace(5.0)
    """One thing on disk: a checkpoint with the memory, an adapter's snapshot, a decision, a
    large result, a file that a tool writes; opening and releasing the directory."""
    model_response: float = _seconds(60.0)
    """From a request to the first byte of the model's answer."""
    model_idle: float = _seconds(60.0)
    """Between two pieces of the model's answer."""
    tool_limit: float = _seconds(120.0)
    """One tool call, unless the tool says otherwise or the call says less."""
    bridge_ready: float = _seconds(15.0)
    """From starting a bridge child until it is ready."""
    bridge_request: float = _seconds(60.0)
    """One control-plane request of a bridge child, and one line written to it."""
    bridge_snapshot: float = _grace(3.0)
    """A snapshot from a bridge child, and its answer to a cancel."""
    child_start: float = _seconds(10.0)
    """Starting any child process."""
    child_eof_grace: float = _grace(2.0)
    """From a child's end of input to SIGTERM."""
    child_term_grace: float = _grace(2.0)
    """From SIGTERM to SIGKILL of the whole tree."""
    child_kill_grace: float = _grace(2.0)
    """From SIGKILL until the child is given up as unkillable."""

    channel_dial: float = _seconds(10.0)
    """A VM's connection attempt, up to the WebSocket handshake."""
    channel_resume: float = _seconds(10.0)
    """From a VM's ``auth`` to ``init``, and from its ``resume`` to ``resume_response``."""
    channel_request: float = _seconds(60.0)
    """One request of a VM to its host."""
    channel_close: float = _grace(2.0)
    """Flushing what is queued, and the closing handshake of a link, on each end."""
    link_auth: float = _seconds(10.0)
    """From a VM's connection to its ``auth``, on the host."""
    link_heartbeat: float = _seconds(10.0)
    """Between two heartbeats of a VM."""
    link_dead_after: float = _seconds(30.0)
    """After how much silence either end gives a link up."""
    vm_ready: float = _seconds(30.0)
    """From starting a VM to its ``auth``, in mode ``local``."""
    vm_start_wait: float = _seconds(5.0)
    """What a message waits for a VM that nobody is starting."""
    vm_lost_after: float = _seconds(120.0)
    """After how much silence of a VM its runs are ended."""
    vm_stop: float = _grace(10.0)
    """What a VM that is told to end may take before it is killed."""
    host_drain: float = _grace(30.0)
    """From SIGTERM to the host's exit."""
    http_stall_timeout: float = _seconds(10.0)
    """How long a peer may accept no byte while something is to be sent to it."""
    http_keepalive: float = _seconds(15.0)
    """Between two signs of life on an event stream."""
    http_request_head: float = _seconds(10.0)
    """From a connection, or the end of a request, to the whole head of the next one."""
    http_request_body: float = _seconds(30.0)
    """From a request's head to the end of its body."""
    http_cancel_wait: float = _seconds(15.0)
    """What a cancel over HTTP waits for its receipt."""
    request_limit: float = _seconds(60.0)
    """Answering one request of a VM, unless the VM waits for less."""
    store_commit: float = _grace(10.0)
    """One transaction of the store, and closing it."""

    @property
    def leave_bound(self) -> float:
        """Longest that leaving a run's block may take, in seconds.

        The run's grace, and saving what it began with, its adapter's state and its end.
        """
        return self.run_cancel_grace + 3 * self.session_save

    @property
    def stop_bound(self) -> float:
        """Longest that leaving a session may take, in seconds, unless code shields itself."""
        releasing = 2 * self.session_save  # the session's directory, a temporary workspace
        return self.leave_bound + self.session_adapter_stop + self.child_kill_grace + releasing
