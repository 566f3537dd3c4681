"""Seeing what a running semibot does."""

from .watchdog import LoopBlock as LoopBlock

__all__ = ["LoopBlock"]
