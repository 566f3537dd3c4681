"""The runtime ``openclaw``: a bridge whose command the operator sets."""

from __future__ import annotations

import shlex
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, final

from typing_extensions import override

from semibot.errors import AdapterError
from semibot.session import ActiveRun, Adapter, AdapterContext, AdapterFactory
from semibot.wire.codec import JsonObject

from .bridge import BridgeAgent

COMMAND_VARIABLE: Final = "OPENCLAW_BRIDGE_CMD"
"""Environment variable with the command; split like a shell would, but no shell runs it."""


def openclaw_agent() -> AdapterFactory:
    """Return a factory of bridges that run the command in ``OPENCLAW_BRIDGE_CMD``.

    The variable is read when a session opens. If it is missing or cannot be split, the
    session opens all the same, and each run fails with ``OPENCLAW_BRIDGE_NOT_CONFIGURED``
    and says what to set.
    """
    return _open_openclaw


@asynccontextmanager
async def _open_openclaw(context: AdapterContext) -> AsyncGenerator[Adapter]:
    try:
        command = shlex.split(context.ports.environment.get(COMMAND_VARIABLE, ""))
    except ValueError as exc:
        yield _NotConfigured(f"{COMMAND_VARIABLE} cannot be read: {exc}", context.snapshot)
        return
    if not command:
        yield _NotConfigured(
            f"set {COMMAND_VARIABLE} to the command that starts the bridge", context.snapshot
        )
        return
    async with BridgeAgent(command, configured_by=COMMAND_VARIABLE)(context) as adapter:
        yield adapter


@final
class _NotConfigured(Adapter):
    """What stands where a bridge would: every run says what to set."""

    def __init__(self, problem: str, snapshot: JsonObject | None) -> None:
        self._problem = problem
        self._snapshot = snapshot

    @override
    async def handle(self, run: ActiveRun) -> None:
        await run.fail(AdapterError(self._problem, code="OPENCLAW_BRIDGE_NOT_CONFIGURED"))

    @override
    async def get_snapshot(self) -> JsonObject | None:
        return self._snapshot
