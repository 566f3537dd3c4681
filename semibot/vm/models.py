"""Find the model of an agent on a VM: with the host's keys, the environment's, or none."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Final, final

from semibot.config import Deadlines
from semibot.logs import get_logger
from semibot.models import (
    PROVIDERS,
    Model,
    ModelFactory,
    demonstration_model,
    openai_model,
    resolve_model,
)
from semibot.models.registry import is_configured, parse_leniently, parse_spec
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.wire.plane import PlaneSettings

log: Final = get_logger(__name__)

_OPENAI: Final = "openai"
_NO_KEY: Final = Secret("no-key-needed")


@final
class PlaneModels:
    """The models of a VM.

    A host's key and address come before those of the environment, and a key is used only
    with the address that it came with. Without either, whatever model an agent names, the
    demonstration answers and says what it is.

    Args:
        default: Model for agents that name none, as in ``SEMIBOT_MODEL``.
    """

    def __init__(self, default: str | None = None) -> None:
        self._default = default
        self._settings: PlaneSettings | None = None

    def configure(self, settings: PlaneSettings) -> None:
        """Take what the host said; models that are opened from now on use it."""
        self._settings = settings

    def resolve(self, spec: str | ModelFactory | None) -> ModelFactory:
        """Return the factory that *spec* means here; it is decided when it is opened.

        Args:
            spec: See :func:`semibot.models.resolve_model`.

        Raises:
            UsageError: If there is no such provider.
        """
        if spec is not None and not isinstance(spec, str):
            return spec
        resolve_model(spec)  # refuses what nobody provides

        @asynccontextmanager
        async def open_model(ports: Ports, deadlines: Deadlines) -> AsyncGenerator[Model]:
            factory = self._choose(spec, ports.environment)
            async with factory(ports, deadlines) as model:
                yield model

        return open_model

    def _choose(self, spec: str | None, environment: Mapping[str, str]) -> ModelFactory:
        if spec is not None:
            provider, name = parse_spec(spec)
        elif self._default:
            provider, name = parse_leniently(self._default)
        else:
            provider, name = _OPENAI, None
        if provider != _OPENAI:
            return PROVIDERS[provider].make(name)
        key, base_url, default = self._told()
        if key is None and base_url is None and not is_configured(PROVIDERS[_OPENAI], environment):
            log.warning("no key for a model; the demonstration answers", model=name)
            return demonstration_model()
        if base_url is not None and key is None:
            key = _NO_KEY  # the environment's is not meant for it
        return openai_model(name or default, api_key=key, base_url=base_url)

    def _told(self) -> tuple[Secret | None, str | None, str | None]:
        """Return the host's key, address and default model."""
        settings = self._settings
        if settings is None:
            return None, None, None
        told = settings.providers.get(_OPENAI)
        return (
            settings.api_keys.get(_OPENAI) or None,
            None if told is None else told.base_url,
            None if told is None else told.default_model,
        )
