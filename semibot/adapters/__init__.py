"""What drives runs: adapters that come with semibot."""

from .bridge import BridgeAgent as BridgeAgent
from .graph import GraphAgent as GraphAgent
from .openclaw import openclaw_agent as openclaw_agent

__all__ = ["BridgeAgent", "GraphAgent", "openclaw_agent"]
