"""Errors of host and VM: between the planes, and towards users of a host."""

from __future__ import annotations

from ._library import ConfigError, SecurityError, SemibotError, StoreError, UsageError


class NotFound(UsageError):
    """Raised when something does not exist, or is not the asker's: the answer is the same."""

    code = "NOT_FOUND"


class BadCursor(UsageError):
    """Raised for a page cursor that was not made here."""

    code = "BAD_CURSOR"


class IdempotencyConflict(UsageError):
    """Raised when an ``Idempotency-Key`` comes again with another body."""

    code = "IDEMPOTENCY_CONFLICT"


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
            4001: "the token or ticket is not accepted; `semibot admin vm-token` makes a new one",
            4003: "the user has no active VM row; `semibot admin vm-token` makes one",
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


class LinkFenced(StoreError):
    """Raised when a link that is no longer its VM's wants to write."""

    code = "LINK_FENCED"


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
