"""Language models: the interface, the providers, and what every caller needs around them."""

from .base import Delta as Delta
from .base import Model as Model
from .base import ModelFactory as ModelFactory
from .base import ModelRequest as ModelRequest
from .base import ModelStream as ModelStream
from .base import ReasoningDelta as ReasoningDelta
from .base import Reply as Reply
from .base import StreamItem as StreamItem
from .base import TextDelta as TextDelta
from .base import ToolChoice as ToolChoice
from .demonstration import demonstration_model as demonstration_model
from .demonstration import mentioned_path as mentioned_path
from .history import repair_history as repair_history
from .history import strict_problems as strict_problems
from .openai import openai_model as openai_model
from .registry import PROVIDERS as PROVIDERS
from .registry import Provider as Provider
from .registry import resolve_model as resolve_model
from .retry import ActivityLog as ActivityLog
from .retry import backoff as backoff
from .retry import stream_reply as stream_reply
from .scripted import Call as Call
from .scripted import Fail as Fail
from .scripted import Hang as Hang
from .scripted import Say as Say
from .scripted import Script as Script
from .scripted import ScriptedModel as ScriptedModel
from .scripted import Turn as Turn
from .scripted import TurnSource as TurnSource
from .scripted import scripted_model as scripted_model
from .scripted import tool_request as tool_request

__all__ = [
    "PROVIDERS",
    "ActivityLog",
    "Call",
    "Delta",
    "Fail",
    "Hang",
    "Model",
    "ModelFactory",
    "ModelRequest",
    "ModelStream",
    "Provider",
    "ReasoningDelta",
    "Reply",
    "Say",
    "Script",
    "ScriptedModel",
    "StreamItem",
    "TextDelta",
    "ToolChoice",
    "Turn",
    "TurnSource",
    "backoff",
    "demonstration_model",
    "mentioned_path",
    "openai_model",
    "repair_history",
    "resolve_model",
    "scripted_model",
    "stream_reply",
    "strict_problems",
    "tool_request",
]
