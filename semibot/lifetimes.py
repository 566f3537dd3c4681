"""Own tasks, bound waits and bound clean-up: the only module that opens nurseries for others.

Theory of operation. Three tools, each a context manager, so that no task, wait or
clean-up can outlive the block that started it:

* :func:`open_services` runs helpers (a writer, a heartbeat) *around* a body. The body
  ends first and the helpers last, because what the body says while it is being
  cancelled must still go out. A plain nursery would kill both at once.
* :func:`deadline` bounds a wait on the outside world and puts the name of the
  configuration field into the error.
* :func:`grace` bounds clean-up. Clean-up must be shielded, or it would be cancelled
  together with what it cleans up; and a shield must end, or a stop would hang. Graces
  add up when scopes nest, so every grace also obeys the root's :class:`StopClock`: a
  stop lowers all of them, open and future, to what is left of *its* deadline.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVarTuple, final

import attrs
import trio

from semibot.errors import DeadlineExceeded, ServiceEnded
from semibot.logs import get_logger

log: Final = get_logger(__name__)

Ts = TypeVarTuple("Ts")


@contextmanager
def deadline(name: str, seconds: float) -> Generator[trio.CancelScope]:
    """Bound a wait on the outside world, and name the bound in the error.

    Args:
        name: Name of the configuration field that *seconds* came from.
        seconds: Length of the deadline, in seconds, at least 0; :data:`math.inf`
            waits forever.

    Yields:
        The cancel scope; moving its ``deadline`` moves the bound.

    Raises:
        DeadlineExceeded: If the block was still running after *seconds*.
    """
    with trio.CancelScope(deadline=trio.current_time() + seconds) as scope:
        yield scope
    if scope.cancelled_caught:
        raise DeadlineExceeded(name, seconds) from None


# --- stopping -------------------------------------------------------------------------


@final
@attrs.define(eq=False)
class StopClock:
    """How long clean-up may still take, for everything below one root.

    Made by :func:`open_stop_clock`. Before :meth:`stop` it bounds nothing.
    """

    _parent: StopClock | None = None
    _stop_at: float = math.inf
    _scopes: set[trio.CancelScope] = attrs.field(factory=set[trio.CancelScope], init=False)

    @property
    def stop_at(self) -> float:
        """Time on Trio's clock at which every grace ends; infinite before a stop."""
        return self._stop_at if self._parent is None else min(self._stop_at, self._parent.stop_at)

    def stop(self, seconds: float) -> None:
        """Bound all clean-up below this root: what is open now and what opens later.

        A later call can only make the bound tighter.

        Args:
            seconds: What is left for everything together, in seconds, at least 0.
        """
        self._stop_at = min(self._stop_at, trio.current_time() + seconds)
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, self._stop_at)

    def _add(self, scope: trio.CancelScope) -> None:
        self._scopes.add(scope)
        if self._parent is not None:
            self._parent._add(scope)

    def _discard(self, scope: trio.CancelScope) -> None:
        self._scopes.discard(scope)
        if self._parent is not None:
            self._parent._discard(scope)


_stop_clock: contextvars.ContextVar[StopClock] = contextvars.ContextVar("semibot_stop_clock")


@contextmanager
def open_stop_clock() -> Generator[StopClock]:
    """Make this block a root whose clean-up can be bounded as a whole.

    Tasks started inside inherit the clock. Roots may nest: an outer stop also bounds
    the inner root.

    Yields:
        The clock; call :meth:`StopClock.stop` when the program is asked to end.
    """
    clock = StopClock(_stop_clock.get(None))
    token = _stop_clock.set(clock)
    try:
        yield clock
    finally:
        _stop_clock.reset(token)


@attrs.define(eq=False)
class _Grace:
    scope: trio.CancelScope
    is_open: bool = True


_enclosing_grace: contextvars.ContextVar[_Grace] = contextvars.ContextVar("semibot_grace")


