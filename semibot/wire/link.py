"""The order of what is said on a link, as tables without I/O (protocol sections 2 to 4).

Each end of a link is in a state; every frame that it sends or receives is looked up in its
table, and what is not there is out of order. The states are the same for both ends, and
``init``, which fixes the level, is where the levels part::

    connecting --auth--> authenticating --init--> introduced --resume--> resuming
               --resume_response--> live                                   (level 2)
    connecting --auth--> authenticating --init--> level1 <--resume,
               resume_response--> level1_resuming                          (level 1)

Of a batch, an end is told ``batch`` first and then each frame in it.

The sender is a little stricter than the receiver: a VM may already ask and report while its
``resume`` is on the way, as nothing of that depends on the answer, but ours does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, final

import attrs

from semibot.errors import LocalProtocolError, RemoteProtocolError

from .frames import ProtocolRange

LinkState: TypeAlias = Literal[
    "connecting",
    "authenticating",
    "introduced",
    "resuming",
    "live",
    "level1",
    "level1_resuming",
    "closed",
]
"""Where a link is."""

Transitions: TypeAlias = Mapping[tuple[LinkState, str], LinkState]
"""The next state by the state and what happens, such as ``received resume``."""

# --- levels ---------------------------------------------------------------------------

LOWEST_LEVEL: Final = 1
"""The lowest level that we speak."""

HIGHEST_LEVEL: Final = 2
"""The highest level that we speak."""


def negotiate(spoken: ProtocolRange | None) -> int:
    """Return the level that a link uses: the highest that both sides speak.

    Args:
        spoken: What the VM said in ``auth``; None is level 1.

    Raises:
        RemoteProtocolError: If there is none.
    """
    if spoken is None:
        return LOWEST_LEVEL
    level = min(HIGHEST_LEVEL, spoken.max)
    if level < max(LOWEST_LEVEL, spoken.min):
        reason = f"no common level; this side speaks {LOWEST_LEVEL} to {HIGHEST_LEVEL}"
        raise RemoteProtocolError(reason, "$.protocol")
    return level


# --- the tables -----------------------------------------------------------------------
# In which state, what happens (any of several types of frames), and the state afterwards.

_COMMANDS: Final = "start_session stop_session user_message cancel config_update"
_VM_1: Final = "heartbeat request sse_event fire_and_forget error"
_VM_2: Final = f"{_VM_1} request_cancel ack cancelled batch"
_VM_ASKING: Final = "heartbeat request request_cancel fire_and_forget error batch"
_HOST_1: Final = f"{_COMMANDS} response error"
_HOST_2: Final = f"{_HOST_1} heartbeat ack token batch"
_HOST_ANSWERING: Final = "heartbeat response ack token error batch"

_Rows: TypeAlias = tuple[tuple[LinkState, str, LinkState], ...]

_HOST_ROWS: Final[_Rows] = (
    ("connecting", "received auth", "authenticating"),
    ("connecting", "sent error", "connecting"),
    ("authenticating", "sent init(1)", "level1"),
    ("authenticating", "sent init(2)", "introduced"),
    ("authenticating", "sent error", "authenticating"),
    ("authenticating", "received heartbeat", "authenticating"),
    ("introduced", "received resume", "resuming"),
    ("introduced", "received heartbeat error batch", "introduced"),
    ("introduced", "sent heartbeat token error batch", "introduced"),
    ("resuming", "sent resume_response", "live"),
    ("resuming", f"sent {_HOST_ANSWERING}", "resuming"),
    ("resuming", f"received {_VM_ASKING}", "resuming"),
    ("live", f"sent {_HOST_2}", "live"),
    ("live", f"received {_VM_2}", "live"),
    ("level1", "received resume", "level1_resuming"),
    ("level1", f"received {_VM_1}", "level1"),
    ("level1", f"sent {_HOST_1}", "level1"),
    ("level1_resuming", "sent resume_response", "level1"),
    ("level1_resuming", f"sent {_HOST_1}", "level1_resuming"),
    ("level1_resuming", f"received {_VM_1}", "level1_resuming"),
)

_VM_ROWS: Final[_Rows] = (
    ("connecting", "sent auth", "authenticating"),
    ("connecting", "received error", "connecting"),
    ("authenticating", "received init(1)", "level1"),
    ("authenticating", "received init(2)", "introduced"),
    ("authenticating", "received error", "authenticating"),
    ("introduced", "sent resume", "resuming"),
    ("introduced", "sent heartbeat error", "introduced"),
    ("introduced", "received heartbeat token error batch", "introduced"),
    ("resuming", "received resume_response", "live"),
    ("resuming", f"received {_HOST_ANSWERING}", "resuming"),
    ("resuming", "sent heartbeat error", "resuming"),
    ("live", f"sent {_VM_2}", "live"),
    ("live", f"received {_HOST_2}", "live"),
    ("level1", "sent resume", "level1_resuming"),
    ("level1", f"sent {_VM_1}", "level1"),
    ("level1", f"received {_HOST_1}", "level1"),
    ("level1_resuming", "received resume_response", "level1"),
    ("level1_resuming", f"received {_HOST_1}", "level1_resuming"),
    ("level1_resuming", "sent heartbeat error", "level1_resuming"),
)


def _one_by_one(rows: _Rows) -> Transitions:
    table: dict[tuple[LinkState, str], LinkState] = {}
    for state, happening, then in rows:
        direction, *types = happening.split()
        table |= {(state, f"{direction} {each}"): then for each in types}
    return MappingProxyType(table)


HOST_TRANSITIONS: Final[Transitions] = _one_by_one(_HOST_ROWS)
"""What a host may say and hear."""

VM_TRANSITIONS: Final[Transitions] = _one_by_one(_VM_ROWS)
"""What a VM may say and hear."""


@final
class HostEnd:
    """The host's end of one link."""

    def __init__(self) -> None:
        self._order = _Order(HOST_TRANSITIONS)

    @property
    def state(self) -> LinkState:
        """Where the link is."""
        return self._order.state

    @property
    def level(self) -> int | None:
        """The level that both speak; None before ``init``."""
        return self._order.level

    def sent(self, type: str, *, level: int | None = None) -> None:
        """Note that a frame is about to be sent.

        Args:
            type: The frame's type.
            level: With ``init``: the level that it says; None is 1.

        Raises:
            LocalProtocolError: If the protocol does not allow it now; nothing has changed.
        """
        self._order.sent(type, level)

    def received(self, type: str) -> None:
        """Note that a frame has come.

        Args:
            type: The frame's type.

        Raises:
            RemoteProtocolError: If the VM may not send it now; nothing has changed.
        """
        self._order.received(type, None)

    def close(self) -> None:
        """Note that the link is closed; nothing may be said or heard any more."""
        self._order.close()


