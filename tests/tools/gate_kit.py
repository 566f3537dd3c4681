"""A gate with everything around it, for the tests of this room."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import attrs
import trio

from semibot.config import Deadlines
from semibot.live import live_ports
from semibot.ports import Ports
from semibot.tools import (
    CallEnded,
    CallRequest,
    CallResult,
    ConfinedDirectory,
    Decision,
    Gate,
    Grant,
    Ledger,
    Policy,
    Tool,
)


async def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for a thread or a process, which have no event to wait for."""
    with trio.fail_after(5):
        while not is_so():  # noqa: ASYNC110 - see above
            await trio.sleep(0.001)


@attrs.define
class Kit:
    gate: Gate
    ledger: Ledger
    records: list[Decision | CallEnded]
    ports: Ports

    async def call(
        self, name: str, *, id: str = "call-1", limit: float | None = None, **arguments: object
    ) -> CallResult:
        return await self.call_text(name, json.dumps(arguments), id=id, limit=limit)

    async def call_text(
        self, name: str, text: str, *, id: str = "call-1", limit: float | None = None
    ) -> CallResult:
        request = CallRequest(id=id, name=name, arguments=text, limit=limit)
        return await self.gate.call(request, run_id="run-1", ledger=self.ledger)

    @property
    def decisions(self) -> list[Decision]:
        return [record for record in self.records if isinstance(record, Decision)]

    @property
    def ends(self) -> list[CallEnded]:
        return [record for record in self.records if isinstance(record, CallEnded)]


def make_kit(
    *tools: Tool,
    grants: Iterable[Grant | str] = (),
    recorder: Callable[[Decision | CallEnded], Awaitable[None]] | None = None,
    deadlines: Deadlines | None = None,
    workspace: Path | None = None,
    ports: Ports | None = None,
    keep_result: Callable[[str, str], Awaitable[str]] | None = None,
    readable: tuple[str, ...] = (),
) -> Kit:
    records: list[Decision | CallEnded] = []
    ports = ports or live_ports()

    async def record(entry: Decision | CallEnded) -> None:
        records.append(entry)

    gate = Gate(
        tools,
        Policy(grants),
        recorder or record,
        ports,
        deadlines or Deadlines(),
        None if workspace is None else ConfinedDirectory(workspace, readable=readable),
        "session-1",
        keep_result,
    )
    return Kit(gate, Ledger(), records, ports)
