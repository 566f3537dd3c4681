"""Fakes and harnesses, for semibot's own tests and for yours.

The fake model server is in :mod:`semibot.testing.model_server`, which is a program too; what
every store has to do is in ``semibot.testing.store_conformance``.
"""

from .adapters import FunctionAdapter as FunctionAdapter
from .adapters import adapter_from as adapter_from
from .faulty import FaultyStream as FaultyStream
from .faulty import faulty_ports as faulty_ports
from .logs import capture_logs as capture_logs
from .plane import LaneEvent as LaneEvent
from .plane import MemoryLane as MemoryLane
from .plane import MemoryPlane as MemoryPlane
from .ports import simulated_ports as simulated_ports
from .scheduling import seeded_scheduler as seeded_scheduler
from .simulation import SimulationReport as SimulationReport
from .simulation import Violation as Violation
from .simulation import simulate as simulate
from .sweep import FaultReport as FaultReport
from .sweep import SweepDidNotEnd as SweepDidNotEnd
from .sweep import SweepReport as SweepReport
from .sweep import cancel_everywhere as cancel_everywhere
from .sweep import cut_here as cut_here
from .sweep import fail_everywhere as fail_everywhere

__all__ = [
    "FaultReport",
    "FaultyStream",
    "FunctionAdapter",
    "LaneEvent",
    "MemoryLane",
    "MemoryPlane",
    "SimulationReport",
    "SweepDidNotEnd",
    "SweepReport",
    "Violation",
    "adapter_from",
    "cancel_everywhere",
    "capture_logs",
    "cut_here",
    "fail_everywhere",
    "faulty_ports",
    "seeded_scheduler",
    "simulate",
    "simulated_ports",
]
