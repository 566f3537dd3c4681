"""Fakes and harnesses, for semibot's own tests and for yours."""

from .adapters import FunctionAdapter as FunctionAdapter
from .adapters import adapter_from as adapter_from
from .logs import capture_logs as capture_logs
from .ports import simulated_ports as simulated_ports

__all__ = ["FunctionAdapter", "adapter_from", "capture_logs", "simulated_ports"]
