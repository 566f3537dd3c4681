"""Host, VMs and users in one process, under faults, from a seed: see :func:`simulate`."""

from .faults import FAULTS as FAULTS
from .faults import Fault as Fault
from .invariants import PROMISES as PROMISES
from .report import SimulationReport as SimulationReport
from .report import Violation as Violation
from .simulating import simulate as simulate

__all__ = ["FAULTS", "PROMISES", "Fault", "SimulationReport", "Violation", "simulate"]
