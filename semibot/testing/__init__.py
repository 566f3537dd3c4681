"""Fakes and harnesses, for semibot's own tests and for yours."""

from .adapters import FunctionAdapter as FunctionAdapter
from .adapters import adapter_from as adapter_from
from .ports import simulated_ports as simulated_ports

__all__ = ["FunctionAdapter", "adapter_from", "simulated_ports"]