@final
class VmEnd:
    """The VM's end of one link."""

    def __init__(self) -> None:
        self._order = _Order(VM_TRANSITIONS)

    @property
    def state(self) -> LinkState:
        """Where the link is."""
        return self._order.state

    @property
    def level(self) -> int | None:
        """The level that both speak; None before ``init``."""
        return self._order.level

    def sent(self, type: str) -> None:
        """Note that a frame is about to be sent.

        Args:
            type: The frame's type.

        Raises:
            LocalProtocolError: If the protocol does not allow it now; nothing has changed.
        """
        self._order.sent(type, None)

    def received(self, type: str, *, level: int | None = None) -> None:
        """Note that a frame has come.

        Args:
            type: The frame's type.
            level: With ``init``: the level that it says; None is 1.

        Raises:
            RemoteProtocolError: If the host may not send it now; nothing has changed.
        """
        self._order.received(type, level)

    def close(self) -> None:
        """Note that the link is closed; nothing may be said or heard any more."""
        self._order.close()


@attrs.define(eq=False)
class _Order:
    """What both ends do with their tables."""

    table: Transitions
    state: LinkState = "connecting"
    level: int | None = None

    def sent(self, type: str, level: int | None) -> None:
        if not self._go("sent", type, level):
            raise LocalProtocolError(self._complaint("sent", type))

    def received(self, type: str, level: int | None) -> None:
        if not self._go("received", type, level):
            raise RemoteProtocolError(self._complaint("received", type), "$.type")

    def close(self) -> None:
        self.state = "closed"

    def _go(self, direction: str, type: str, level: int | None) -> bool:
        is_init = type == "init"
        level = LOWEST_LEVEL if level is None else level
        name = f"init({level})" if is_init else type
        then = self.table.get((self.state, f"{direction} {name}"))
        if then is None:
            return False
        self.state = then
        if is_init:
            self.level = level
        return True

    def _complaint(self, direction: str, type: str) -> str:
        start = f"{direction} "
        may = [
            name.removeprefix(start)
            for state, name in self.table
            if state == self.state and name.startswith(start)
        ]
        # A type that nobody knows is the peer's text, and not repeated.
        known = type if any(name == start + type for _, name in self.table) else "this frame"
        what = "may be sent" if direction == "sent" else "is expected"
        return f"{known} is out of order on a link that is {self.state}; {_list(may)} {what}"


