"""Errors of the library: sessions, runs, tools, models, protocols."""

from __future__ import annotations


class SemibotError(Exception):
    """Base class of every exception that semibot raises on purpose."""

    code: str = "INTERNAL_ERROR"
    """Stable name of the error on the wire."""

    is_retryable: bool = False
    """Whether the same request may succeed when it is simply made again."""


class UsageError(SemibotError):
    """Raised when the caller asked for something that makes no sense."""

    code = "USAGE"


class SessionBusy(UsageError):
    """Raised when a session has a run under way and may not queue another.

    Attributes:
        session_id: The session.
        waiting: Number of runs that are under way or queued.
    """

    code = "SESSION_BUSY"

    def __init__(self, session_id: str, waiting: int) -> None:
        super().__init__(session_id, waiting)
        self.session_id = session_id
        self.waiting = waiting

    def __str__(self) -> str:
        return (
            f"session {self.session_id} is busy with {self.waiting} run(s); wait for them, "
            "or pass on_busy='interrupt' or on_busy='enqueue'"
        )


class CursorExpired(UsageError):
    """Raised by a cursor whose next event is no longer kept.

    Attributes:
        after: Sequence number that the cursor had reached.
        oldest: Oldest sequence number that is still kept.
    """

    code = "CURSOR_EXPIRED"

    def __init__(self, after: int, oldest: int) -> None:
        super().__init__(after, oldest)
        self.after = after
        self.oldest = oldest

    def __str__(self) -> str:
        return (
            f"event {self.after + 1} is no longer kept (the oldest is {self.oldest}); "
            "open a new cursor"
        )


class ConfigError(SemibotError):
    """Raised when a setting is missing or wrong. The message says what to set."""

    code = "CONFIG"


class ModelNotConfigured(ConfigError):
    """Raised by the first request to a model that has no key or name."""

    code = "MODEL_NOT_CONFIGURED"


class SessionInUse(ConfigError):
    """Raised when another process has the session directory open.

    Attributes:
        directory: The session directory.
        pid: Process id of the holder, or None if it could not be read.
    """

    code = "SESSION_IN_USE"

    def __init__(self, directory: str, pid: int | None) -> None:
        super().__init__(directory, pid)
        self.directory = directory
        self.pid = pid

    def __str__(self) -> str:
        holder = "another process" if self.pid is None else f"process {self.pid}"
        return f"{self.directory} is in use by {holder}; stop it or use another session id"


class WorkspaceUnusable(ConfigError):
    """Raised when the workspace directory is missing or cannot be written.

    Attributes:
        path: The directory or file.
        reason: What the operating system said.
    """

    code = "WORKSPACE_UNUSABLE"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot keep session state in {self.path}: {self.reason}"


class ProtocolError(SemibotError):
    """Base class for violations of a protocol."""

    code = "PROTOCOL"


class LocalProtocolError(ProtocolError):
    """Raised when this side tried to say something that the protocol forbids."""

    code = "LOCAL_PROTOCOL"


class RemoteProtocolError(ProtocolError):
    """Raised when a peer's bytes are not what the protocol says.

    Attributes:
        reason: What is wrong, without quoting the peer's data.
        path: Where it is wrong, such as ``$.steps[0].title``; ``$`` is the whole.
    """

    code = "REMOTE_PROTOCOL"

    def __init__(self, reason: str, path: str = "$") -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{self.reason} @ {self.path}"


class AdapterError(SemibotError):
    """Raised, or put into a run's ``execution_error``, when an adapter failed.

    Attributes:
        code: Stable name of the failure.
        message: What happened and what to do.
    """

    code: str = "ADAPTER_ERROR"

    def __init__(
        self, message: str, *, code: str = "ADAPTER_ERROR", is_retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.is_retryable = is_retryable

    def __str__(self) -> str:
        return self.message


class RequestFailed(SemibotError):
    """Raised by a control plane that does not answer a request.

    Attributes:
        code: ``UNSUPPORTED_METHOD``, ``REQUEST_FAILED``, ``NOT_FOUND``, ``FORBIDDEN``,
            ``BAD_PARAMS``, ``DEADLINE_EXCEEDED`` or ``OUTCOME_UNKNOWN`` (protocol section 4).
        message: What went wrong.
    """

    code: str = "REQUEST_FAILED"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class ModelError(SemibotError):
    """Raised when a model's provider refused, failed or broke off.

    Attributes:
        code: ``MODEL_UNREACHABLE``, ``MODEL_RATE_LIMITED``, ``MODEL_SERVER_ERROR``,
            ``MODEL_STREAM_BROKEN``, ``MODEL_REFUSED`` or ``MODEL_PROTOCOL``.
        is_retryable: Whether the same request may succeed later.
        retry_after: Seconds that the provider asked us to wait, or None.
    """

    code: str = "MODEL_ERROR"

    def __init__(
        self,
        message: str,
        *,
        code: str = "MODEL_ERROR",
        is_retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.is_retryable = is_retryable
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class ToolError(SemibotError):
    """Raised by a tool to tell the model, in words, why a call did not work."""

    code = "TOOL_ERROR"


class ChildError(SemibotError):
    """Base class for failures of child processes."""

    code = "CHILD_ERROR"


class ChildStartFailed(ChildError):
    """Raised when a program could not be started.

    Attributes:
        program: First word of the command.
        reason: What the operating system said.
    """

    code = "CHILD_START_FAILED"

    def __init__(self, program: str, reason: str) -> None:
        super().__init__(program, reason)
        self.program = program
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot start {self.program}: {self.reason}"


class StoreError(SemibotError):
    """Raised when something could not be kept on disk. What was acknowledged is kept."""

    code = "STORE_FAILED"


class SecurityError(SemibotError):
    """Base class for refusals. They are never retryable."""

    code = "FORBIDDEN"


class PathRefused(SecurityError):
    """Raised for a path that a tool may not touch.

    Attributes:
        path: The path as it was given.
        reason: Why it is refused.
    """

    code = "PATH_REFUSED"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path!r} is refused: {self.reason}"


class DeadlineExceeded(SemibotError):
    """Raised when a named deadline of :class:`semibot.Deadlines` passes.

    Attributes:
        deadline: Name of the configuration field that set the deadline.
        seconds: Length of the deadline, in seconds.
    """

    code = "DEADLINE_EXCEEDED"
    is_retryable = True

    def __init__(self, deadline: str, seconds: float) -> None:
        super().__init__(deadline, seconds)
        self.deadline = deadline
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.deadline} ({self.seconds:g} s) exceeded"


class ServiceEnded(SemibotError):
    """Raised when a service returned before it was told to stop.

    A heartbeat, reader or writer that just ends is how liveness dies silently, so
    ending is a failure.

    Attributes:
        service: Name of the service.
    """

    code = "SERVICE_ENDED"

    def __init__(self, service: str) -> None:
        super().__init__(service)
        self.service = service

    def __str__(self) -> str:
        return f"service {self.service} returned before it was told to stop"
