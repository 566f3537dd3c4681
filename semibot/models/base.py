"""What a language model is to semibot: a scope that answers requests with streams.

A provider is a file or folder with a :class:`Model` and a factory for it. Foreign
exceptions stop there: a model raises :exc:`~semibot.errors.ModelError`,
:exc:`~semibot.errors.ModelNotConfigured` and the named
:exc:`~semibot.errors.DeadlineExceeded`, nothing else. A model makes each request once;
retries are ``models/retry.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias

import attrs

from semibot.config import Deadlines
from semibot.ports import Ports
from semibot.wire.chat import Message, ToolSpec
from semibot.wire.events import Usage

ToolChoice: TypeAlias = Literal["auto", "none"]
"""Whether the model may call tools in its next reply."""


@attrs.frozen(kw_only=True)
class ModelRequest:
    """One request: the whole conversation and the tools on offer."""

    messages: tuple[Message, ...]
    """The conversation, system message first, repaired (see ``models/history.py``)."""
    tools: tuple[ToolSpec, ...] = ()
    """Tools that the model may call."""
    tool_choice: ToolChoice = "auto"
    """``none`` asks for an answer in words although tools are listed."""
    temperature: float | None = None
    """Sampling temperature, 0 to 2; None leaves it to the provider."""
    max_tokens: int | None = None
    """Most tokens of the reply; None leaves it to the provider."""


@attrs.frozen(kw_only=True)
class TextDelta:
    """A piece of the reply's text."""

    text: str
    """Text to append; never empty."""


@attrs.frozen(kw_only=True)
class ReasoningDelta:
    """A piece of the model's reasoning, from providers that show it."""

    text: str
    """Text to append; never empty."""


@attrs.frozen(kw_only=True)
class Reply:
    """The end of a stream: the reply as a whole. Always the last item, exactly once."""

    message: Message
    """The assistant's message: all text, and the tool calls it asks for."""
    usage: Usage
    """Tokens spent; zero if the provider does not say."""
    finish_reason: str | None = None
    """Why the model stopped: ``stop``, ``tool_calls``, ``length`` or the provider's word."""


Delta: TypeAlias = TextDelta | ReasoningDelta
"""A piece of a reply that is still coming in."""

StreamItem: TypeAlias = Delta | Reply
"""What a model stream yields."""


class ModelStream(Protocol):
    """A reply as it comes in: an async iterator that ends after its :class:`Reply`."""

    def __aiter__(self) -> ModelStream: ...

    async def __anext__(self) -> StreamItem:
        """Return the next item.

        Raises:
            ModelError: If the provider broke off, or said what cannot be understood.
            DeadlineExceeded: ``model.response`` or ``model.idle`` if nothing came for
                that long. The time that the caller spends between two calls of this
                method does not count.
            StopAsyncIteration: After the :class:`Reply`.
        """
        ...


class Model(Protocol):
    """An open model. Several streams may be open at once."""

    @property
    def name(self) -> str:
        """Name for people, usage reports and receipts, such as ``openai:gpt-5``."""
        ...

    def stream(self, request: ModelRequest) -> AbstractAsyncContextManager[ModelStream]:
        """Send *request*; leaving the block closes the connection at once.

        Raises:
            ModelNotConfigured: If a key or name is missing; the message says what to set.
            ModelError: If the provider refused or could not be reached.
            DeadlineExceeded: ``model.response`` if no answer began in time.
        """
        ...


ModelFactory: TypeAlias = Callable[[Ports, Deadlines], AbstractAsyncContextManager[Model]]
"""Opens a model for the length of a session. Opening does no I/O and needs no key."""
