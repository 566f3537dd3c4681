"""The VM's end of the link to its host."""

from .backoff import Backoff as Backoff
from .control_channel import ControlChannel as ControlChannel
from .control_channel import open_control_channel as open_control_channel
from .outbox import Outbox as Outbox
from .outbox import open_outbox as open_outbox
from .status import ChannelStatistics as ChannelStatistics
from .status import LinkState as LinkState
from .status import LinkStatus as LinkStatus

__all__ = [
    "Backoff",
    "ChannelStatistics",
    "ControlChannel",
    "LinkState",
    "LinkStatus",
    "Outbox",
    "open_control_channel",
    "open_outbox",
]