def _list(names: list[str]) -> str:
    return " or ".join(names) if names else "nothing"


# --- the end of a link ----------------------------------------------------------------


class CloseCode(IntEnum):
    """Why a link was closed."""

    NORMAL = 1000
    GOING_AWAY = 1001
    NOT_TEXT = 1003
    TOO_BIG = 1009
    HOST_FAILED = 1011
    RESTARTING = 1012
    OVERLOADED = 1013
    UNAUTHORIZED = 4001
    NO_VM = 4003
    NO_USER = 4004
    SILENT = 4008
    SUPERSEDED = 4009
    TOO_MANY = 4029
    MALFORMED = 4400
    INTERNAL = 4500


OTHER_INSTANCE: Final = "other_instance"
"""Reason beside :attr:`CloseCode.SUPERSEDED`: another process is the user's VM now."""

Reaction: TypeAlias = Literal["reconnect", "final"]
"""What a VM does after a close; ``final``: stop, and exit with an error."""


@attrs.frozen(kw_only=True)
class CloseReaction:
    """What a close code means to a VM."""

    meaning: str
    """Why the link was closed, in words."""
    reaction: Reaction
    """What to do."""
    only_because: str | None = None
    """The one reason for which *reaction* holds; with any other one dials again."""


CLOSE_CODES: Final[Mapping[int, CloseReaction]] = MappingProxyType(
    {
        CloseCode.NORMAL: CloseReaction(meaning="closed", reaction="reconnect"),
        CloseCode.GOING_AWAY: CloseReaction(meaning="going away", reaction="reconnect"),
        CloseCode.NOT_TEXT: CloseReaction(meaning="a binary frame", reaction="reconnect"),
        CloseCode.TOO_BIG: CloseReaction(meaning="a frame is too big", reaction="reconnect"),
        CloseCode.HOST_FAILED: CloseReaction(meaning="the host failed", reaction="reconnect"),
        CloseCode.RESTARTING: CloseReaction(meaning="the host restarts", reaction="reconnect"),
        CloseCode.OVERLOADED: CloseReaction(
            meaning="the host is overloaded, or the VM reads too slowly", reaction="reconnect"
        ),
        CloseCode.UNAUTHORIZED: CloseReaction(
            meaning="the token, the ticket or the user is wrong", reaction="final"
        ),
        CloseCode.NO_VM: CloseReaction(meaning="no active VM row", reaction="final"),
        CloseCode.NO_USER: CloseReaction(meaning="the user is unknown", reaction="final"),
        CloseCode.SILENT: CloseReaction(meaning="silence", reaction="reconnect"),
        CloseCode.SUPERSEDED: CloseReaction(
            meaning="superseded by another link", reaction="final", only_because=OTHER_INSTANCE
        ),
        CloseCode.TOO_MANY: CloseReaction(meaning="rate limit", reaction="reconnect"),
        CloseCode.MALFORMED: CloseReaction(meaning="malformed frames", reaction="reconnect"),
        CloseCode.INTERNAL: CloseReaction(meaning="the host failed", reaction="reconnect"),
    }
)
"""What each close code means; the table of protocol section 2."""


def reaction_to(code: int, reason: str) -> Reaction:
    """Return what a VM does after a close that it did not ask for.

    Args:
        code: The close code; one that nobody knows means to dial again.
        reason: What the host said with it.
    """
    known = CLOSE_CODES.get(code)
    if known is None or (known.only_because is not None and reason != known.only_because):
        return "reconnect"
    return known.reaction


MALFORMED_LIMIT: Final = 5
"""How many malformed frames in :data:`MALFORMED_WINDOW` end a link."""

MALFORMED_WINDOW: Final = 60.0
"""How long a malformed frame counts, in seconds."""


@final
class MalformedCounter:
    """Counts the malformed frames of one link; each is answered until there are too many.

    Args:
        limit: How many within *window* are too many.
        window: How long each counts, in seconds.
    """

    def __init__(self, limit: int = MALFORMED_LIMIT, window: float = MALFORMED_WINDOW) -> None:
        self._window = window
        self._newest: deque[float] = deque(maxlen=limit)

    def count(self, now: float) -> bool:
        """Count one, and return whether the link has to be closed.

        Args:
            now: The current time in seconds, on any clock that does not jump.
        """
        self._newest.append(now)
        is_full = len(self._newest) == self._newest.maxlen
        return is_full and now - self._newest[0] < self._window
