"""An adapter that thinks with a model: plan, act, observe, reflect, respond."""

from .agent import GraphAgent as GraphAgent

__all__ = ["GraphAgent"]
