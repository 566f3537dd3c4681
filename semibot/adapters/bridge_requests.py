"""Pass on what a bridge child wants from the control plane, and bring the answers back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, final

import trio

from semibot.errors import LocalProtocolError, RequestFailed, SemibotError
from semibot.lifetimes import deadline
from semibot.logs import get_logger
from semibot.session import AdapterContext
from semibot.wire.bridge import CpFireAndForget, CpRequest, CpResponse, RequestError, encode_frame

log: Final = get_logger(__name__)

MAX_REQUESTS: Final = 16
"""Most requests of one child that are under way at once; reading it waits for the others."""

MAX_REPORTS: Final = 64
"""Most reports of one child that wait to be taken; reading it waits for the others."""

REQUEST_FAILED: Final = "CP_REQUEST_FAILED"
"""Code of an answer to a request that failed without a code of its own."""


@final
class BridgeRequests:
    """The requests and reports of one bridge child.

    Args:
        context: The session's context.
        answer: Sends a line to the child.
    """

    def __init__(
        self, context: AdapterContext, answer: Callable[[bytes], Awaitable[object]]
    ) -> None:
        self._context = context
        self._answer = answer
        self._free = trio.Semaphore(MAX_REQUESTS)
        self._put, self._reports = trio.open_memory_channel[CpFireAndForget](MAX_REPORTS)

    async def take_request(self, request: CpRequest, nursery: trio.Nursery) -> None:
        """Start to answer *request*; waits only while too many are under way.

        Args:
            request: What the child asks.
            nursery: Ends with the child, and its requests with it.
        """
        await self._free.acquire()
        nursery.start_soon(self._serve_request, request)

    async def _serve_request(self, request: CpRequest) -> None:
        try:
            await self._answer(await self._ask(request))
        finally:
            self._free.release()

    async def _ask(self, request: CpRequest) -> bytes:
        try:
            with deadline("bridge.request", self._context.deadlines.bridge_request):
                result = await self._context.control_plane.request(
                    self._context.session_id, request.method, request.params
                )
            return encode_frame(CpResponse(id=request.id, result=result, error=None))
        except RequestFailed as exc:
            error = RequestError(code=exc.code, message=exc.message)
        except LocalProtocolError as exc:
            error = RequestError(code=REQUEST_FAILED, message=f"the answer cannot be sent: {exc}")
        except SemibotError as exc:
            error = RequestError(code=REQUEST_FAILED, message=str(exc))
        except Exception as exc:  # somebody else's code; the child hears of it
            log.warning("control plane failed", method=request.method, exc_info=exc)
            error = RequestError(code=REQUEST_FAILED, message=f"it raised {type(exc).__name__}")
        return encode_frame(CpResponse(id=request.id, result=None, error=error))

    async def take_report(self, report: CpFireAndForget) -> None:
        """Queue *report*; waits only while too many are queued."""
        await self._put.send(report)

    def end_reports(self) -> None:
        """Say that no report follows; :meth:`serve_reports` returns after the last one."""
        self._put.close()

    async def serve_reports(self) -> None:
        """Pass the reports on, in order, until :meth:`end_reports`."""
        async for report in self._reports:
            try:
                with deadline("bridge.request", self._context.deadlines.bridge_request):
                    await self._context.control_plane.fire_and_forget(
                        self._context.session_id, report.method, report.params
                    )
            except Exception as exc:  # noqa: BLE001 - a report that is refused ends nothing
                log.warning(
                    "report of a bridge refused",
                    code="CP_FIRE_AND_FORGET_FAILED",
                    method=report.method,
                    error=repr(exc),
                )
