"""Fakes and harnesses, for semibot's own tests and for yours."""

from .adapters import FunctionAdapter as FunctionAdapter
from .adapters import adapter_from as adapter_from
from .logs import capture_logs as capture_logs
from .model_server import ModelServer as ModelServer
from .model_server import open_model_server as open_model_server
from .ports import simulated_ports as simulated_ports
from .sweep import SweepReport as SweepReport
from .sweep import cancel_everywhere as cancel_everywhere

__all__ = [
    "FunctionAdapter",
    "ModelServer",
    "SweepReport",
    "adapter_from",
    "cancel_everywhere",
    "capture_logs",
    "open_model_server",
    "simulated_ports",
]
