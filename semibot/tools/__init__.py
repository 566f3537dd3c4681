"""Tools: typed functions, the policy about them, and the gate that alone runs them."""

from .calls import CallEnded as CallEnded
from .calls import CallOutcome as CallOutcome
from .calls import CallRequest as CallRequest
from .calls import CallResult as CallResult
from .calls import CreatedFile as CreatedFile
from .calls import Decision as Decision
from .calls import Recorder as Recorder
from .context import ToolContext as ToolContext
from .gate import Gate as Gate
from .ledger import Activity as Activity
from .ledger import Ledger as Ledger
from .paths import ConfinedDirectory as ConfinedDirectory
from .permissions import GRANT_NAMES as GRANT_NAMES
from .permissions import ArgvPrefix as ArgvPrefix
from .permissions import Equals as Equals
from .permissions import Grant as Grant
from .permissions import Policy as Policy
from .permissions import UnderPath as UnderPath
from .permissions import Verdict as Verdict
from .processes import ChildResult as ChildResult
from .processes import ExitStatus as ExitStatus
from .processes import run_child as run_child
from .tool import Tool as Tool
from .tool import tool as tool

__all__ = [
    "GRANT_NAMES",
    "Activity",
    "ArgvPrefix",
    "CallEnded",
    "CallOutcome",
    "CallRequest",
    "CallResult",
    "ChildResult",
    "ConfinedDirectory",
    "CreatedFile",
    "Decision",
    "Equals",
    "ExitStatus",
    "Gate",
    "Grant",
    "Ledger",
    "Policy",
    "Recorder",
    "Tool",
    "ToolContext",
    "UnderPath",
    "Verdict",
    "run_child",
    "tool",
]
