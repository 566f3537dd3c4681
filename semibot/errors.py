"""Every exception that semibot raises on purpose.

The second level says who must act.

* :exc:`SemibotError`
    * :exc:`UsageError`: the caller
        * :exc:`SessionBusy`
        * :exc:`CursorExpired`
        * :exc:`NotFound`
        * :exc:`BadCursor`
        * :exc:`IdempotencyConflict`
    * :exc:`ConfigError`: the operator
        * :exc:`ModelNotConfigured`
        * :exc:`SessionInUse`
        * :exc:`WorkspaceUnusable`
        * :exc:`DataDirectoryInUse`
    * :exc:`ProtocolError`
        * :exc:`LocalProtocolError`: us
        * :exc:`RemoteProtocolError`: the peer
    * :exc:`LinkRefused`: whoever started the VM
    * :exc:`PlaneNotReady`: nobody; try again
    * :exc:`HostUnreachable`: whoever runs the host
    * :exc:`HostRefused`: whoever asked the host
    * :exc:`AdapterError`: whoever wrote or runs the adapter
    * :exc:`RequestFailed`: whoever asked the control plane
    * :exc:`ModelError`: the model's provider
    * :exc:`ToolError`: the tool, or the model that called it
    * :exc:`ChildError`: the program that was started
        * :exc:`ChildStartFailed`
    * :exc:`StoreError`: the disk
        * :exc:`LinkFenced`
    * :exc:`SecurityError`: nobody; the answer is no
        * :exc:`PathRefused`
        * :exc:`TokenRefused`
        * :exc:`Unauthenticated`
        * :exc:`OriginRefused`
    * :exc:`DeadlineExceeded`
    * :exc:`ServiceEnded`

Each class has a stable ``code``; it is what an ``execution_error`` event carries.
"""

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


class NotFound(UsageError):
    """Raised when something does not exist, or is not the asker's: the answer is the same."""

    code = "NOT_FOUND"


class BadCursor(UsageError):
    """Raised for a page cursor that was not made here."""

    code = "BAD_CURSOR"


class IdempotencyConflict(UsageError):
    """Raised when an ``Idempotency-Key`` comes again with another body."""

    code = "IDEMPOTENCY_CONFLICT"


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


class DataDirectoryInUse(ConfigError):
    """Raised when another host has the data directory open.

    Attributes:
        directory: The data directory.
        pid: Process id of the holder, or None if it could not be read.
    """

    code = "DATA_DIRECTORY_IN_USE"

    def __init__(self, directory: str, pid: int | None) -> None:
        super().__init__(directory, pid)
        self.directory = directory
        self.pid = pid

    def __str__(self) -> str:
        holder = "another host" if self.pid is None else f"process {self.pid}"
        return f"{self.directory} is in use by {holder}; stop it or use another --data-dir"


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


class LinkRefused(SemibotError):
    """Raised when a host refuses a VM for good; dialling again would not help.

    Attributes:
        close_code: The WebSocket close code (protocol section 2).
        reason: What the host said.
    """

    code = "LINK_REFUSED"

    def __init__(self, close_code: int, reason: str) -> None:
        super().__init__(close_code, reason)
        self.close_code = close_code
        self.reason = reason

    def __str__(self) -> str:
        what = {
            4001: "the token or ticket is not accepted; make a new one with `semibot admin vm-token`",
            4003: "the user has no active VM row; make one with `semibot admin vm-token`",
            4004: "the host does not know the user",
            4009: "another VM of this user has taken over",
        }.get(self.close_code, "the host refuses this VM")
        return f"{what} (close code {self.close_code}: {self.reason or 'no reason given'})"


class PlaneNotReady(SemibotError):
    """Raised when a user's VM is not up; nothing was stored.

    Attributes:
        status: Status of the VM row.
        last_error: What the last attempt to start it said, or None.
        retry_after_ms: After how long trying again makes sense, in milliseconds.
    """

    code = "EXECUTION_PLANE_NOT_READY"
    is_retryable = True

    def __init__(self, status: str, last_error: str | None, retry_after_ms: int) -> None:
        super().__init__(status, last_error, retry_after_ms)
        self.status = status
        self.last_error = last_error
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        why = f": {self.last_error}" if self.last_error else ""
        seconds = (self.retry_after_ms + 999) // 1000
        return f"the execution plane is {self.status}{why}; try again in {seconds} s"


class HostUnreachable(SemibotError):
    """Raised when no host answers at an address.

    Attributes:
        url: The address.
        reason: What went wrong.
    """

    code = "HOST_UNREACHABLE"
    is_retryable = True

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"no host answers at {self.url} ({self.reason}); start one with `semibot serve`, "
            "or use --local"
        )


class HostRefused(SemibotError):
    """Raised when a host answers a request with an error.

    Attributes:
        status: The HTTP status.
        code: The host's name of the error.
        message: What the host said.
    """

    code: str = "HOST_REFUSED"

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


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


class LinkFenced(StoreError):
    """Raised when a link that is no longer its VM's wants to write."""

    code = "LINK_FENCED"


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


class TokenRefused(SecurityError):
    """Raised for a token that is not accepted. Who sent it is told nothing but that.

    Attributes:
        reason: Why, in one word for the log, such as ``signature`` or ``expired``.
    """

    code = "TOKEN_REFUSED"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the token is not accepted: {self.reason}"


class Unauthenticated(SecurityError):
    """Raised when a request does not show whose it is; HTTP status 401.

    Attributes:
        code: ``AUTH_REQUIRED``, ``AUTH_INVALID`` or ``AUTH_EXPIRED``.
    """

    code: str = "AUTH_REQUIRED"

    def __init__(self, code: str = "AUTH_REQUIRED") -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return {
            "AUTH_REQUIRED": "this host serves known users; send `Authorization: Bearer TOKEN`",
            "AUTH_EXPIRED": "the token has expired; get a new one",
        }.get(self.code, "the token is not accepted")


class OriginRefused(SecurityError):
    """Raised when a request comes by another name or from another page; HTTP status 403.

    Attributes:
        header: ``Host`` or ``Origin``, whichever is foreign.
    """

    code = "ORIGIN_REFUSED"

    def __init__(self, header: str) -> None:
        super().__init__(header)
        self.header = header

    def __str__(self) -> str:
        return (
            f"the header {self.header} is foreign; this host serves one local user, "
            "at localhost or a loopback address only"
        )


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
