"""An adapter that thinks with a model: plan, act, observe, reflect, respond."""

from .agent import GraphAgent as GraphAgent
from .grants import parse_grants as parse_grants

__all__ = ["GraphAgent", "parse_grants"]
