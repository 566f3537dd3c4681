"""Every exception that semibot raises on purpose.

The second level says who must act.

* :exc:`SemibotError`
    * :exc:`UsageError`: the caller
        * :exc:`SessionBusy`
        * :exc:`CursorExpired`
        * :exc:`NotFound`
        * :exc:`BadCursor`
        * :exc:`IdempotencyConflict`
    * :exc:`ConfigError`: the operator
        * :exc:`ModelNotConfigured`
        * :exc:`SessionInUse`
        * :exc:`WorkspaceUnusable`
        * :exc:`DataDirectoryInUse`
    * :exc:`ProtocolError`
        * :exc:`LocalProtocolError`: us
        * :exc:`RemoteProtocolError`: the peer
    * :exc:`LinkRefused`: whoever started the VM
    * :exc:`PlaneNotReady`: nobody; try again
    * :exc:`HostUnreachable`: whoever runs the host
    * :exc:`HostRefused`: whoever asked the host
    * :exc:`AdapterError`: whoever wrote or runs the adapter
    * :exc:`RequestFailed`: whoever asked the control plane
    * :exc:`ModelError`: the model's provider
    * :exc:`ToolError`: the tool, or the model that called it
    * :exc:`ChildError`: the program that was started
        * :exc:`ChildStartFailed`
    * :exc:`StoreError`: the disk
        * :exc:`LinkFenced`
    * :exc:`SecurityError`: nobody; the answer is no
        * :exc:`PathRefused`
        * :exc:`TokenRefused`
        * :exc:`Unauthenticated`
        * :exc:`OriginRefused`
    * :exc:`DeadlineExceeded`
    * :exc:`ServiceEnded`

Each class has a stable ``code``; it is what an ``execution_error`` event carries.
"""

from __future__ import annotations

from ._library import AdapterError as AdapterError
from ._library import ChildError as ChildError
from ._library import ChildStartFailed as ChildStartFailed
from ._library import ConfigError as ConfigError
from ._library import CursorExpired as CursorExpired
from ._library import DeadlineExceeded as DeadlineExceeded
from ._library import LocalProtocolError as LocalProtocolError
from ._library import ModelError as ModelError
from ._library import ModelNotConfigured as ModelNotConfigured
from ._library import PathRefused as PathRefused
from ._library import ProtocolError as ProtocolError
from ._library import RemoteProtocolError as RemoteProtocolError
from ._library import RequestFailed as RequestFailed
from ._library import SecurityError as SecurityError
from ._library import SemibotError as SemibotError
from ._library import ServiceEnded as ServiceEnded
from ._library import SessionBusy as SessionBusy
from ._library import SessionInUse as SessionInUse
from ._library import StoreError as StoreError
from ._library import ToolError as ToolError
from ._library import UsageError as UsageError
from ._library import WorkspaceUnusable as WorkspaceUnusable
from ._planes import BadCursor as BadCursor
from ._planes import DataDirectoryInUse as DataDirectoryInUse
from ._planes import HostRefused as HostRefused
from ._planes import HostUnreachable as HostUnreachable
from ._planes import IdempotencyConflict as IdempotencyConflict
from ._planes import LinkFenced as LinkFenced
from ._planes import LinkRefused as LinkRefused
from ._planes import NotFound as NotFound
from ._planes import OriginRefused as OriginRefused
from ._planes import PlaneNotReady as PlaneNotReady
from ._planes import TokenRefused as TokenRefused
from ._planes import Unauthenticated as Unauthenticated

__all__ = [
    "AdapterError",
    "BadCursor",
    "ChildError",
    "ChildStartFailed",
    "ConfigError",
    "CursorExpired",
    "DataDirectoryInUse",
    "DeadlineExceeded",
    "HostRefused",
    "HostUnreachable",
    "IdempotencyConflict",
    "LinkFenced",
    "LinkRefused",
    "LocalProtocolError",
    "ModelError",
    "ModelNotConfigured",
    "NotFound",
    "OriginRefused",
    "PathRefused",
    "PlaneNotReady",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestFailed",
    "SecurityError",
    "SemibotError",
    "ServiceEnded",
    "SessionBusy",
    "SessionInUse",
    "StoreError",
    "TokenRefused",
    "ToolError",
    "Unauthenticated",
    "UsageError",
    "WorkspaceUnusable",
]

for _name in __all__:
    # In messages, pickles and documentation they are called what people import.
    globals()[_name].__module__ = __name__
