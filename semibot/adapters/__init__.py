"""What drives runs: adapters that come with semibot."""

from .bridge import BridgeAgent as BridgeAgent
from .openclaw import openclaw_agent as openclaw_agent

__all__ = ["BridgeAgent", "openclaw_agent"]
