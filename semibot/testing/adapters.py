"""Adapters for tests, made from one function."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import final

from semibot.session import ActiveRun, Adapter, AdapterContext, AdapterFactory


@final
class FunctionAdapter(Adapter):
    """An adapter whose ``handle`` is a plain async function."""

    def __init__(self, function: Callable[[ActiveRun], Awaitable[None]]) -> None:
        self._function = function

    async def handle(self, run: ActiveRun) -> None:
        """Call the function."""
        await self._function(run)


def adapter_from(function: Callable[[ActiveRun], Awaitable[None]]) -> AdapterFactory:
    """Return an adapter factory that drives every run with *function*.

    Args:
        function: Emits events and ends the run with ``run.complete()`` or ``run.fail()``.
    """

    @asynccontextmanager
    async def open_adapter(_: AdapterContext) -> AsyncGenerator[Adapter]:
        yield FunctionAdapter(function)

    return open_adapter