@contextmanager
def grace(name: str, seconds: float) -> Generator[trio.CancelScope]:
    """Shield clean-up from cancellation, for a bounded time.

    The block ends when it is done, after *seconds*, when the enclosing grace ends, or
    when the root's stop clock says so, whichever comes first. Running out raises
    nothing: look at ``scope.cancelled_caught`` and take the forceful path.

    Args:
        name: Name of the configuration field that *seconds* came from.
        seconds: Length of the grace, in seconds, at least 0 and finite.

    Yields:
        The shielded cancel scope.
    """
    bounds = [trio.current_time() + seconds]
    clock = _stop_clock.get(None)
    if clock is not None:
        bounds.append(clock.stop_at)
    outer = _enclosing_grace.get(None)
    if outer is not None and outer.is_open:  # a task may outlive the grace it was started in
        bounds.append(outer.scope.deadline)
    scope = trio.CancelScope(deadline=min(bounds), shield=True)
    current = _Grace(scope)
    token = _enclosing_grace.set(current)
    if clock is not None:
        clock._add(scope)
    try:
        with scope:
            yield scope
    finally:
        current.is_open = False
        _enclosing_grace.reset(token)
        if clock is not None:
            clock._discard(scope)
    if scope.cancelled_caught and seconds:  # one of no length cannot but run out
        log.warning("grace ran out", grace=name, seconds=seconds)


# --- services -------------------------------------------------------------------------


@final
@attrs.define(eq=False)
class Services:
    """Background tasks that serve the body of an :func:`open_services` block."""

    _nursery: trio.Nursery
    _body: trio.CancelScope
    _scopes: set[trio.CancelScope] = attrs.field(factory=set[trio.CancelScope], init=False)
    _is_stopped: bool = attrs.field(default=False, init=False)
    _failure: Exception | None = attrs.field(default=None, init=False)

    def start_soon(
        self, fn: Callable[[*Ts], Awaitable[object]], *args: *Ts, name: str | None = None
    ) -> None:
        """Start ``fn(*args)`` as a service. It must run until it is cancelled.

        Args:
            fn: Async function.
            *args: Its arguments.
            name: What to call the service in errors; by default the function's name.
        """
        self._nursery.start_soon(self._serve, fn, args, name or _name_of(fn))

    async def _serve(
        self, fn: Callable[[*Ts], Awaitable[object]], args: tuple[*Ts], name: str
    ) -> None:
        # Shielded, so that an outer cancellation reaches the body only: the body may
        # still need this service while it cleans up. _stop() is what ends the shield.
        with trio.CancelScope(shield=True) as scope:  # noqa: ASYNC912 - *fn* has the cancel points
            self._scopes.add(scope)
            if self._is_stopped:  # the body left before this task first ran
                scope.cancel("the body of open_services() is done")
            try:
                await fn(*args)
                if not self._is_stopped:
                    raise ServiceEnded(name)
            except Exception as exc:  # noqa: BLE001 - open_services() raises it from the block
                self._fail(name, exc)
            finally:
                self._scopes.discard(scope)

    def _fail(self, name: str, error: Exception) -> None:
        if self._is_stopped:
            log.warning("service failed while it stopped", service=name, error=repr(error))
        elif self._failure is None:
            self._failure = error
            self._body.cancel(f"service {name} failed")

    def _stop(self) -> None:
        self._is_stopped = True
        for scope in self._scopes:
            scope.cancel("the body of open_services() is done")


def _name_of(fn: object) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)


@asynccontextmanager
async def open_services() -> AsyncGenerator[Services]:
    """Open a scope whose background tasks outlive the body, never the block.

    On exit the body has already left; the services are then cancelled, and exit waits
    for their clean-up, which :func:`grace` bounds. A service that fails or simply
    returns cancels the body.

    Yields:
        The handle that starts services.

    Raises:
        BaseException: The body's own exception, unchanged and never wrapped in a group.
        Exception: Else the exception of the first service that failed. A cancellation
            from outside is never replaced by it.
    """
    body_error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        services = Services(nursery, trio.CancelScope())
        try:
            with services._body:
                yield services
        except BaseException as exc:  # noqa: ASYNC103,BLE001 - raised again below, outside the nursery, so that it comes out bare
            body_error = exc
        finally:
            services._stop()
    failure = services._failure
    if body_error is not None:
        if failure is not None:
            if isinstance(body_error, trio.Cancelled):
                log.warning("service failed during a cancellation", error=repr(failure))
            else:
                body_error.add_note(f"a service failed as well: {failure!r}")
        raise body_error
    if failure is not None:
        raise failure
