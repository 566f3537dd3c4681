"""The provider ``openai``: OpenAI, and any server with the same chat-completions API.

``settings.py`` says where to ask and as whom, and ``client.py`` asks. The SDK costs
half a second to import, so it is imported by the first request and not before: a program
that only prints its help, or runs a scripted model, never pays for it. The import and the
making of the client, which reads certificates, run in a worker thread, so that the other
sessions of the loop go on meanwhile; a cancelled request leaves the thread to finish,
which does no harm, because an unused client has no connections.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.lifetimes import grace
from semibot.models.base import Model, ModelFactory, ModelRequest, ModelStream
from semibot.models.openai.settings import DEFAULT_MODEL, PREFIX, read_settings
from semibot.ports import Ports
from semibot.secret import Secret

if TYPE_CHECKING:
    from semibot.models.openai.client import OpenAIClient


def openai_model(
    name: str | None = None, *, api_key: Secret | None = None, base_url: str | None = None
) -> ModelFactory:
    """Return a factory for a model of OpenAI or of a compatible server.

    The environment of the program (:attr:`semibot.ports.Ports.environment`) says the
    rest: ``OPENAI_API_KEY``; ``OPENAI_BASE_URL``, which makes the key optional;
    ``OPENAI_ORG_ID`` and ``OPENAI_PROJECT_ID``; ``HTTPS_PROXY``, ``HTTP_PROXY``,
    ``ALL_PROXY`` and ``NO_PROXY``; ``SSL_CERT_FILE``. Nothing else is read, least of all
    by the SDK. Opening the model reads no network and needs no key; without one, its
    first request raises :exc:`~semibot.errors.ModelNotConfigured`.

    Args:
        name: The provider's name of the model; None takes ``SEMIBOT_MODEL``, and
            :data:`DEFAULT_MODEL` if that is not set either.
        api_key: Used instead of ``OPENAI_API_KEY``.
        base_url: Used instead of ``OPENAI_BASE_URL``.

    Returns:
        The factory. Leaving the model's block closes its connections; exit waits for
        that within ``session_adapter_stop``.
    """

    @asynccontextmanager
    async def open_model(ports: Ports, deadlines: Deadlines) -> AsyncGenerator[Model]:
        chosen = name or ports.environment.get("SEMIBOT_MODEL", "").strip() or DEFAULT_MODEL
        model = OpenAIModel(chosen.removeprefix(PREFIX), ports, deadlines, api_key, base_url)
        try:
            yield model
        finally:
            with grace("session.adapter_stop", deadlines.session_adapter_stop):
                await model.aclose()

    return open_model


@final
@attrs.define(eq=False)
class OpenAIModel:
    """An open model. Made by the factory that :func:`openai_model` returns."""

    _model: str
    _ports: Ports
    _deadlines: Deadlines
    _api_key: Secret | None = attrs.field(default=None, repr=False)
    _base_url: str | None = attrs.field(default=None, repr=False)
    _client: OpenAIClient | None = attrs.field(default=None, init=False)
    _making: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _is_closed: bool = attrs.field(default=False, init=False)

    @property
    def name(self) -> str:
        """The model with its provider, such as ``openai:gpt-5``."""
        return PREFIX + self._model

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelStream]:
        """Send *request*; see :class:`semibot.models.Model`."""
        client = await self._connect()
        async with client.stream(request) as stream:
            yield stream

    async def _connect(self) -> OpenAIClient:
        async with self._making:
            if self._client is None and not self._is_closed:
                self._client = await self._ports.threads.run_sync(
                    self._make_client, limiter="files", abandon_on_cancel=True
                )
        if self._client is None or self._is_closed:
            raise trio.ClosedResourceError("this model is closed")
        return self._client

    def _make_client(self) -> OpenAIClient:
        settings = read_settings(
            self._model, self._ports.environment, api_key=self._api_key, base_url=self._base_url
        )
        from semibot.models.openai.client import OpenAIClient

        return OpenAIClient(settings, self._ports, self._deadlines)

    async def aclose(self) -> None:
        """Close all connections; only the factory's block calls this."""
        self._is_closed = True
        if self._client is not None:
            await self._client.aclose()
