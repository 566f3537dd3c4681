"""A Trio runtime for LLM agents: sessions that do not leak, do not lose and do not hang.

The names below are loaded when they are first used: a command line that only prints its
help must not pay for Trio and a model's SDK.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from semibot.adapters.bridge import BridgeAgent as BridgeAgent
    from semibot.adapters.graph import GraphAgent as GraphAgent
    from semibot.adapters.openclaw import openclaw_agent as openclaw_agent
    from semibot.channel import ControlChannel as ControlChannel
    from semibot.channel import open_control_channel as open_control_channel
    from semibot.config import Deadlines as Deadlines
    from semibot.config.settings import HostSettings as HostSettings
    from semibot.errors import SemibotError as SemibotError
    from semibot.errors import ToolError as ToolError
    from semibot.host.host import Host as Host
    from semibot.host.host import open_host as open_host
    from semibot.models.demonstration import demonstration_model as demonstration_model
    from semibot.models.openai import openai_model as openai_model
    from semibot.models.scripted import scripted_model as scripted_model
    from semibot.secret import Secret as Secret
    from semibot.session import ActiveRun as ActiveRun
    from semibot.session import Adapter as Adapter
    from semibot.session import AdapterContext as AdapterContext
    from semibot.session import Closed as Closed
    from semibot.session import Emitted as Emitted
    from semibot.session import Run as Run
    from semibot.session import Session as Session
    from semibot.session import SessionManager as SessionManager
    from semibot.session import open_session as open_session
    from semibot.session import open_session_manager as open_session_manager
    from semibot.tools import Grant as Grant
    from semibot.tools import Tool as Tool
    from semibot.tools import ToolContext as ToolContext
    from semibot.tools import tool as tool
    from semibot.wire.events import ExecutionComplete as ExecutionComplete
    from semibot.wire.events import ExecutionError as ExecutionError
    from semibot.wire.events import FileCreated as FileCreated
    from semibot.wire.events import PlanCreated as PlanCreated
    from semibot.wire.events import PlanStepComplete as PlanStepComplete
    from semibot.wire.events import PlanStepFailed as PlanStepFailed
    from semibot.wire.events import PlanStepStart as PlanStepStart
    from semibot.wire.events import RunStarted as RunStarted
    from semibot.wire.events import SkillCallComplete as SkillCallComplete
    from semibot.wire.events import SkillCallStart as SkillCallStart
    from semibot.wire.events import TextChunk as TextChunk
    from semibot.wire.events import Thinking as Thinking
    from semibot.wire.events import ToolAuthDenied as ToolAuthDenied
    from semibot.wire.events import ToolCallComplete as ToolCallComplete
    from semibot.wire.events import ToolCallStart as ToolCallStart
    from semibot.wire.events import Usage as Usage
    from semibot.wire.receipts import Receipt as Receipt

__version__: Final = "0.1.0"

__all__ = [
    "ActiveRun",
    "Adapter",
    "AdapterContext",
    "BridgeAgent",
    "Closed",
    "ControlChannel",
    "Deadlines",
    "Emitted",
    "ExecutionComplete",
    "ExecutionError",
    "FileCreated",
    "Grant",
    "GraphAgent",
    "Host",
    "HostSettings",
    "PlanCreated",
    "PlanStepComplete",
    "PlanStepFailed",
    "PlanStepStart",
    "Receipt",
    "Run",
    "RunStarted",
    "Secret",
    "SemibotError",
    "Session",
    "SessionManager",
    "SkillCallComplete",
    "SkillCallStart",
    "TextChunk",
    "Thinking",
    "Tool",
    "ToolAuthDenied",
    "ToolCallComplete",
    "ToolCallStart",
    "ToolContext",
    "ToolError",
    "Usage",
    "__version__",
    "demonstration_model",
    "open_control_channel",
    "open_host",
    "open_session",
    "open_session_manager",
    "openai_model",
    "openclaw_agent",
    "scripted_model",
    "tool",
]

_ROOMS: Final = {
    "ActiveRun": "session",
    "Adapter": "session",
    "AdapterContext": "session",
    "BridgeAgent": "adapters.bridge",
    "Closed": "session",
    "ControlChannel": "channel",
    "Deadlines": "config",
    "Emitted": "session",
    "ExecutionComplete": "wire.events",
    "ExecutionError": "wire.events",
    "FileCreated": "wire.events",
    "Grant": "tools",
    "GraphAgent": "adapters.graph",
    "Host": "host.host",
    "HostSettings": "config.settings",
    "PlanCreated": "wire.events",
    "PlanStepComplete": "wire.events",
    "PlanStepFailed": "wire.events",
    "PlanStepStart": "wire.events",
    "Receipt": "wire.receipts",
    "Run": "session",
    "RunStarted": "wire.events",
    "Secret": "secret",
    "SemibotError": "errors",
    "Session": "session",
    "SessionManager": "session",
    "SkillCallComplete": "wire.events",
    "SkillCallStart": "wire.events",
    "TextChunk": "wire.events",
    "Thinking": "wire.events",
    "Tool": "tools",
    "ToolAuthDenied": "wire.events",
    "ToolCallComplete": "wire.events",
    "ToolCallStart": "wire.events",
    "ToolContext": "tools",
    "ToolError": "errors",
    "Usage": "wire.events",
    "demonstration_model": "models.demonstration",
    "open_control_channel": "channel",
    "open_host": "host.host",
    "open_session": "session",
    "open_session_manager": "session",
    "openai_model": "models.openai",
    "openclaw_agent": "adapters.openclaw",
    "scripted_model": "models.scripted",
    "tool": "tools",
}


def __getattr__(name: str) -> object:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{room}"), name)


def __dir__() -> list[str]:
    return list(__all__)
