"""Sessions, runs and the interface to adapters."""

from .adapter import Adapter as Adapter
from .adapter import AdapterContext as AdapterContext
from .adapter import AdapterFactory as AdapterFactory
from .adapter import ControlPlane as ControlPlane
from .conductor import BusyPolicy as BusyPolicy
from .journal import Cursor as Cursor
from .journal import JournalEntry as JournalEntry
from .journal import RunEvents as RunEvents
from .manager import ManagerStatistics as ManagerStatistics
from .manager import SessionManager as SessionManager
from .manager import open_session_manager as open_session_manager
from .opening import open_session as open_session
from .run import ActiveRun as ActiveRun
from .run import Closed as Closed
from .run import Emitted as Emitted
from .run import Run as Run
from .session import Session as Session
from .session import SessionStatistics as SessionStatistics

__all__ = [
    "ActiveRun",
    "Adapter",
    "AdapterContext",
    "AdapterFactory",
    "BusyPolicy",
    "Closed",
    "ControlPlane",
    "Cursor",
    "Emitted",
    "JournalEntry",
    "ManagerStatistics",
    "Run",
    "RunEvents",
    "Session",
    "SessionManager",
    "SessionStatistics",
    "open_session",
    "open_session_manager",
]
