"""The runtimes that ``semibot chat`` knows by name, and what each makes of the options."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import attrs

from semibot.adapters.graph import GraphAgent, parse_grants
from semibot.adapters.openclaw import openclaw_agent
from semibot.config import Deadlines
from semibot.errors import UsageError
from semibot.models import resolve_model
from semibot.models.openai import OpenAIModel
from semibot.ports import Ports
from semibot.session import AdapterFactory
from semibot.wire.codec import JsonObject


@attrs.frozen(kw_only=True)
class Runtime:
    """What drives the runs of a chat."""

    adapter: AdapterFactory
    """Makes the adapter's scope."""
    model: str
    """What it thinks with, for people."""
    payload: JsonObject
    """What starts the session."""


Maker = Callable[[Ports, str | None, Sequence[str]], Awaitable[Runtime]]
"""Makes a runtime from the model's name, if one was given, and the grants."""


async def _make_graph(ports: Ports, model: str | None, grants: Sequence[str]) -> Runtime:
    parsed = parse_grants(grants)  # a mistyped one is refused before anything is opened
    # Opening a model does no I/O; only an open one has a name.
    async with resolve_model(model)(ports, Deadlines()) as opened:
        name = opened.name
        if isinstance(opened, OpenAIModel):
            # Its SDK takes a second to import. Better now, when nothing else is under way,
            # than in the first run, where everything would stand still.
            importlib.import_module("semibot.models.openai.client")
    return Runtime(adapter=GraphAgent(model, grants=parsed), model=name, payload={})


async def _make_openclaw(  # noqa: ASYNC124 - a table's makers are all alike
    ports: Ports, model: str | None, grants: Sequence[str]
) -> Runtime:
    if grants:
        raise UsageError(
            "--allow is for the tools of --runtime graph; what a bridge may do is up to the bridge"
        )
    payload: JsonObject = {"runtime_type": "openclaw"}
    if model is not None:
        payload = {**payload, "agent_config": {"model": model}}
    return Runtime(adapter=openclaw_agent(), model=model or "the bridge's own", payload=payload)


RUNTIMES: Final[Mapping[str, Maker]] = MappingProxyType(
    {"graph": _make_graph, "semigraph": _make_graph, "openclaw": _make_openclaw}
)
"""How to make each runtime, by its name."""
