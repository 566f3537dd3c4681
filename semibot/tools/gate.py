"""The only thing that can run a tool.

Theory of operation. A call goes through these steps, and there is no other way in:

1. Find the tool and fit the arguments to it. What makes no sense is answered at once.
2. Let the policy decide about the very arguments that the tool would get.
3. Put the decision on record. If that fails, nothing happens.
4. Run the function with a copy that nobody else holds, under the call's deadline. It is
   nested in the caller's scopes, so the run's and every parent's deadline holds as well,
   and ending *those* is a cancellation, not a timeout.
5. Put the end on record, in a grace, because a call that had effects must not vanish from
   the record when its run is cancelled.

A failure of the tool is a value, :class:`~semibot.tools.calls.CallResult`. A cancellation
is recorded and raised again, and so is whatever is not an ``Exception``.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import (
    DeadlineExceeded,
    RemoteProtocolError,
    ToolError,
    UsageError,
)
from semibot.lifetimes import deadline, grace
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.wire.chat import ToolSpec

from .calls import (
    CallEnded,
    CallOutcome,
    CallRequest,
    CallResult,
    CreatedFile,
    Decision,
    Recorder,
)
from .context import ToolContext
from .endings import (
    Ending,
    describe_files,
    failed,
    is_cancellation,
    say,
    senseless,
    timed_out,
)
from .ledger import Activity, Ledger
from .paths import ConfinedDirectory
from .permissions import Policy
from .results import render
from .schema import Bound, parse_arguments
from .threads import BlockingCall, Workers
from .tool import Body, Tool

log: Final = get_logger(__name__)


@attrs.frozen(kw_only=True)
class _Call:
    """One call that made sense."""

    request: CallRequest
    tool: Tool
    bound: Bound
    decision: Decision
    ledger: Ledger
    started_at: float
    seconds: float


@final
class Gate:
    """The tools of one session, and the only way to run them.

    Args:
        tools: The tools.
        policy: Who may do what.
        recorder: Where decisions and ends are recorded.
        ports: The seams to the outside world.
        deadlines: The bounds; ``tool_limit`` holds for tools that set none.
        files: The workspace for tools, if there is one.
        session_id: The session, for the record.
        keep_result: Stores a text that is too long for a model, given the call's id, and
            returns its path below the workspace.

    Raises:
        UsageError: If two tools have one name, or a grant names an unknown tool.
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        policy: Policy,
        recorder: Recorder,
        ports: Ports,
        deadlines: Deadlines,
        files: ConfinedDirectory | None,
        session_id: str,
        keep_result: Callable[[str, str], Awaitable[str]] | None = None,
    ) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise UsageError(f"two tools are called {tool.name!r}")
            self._tools[tool.name] = tool
        policy.check(
            {name: frozenset(_body(tool).parameters.names) for name, tool in self._tools.items()}
        )
        self._policy = policy
        self._recorder = recorder
        self._ports = ports
        self._deadlines = deadlines
        self._files = files
        self._session_id = session_id
        self._keep_result = keep_result
        self._workers = Workers(ports.threads)

    def specs(self) -> tuple[ToolSpec, ...]:
        """Return what a model is told; tools that need a grant are among it.

        A model that calls one without a grant reads how the user can give it.
        """
        return tuple(tool.spec for tool in self._tools.values())

    def get(self, name: str) -> Tool | None:
        """Return the tool of that name, or None."""
        return self._tools.get(name)

    async def call(self, request: CallRequest, *, run_id: str, ledger: Ledger) -> CallResult:
        """Decide, record, run under a deadline, record, and return the typed result.

        Args:
            request: The call.
            run_id: The run that it belongs to.
            ledger: What that run has under way.

        Returns:
            The result, whatever the tool did; its ``outcome`` says how the call ended.
        """
        await trio.lowlevel.checkpoint()  # a run that is over starts nothing
        started_at = trio.current_time()
        tool = self._tools.get(request.name)
        if tool is None:
            known = ", ".join(sorted(self._tools)) or "none"
            return senseless(request, f"there is no tool {request.name[:80]!r}; there are: {known}")
        try:
            bound = _body(tool).parameters.bind(parse_arguments(request.arguments))
        except RemoteProtocolError as exc:
            return senseless(request, f"the arguments of {tool.name} do not fit: {exc}")
        call = _Call(
            request=request,
            tool=tool,
            bound=bound,
            decision=self._decide(request, tool, bound, run_id),
            ledger=ledger,
            started_at=started_at,
            seconds=self._limit(tool, request),
        )
        with ledger.open("tool_call", request.id, tool.name) as activity:
            try:
                ending = await self._carry_out(call, activity)
            except BaseException as exc:
                lost: CallOutcome = "cancelled" if is_cancellation(exc) else "error"
                await self._record_end(call, activity, Ending(lost, "", type(exc).__name__))
                raise
            duration = await self._record_end(call, activity, ending)
        return CallResult(
            call_id=request.id,
            tool_name=tool.name,
            outcome=ending.outcome,
            result=ending.result,
            content=ending.content,
            error=ending.error,
            duration_ms=duration,
            decision_id=call.decision.id,
            files=ending.files,
        )

    def _limit(self, tool: Tool, request: CallRequest) -> float:
        limit = self._deadlines.tool_limit if tool.limit is None else tool.limit
        return limit if request.limit is None else max(0.0, min(limit, request.limit))

    # --- decision and record ----------------------------------------------------------

    def _decide(self, request: CallRequest, tool: Tool, bound: Bound, run_id: str) -> Decision:
        verdict = self._policy.decide(tool, bound.decided, self._ports.wall_clock.now())
        return Decision(
            id=self._ports.ids.new_id(),
            call_id=request.id,
            run_id=run_id,
            session_id=self._session_id,
            tool_name=tool.name,
            arguments=bound.decided,
            action=verdict.action,
            rule=verdict.rule,
            grant_id=verdict.grant_id,
            reason=verdict.reason,
        )

    async def _record_end(self, call: _Call, activity: Activity, ending: Ending) -> int:
        """Put the end on record; return how long the call took, in milliseconds."""
        duration = round((trio.current_time() - call.started_at) * 1000)
        entry = CallEnded(
            decision_id=call.decision.id,
            call_id=call.decision.call_id,
            run_id=call.decision.run_id,
            session_id=call.decision.session_id,
            tool_name=call.decision.tool_name,
            outcome=ending.outcome,
            error=ending.error,
            effect=activity.effect,
            files=ending.files,
            duration_ms=duration,
        )
        with grace("session.save", self._deadlines.session_save):
            try:
                await self._recorder(entry)
            except Exception as exc:  # noqa: BLE001 - what the tool did stays true unrecorded
                log.warning("end of a tool call not recorded", error=repr(exc))
        return duration

    async def _carry_out(self, call: _Call, activity: Activity) -> Ending:
        try:
            with deadline("session.save", self._deadlines.session_save):
                await self._recorder(call.decision)
        except Exception as exc:  # noqa: BLE001 - what is not on record does not run
            await trio.lowlevel.checkpoint_if_cancelled()
            log.warning("decision not recorded", tool=call.tool.name, error=repr(exc))
            return failed(f"{call.tool.name} was not run: its decision could not be recorded")
        if call.decision.action == "deny":
            reason = call.decision.reason
            return Ending("denied", f"Denied: {reason}", reason)
        await trio.lowlevel.checkpoint_if_cancelled()  # recording may have been no checkpoint
        return await self._run(call, activity)

    # --- running ----------------------------------------------------------------------

    async def _run(self, call: _Call, activity: Activity) -> Ending:
        body = _body(call.tool)
        thread: BlockingCall | None = None
        if not body.is_async:
            entry = call.ledger.begin("thread", call.request.id, call.tool.name)
            thread = BlockingCall(entry)
        ends_at = min(trio.current_time() + call.seconds, trio.current_effective_deadline())
        context = ToolContext(
            call_id=call.request.id,
            session_id=self._session_id,
            run_id=call.decision.run_id,
            files=self._files,
            ports=self._ports,
            deadlines=self._deadlines,
            activity=activity if thread is None else thread.activity,
            ledger=call.ledger,
            ends_at=ends_at,
            workers=self._workers,
            is_abandoned=threading.Event() if thread is None else thread.is_abandoned,
        )
        try:
            with deadline("tool.limit", call.seconds):
                try:
                    return await self._finish(call, context, body, thread)
                except Exception as exc:  # noqa: BLE001 - a tool's failure is a value
                    # What a tool raises because it is being cancelled is not its failure.
                    await trio.lowlevel.checkpoint_if_cancelled()
                    return failed(say(exc, call.tool.name, call.request.id))
        except DeadlineExceeded:
            return timed_out(call.tool.name, call.seconds, thread)
        except ExceptionGroup as group:  # other failures came out together with the timeout
            say(group, call.tool.name, call.request.id)
            return timed_out(call.tool.name, call.seconds, thread)
        finally:
            if thread is not None:
                activity.effect = thread.activity.effect

    async def _finish(
        self, call: _Call, context: ToolContext, body: Body, thread: BlockingCall | None
    ) -> Ending:
        value = await self._invoke(call, context, body, thread)
        rendered = await render(value, context, self._keeper(call))
        files: tuple[CreatedFile, ...] = ()
        if context.created and self._files is not None:
            files = await context.run_blocking(describe_files, self._files, context.created)
        return Ending("ok", rendered.content, result=rendered.result, files=files)

    async def _invoke(
        self, call: _Call, context: ToolContext, body: Body, thread: BlockingCall | None
    ) -> object:
        arguments = dict(call.bound.values)
        if body.parameters.context_name is not None:
            arguments[body.parameters.context_name] = context
        function = functools.partial(body.function, **arguments)
        if thread is not None:
            return await self._workers.run(thread, "tools", _call_sync, function)
        return await _call_async(function)

    def _keeper(self, call: _Call) -> Callable[[str], Awaitable[str]] | None:
        keep_result = self._keep_result
        if keep_result is None:
            return None

        async def keep(text: str) -> str:
            with deadline("session.save", self._deadlines.session_save):
                return await keep_result(call.request.id, text)

        return keep


def _call_sync(function: Callable[[], object]) -> object:
    return _settled(function())


async def _call_async(function: Callable[[], object]) -> object:
    pending = function()
    return _settled(await pending if inspect.isawaitable(pending) else pending)


def _settled(value: object) -> object:
    if inspect.iscoroutine(value):
        value.close()
        raise ToolError("the tool returned a coroutine; its function must be an async def")
    return value


def _body(tool: Tool) -> Body:
    return tool._body  # the one place that may reach it
