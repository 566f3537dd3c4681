"""A VM's requests that have no answer yet, in one place (protocol sections 3 and 4).

A request stands here from the moment it is made until its asker stops waiting, for
whatever reason; nothing else knows of it. What was written to a link may have been
carried out, so after a reconnect the host is asked about it (``resume``); what was not is
simply sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, final

import attrs

from semibot.errors import LocalProtocolError, RemoteProtocolError, RequestFailed

from .codec import JsonValue
from .frames import MAX_FRAME_BYTES, ErrorDetail, Request, RequestStatus, Response, encode_frame
from .outgoing import utf8_size

NOT_REPEATABLE: Final = frozenset({"mcp_call"})
"""Methods that must not be carried out twice."""


@final
@attrs.define(eq=False)
class PendingRequest:
    """One request without an answer; made by :meth:`Pending.add`."""

    frame: Request
    """What is asked, without a deadline."""
    deadline: float
    """When its asker stops waiting, on the clock of :class:`Pending`; may be infinite."""
    _wake: Callable[[], None]
    _pending: Pending
    is_sent: bool = attrs.field(default=False, init=False)
    """Whether it may have reached the host."""
    is_waited_for: bool = attrs.field(default=True, init=False)
    """False once its asker has gone."""
    is_answered: bool = attrs.field(default=False, init=False)
    """Whether there is a result or an error."""
    _result: JsonValue = attrs.field(default=None, init=False)
    _error: RequestFailed | None = attrs.field(default=None, init=False)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for an answer."""
        return self.is_waited_for and not self.is_answered

    def text(self) -> str | None:
        """Return the frame with what is left of the deadline, or None if nobody waits."""
        if not self.is_wanted:
            return None
        left = self.deadline - self._pending.clock()
        is_bounded = self._pending.level >= 2 and not math.isinf(left)
        milliseconds = max(0, int(left * 1000)) if is_bounded else None
        return encode_frame(attrs.evolve(self.frame, deadline_ms=milliseconds))

    def taken(self) -> None:
        """Count it as sent: from here on the host may have it."""
        self.is_sent = True

    def written(self, level: int) -> None:
        """Do nothing; only the answer ends a request."""

    def result(self) -> JsonValue:
        """Return the answer.

        Raises:
            RequestFailed: If the host said that there is none.
        """
        if self._error is not None:
            raise self._error
        return self._result

    def resolve(self, value: JsonValue) -> None:
        """Answer it; only the first answer counts."""
        if not self.is_answered:
            self.is_answered, self._result = True, value
            self._wake()

    def fail(self, code: str, message: str) -> None:
        """Answer it with an error; only the first answer counts."""
        if not self.is_answered:
            self.is_answered, self._error = True, RequestFailed(code, message)
            self._wake()


@final
class Pending:
    """All requests of a VM that have no answer yet.

    Args:
        clock: Tells the time that deadlines are measured by, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock: Final = clock
        """Tells the time."""
        self.level: int = 2
        """The level of the link; level 1 knows no deadlines."""
        self._requests: dict[str, PendingRequest] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, frame: Request, *, deadline: float, wake: Callable[[], None]) -> PendingRequest:
        """Take a request. Its asker must call :meth:`remove`, however it stops waiting.

        Args:
            frame: What is asked; its ``deadline_ms`` is filled in when it is sent.
            deadline: When the asker stops waiting, on the clock; may be infinite.
            wake: Called once, when there is an answer.

        Raises:
            LocalProtocolError: If it is larger than a frame may be, or JSON cannot say it.
        """
        if utf8_size(encode_frame(frame)) > MAX_FRAME_BYTES:
            raise LocalProtocolError(f"a request is at most {MAX_FRAME_BYTES} bytes long")
        request = PendingRequest(frame, deadline, wake, self)
        self._requests[frame.id] = request
        return request

    def remove(self, request: PendingRequest) -> bool:
        """Forget a request that nobody waits for any more.

        Returns:
            Whether the host may still be working on it.
        """
        request.is_waited_for = False
        self._requests.pop(request.frame.id, None)
        return request.is_sent and not request.is_answered

    def unsent(self) -> tuple[PendingRequest, ...]:
        """Return the requests that no host has seen, in the order they were made."""
        return tuple(
            request
            for request in self._requests.values()
            if request.is_wanted and not request.is_sent
        )

    def sent_ids(self) -> tuple[str, ...]:
        """Return the requests that a host may have seen, for ``resume``."""
        return tuple(
            request.frame.id
            for request in self._requests.values()
            if request.is_wanted and request.is_sent
        )

    def answer(self, response: Response) -> bool:
        """Take an answer.

        Returns:
            False if nobody waits for it, because it is late or a repetition.
        """
        request = self._requests.get(response.id)
        if request is None or request.is_answered:
            return False
        if response.error is not None:
            request.fail(response.error.code, response.error.message)
        else:
            request.resolve(response.result)
        return True

    def refuse(self, id: str, error: ErrorDetail) -> bool:
        """Take an ``error`` frame that names a request; see :meth:`answer`."""
        return self.answer(Response(id=id, result=None, error=error))

    def settle(self, named: tuple[str, ...], results: Mapping[str, RequestStatus]) -> None:
        """Take what ``resume_response`` says of the requests that ``resume`` named.

        What is ``pending`` is answered later. What is lost, or left out, counts as unsent
        again, unless carrying it out twice would do harm.

        Args:
            named: What ``resume`` named.
            results: What the host says of them.

        Raises:
            RemoteProtocolError: If it says a status that does not exist; nothing changes.
        """
        for status in results.values():
            if status.status not in {"completed", "failed", "pending", "lost", "not_found"}:
                raise RemoteProtocolError("unknown status of a request", "$.results")
        for request_id in named:
            request = self._requests.get(request_id)
            if request is None:
                continue
            status = results.get(request_id) or RequestStatus(status="lost")
            match status.status:
                case "completed":
                    request.resolve(status.data)
                case "failed":
                    error = status.error or ErrorDetail(
                        code="REQUEST_FAILED", message="the host does not say why"
                    )
                    request.fail(error.code, error.message)
                case "pending":
                    pass
                case _ if request.frame.method in NOT_REPEATABLE:
                    request.fail(
                        "OUTCOME_UNKNOWN",
                        "the link broke and the host cannot say whether it was carried out",
                    )
                case _:
                    request.is_sent = False

    def fail_all(self, code: str, message: str) -> None:
        """Answer everything with an error, because no host will any more."""
        for request in tuple(self._requests.values()):
            request.fail(code, message)
