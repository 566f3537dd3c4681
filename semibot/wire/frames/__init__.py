"""What a VM and a host say to each other over their link (protocol sections 3 and 4).

Every frame is one JSON object with a ``type``. The fields of level 2 are optional here,
because a peer of level 1 leaves them out; ``link.py`` knows which level a peer speaks.
"""

from .both_ways import ErrorDetail as ErrorDetail
from .both_ways import ErrorFrame as ErrorFrame
from .both_ways import ProtocolRange as ProtocolRange
from .from_host import Cancel as Cancel
from .from_host import Command as Command
from .from_host import ConfigUpdate as ConfigUpdate
from .from_host import FromHost as FromHost
from .from_host import HostAck as HostAck
from .from_host import HostHeartbeat as HostHeartbeat
from .from_host import Init as Init
from .from_host import InitData as InitData
from .from_host import ProviderSettings as ProviderSettings
from .from_host import RequestStatus as RequestStatus
from .from_host import Response as Response
from .from_host import ResumeResponse as ResumeResponse
from .from_host import SessionSnapshot as SessionSnapshot
from .from_host import SessionStatus as SessionStatus
from .from_host import StartSession as StartSession
from .from_host import StartSessionData as StartSessionData
from .from_host import StopSession as StopSession
from .from_host import StopSessionData as StopSessionData
from .from_host import Token as Token
from .from_host import UserMessage as UserMessage
from .from_host import UserMessageData as UserMessageData
from .from_vm import Auth as Auth
from .from_vm import BlockReport as BlockReport
from .from_vm import Cancelled as Cancelled
from .from_vm import CommandAck as CommandAck
from .from_vm import FireAndForget as FireAndForget
from .from_vm import FromVm as FromVm
from .from_vm import HeldSession as HeldSession
from .from_vm import Request as Request
from .from_vm import RequestCancel as RequestCancel
from .from_vm import Resume as Resume
from .from_vm import SseEvent as SseEvent
from .from_vm import VmHeartbeat as VmHeartbeat
from .limits import MAX_AUTH_BYTES as MAX_AUTH_BYTES
from .limits import MAX_BATCH_BYTES as MAX_BATCH_BYTES
from .limits import MAX_BATCH_FRAMES as MAX_BATCH_FRAMES
from .limits import MAX_EVENT_BYTES as MAX_EVENT_BYTES
from .limits import MAX_FRAME_BYTES as MAX_FRAME_BYTES
from .limits import MAX_ID_LENGTH as MAX_ID_LENGTH
from .limits import MAX_SENT_BYTES as MAX_SENT_BYTES
from .limits import MAX_SEQ as MAX_SEQ
from .limits import MAX_TERM as MAX_TERM
from .limits import MEMORY_SESSION as MEMORY_SESSION
from .text import EventPeek as EventPeek
from .text import PlaneFrame as PlaneFrame
from .text import decode_from_host as decode_from_host
from .text import decode_from_vm as decode_from_vm
from .text import encode_batch as encode_batch
from .text import encode_frame as encode_frame
from .text import encode_sse_event as encode_sse_event
from .text import load_event as load_event
from .text import peek_event as peek_event

__all__ = [
    "MAX_AUTH_BYTES",
    "MAX_BATCH_BYTES",
    "MAX_BATCH_FRAMES",
    "MAX_EVENT_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_ID_LENGTH",
    "MAX_SENT_BYTES",
    "MAX_SEQ",
    "MAX_TERM",
    "MEMORY_SESSION",
    "Auth",
    "BlockReport",
    "Cancel",
    "Cancelled",
    "Command",
    "CommandAck",
    "ConfigUpdate",
    "ErrorDetail",
    "ErrorFrame",
    "EventPeek",
    "FireAndForget",
    "FromHost",
    "FromVm",
    "HeldSession",
    "HostAck",
    "HostHeartbeat",
    "Init",
    "InitData",
    "PlaneFrame",
    "ProtocolRange",
    "ProviderSettings",
    "Request",
    "RequestCancel",
    "RequestStatus",
    "Response",
    "Resume",
    "ResumeResponse",
    "SessionSnapshot",
    "SessionStatus",
    "SseEvent",
    "StartSession",
    "StartSessionData",
    "StopSession",
    "StopSessionData",
    "Token",
    "UserMessage",
    "UserMessageData",
    "VmHeartbeat",
    "decode_from_host",
    "decode_from_vm",
    "encode_batch",
    "encode_frame",
    "encode_sse_event",
    "load_event",
    "peek_event",
]
