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
