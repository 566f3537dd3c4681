"""Choose a model by what people write: ``openai:gpt-5``, ``demo``, or nothing at all.

Another provider is one new file or folder, and one line in :data:`PROVIDERS`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

import attrs

from semibot.config import Deadlines
from semibot.errors import UsageError
from semibot.models.base import Model, ModelFactory
from semibot.models.demonstration import demonstration_model
from semibot.models.openai import openai_model
from semibot.ports import Ports


@attrs.frozen
class Provider:
    """Where models come from."""

    make: Callable[[str | None], ModelFactory]
    """Returns the factory for a model by the provider's name of it; None is its default."""
    variables: tuple[str, ...] = ()
    """Environment variables of which one is enough to prefer this provider."""


PROVIDERS: Final[Mapping[str, Provider]] = MappingProxyType(
    {
        "openai": Provider(openai_model, ("OPENAI_API_KEY", "OPENAI_BASE_URL")),
        "demo": Provider(lambda _: demonstration_model()),
    }
)
"""Every provider by its name. The first that the environment configures is the default."""

BARE_NAME_PROVIDER: Final = "openai"
"""Whose model a name without a provider is."""


def resolve_model(spec: str | ModelFactory | None) -> ModelFactory:
    """Return the model factory that *spec* means.

    Args:
        spec: A factory, which is returned as it is; ``provider:name``; a provider alone,
            for its default model; a name alone, for OpenAI's; or None. None is decided
            when the model is opened: ``SEMIBOT_MODEL`` if its provider is configured,
            else the first provider that the environment configures, else the
            demonstration.

    Raises:
        UsageError: If there is no such provider; the message names those there are.
    """
    if spec is None:
        return _open_by_environment
    if not isinstance(spec, str):
        return spec
    provider, name = parse_spec(spec)
    return PROVIDERS[provider].make(name)


@asynccontextmanager
async def _open_by_environment(ports: Ports, deadlines: Deadlines) -> AsyncGenerator[Model]:
    factory = _choose(ports.environment)
    async with factory(ports, deadlines) as model:
        yield model


def _choose(environment: Mapping[str, str]) -> ModelFactory:
    wanted = environment.get("SEMIBOT_MODEL", "").strip()
    if wanted:
        key, name = parse_leniently(wanted)
        if is_configured(PROVIDERS[key], environment):
            return PROVIDERS[key].make(name)
    for provider in PROVIDERS.values():
        if provider.variables and is_configured(provider, environment):
            return provider.make(None)
    return demonstration_model()


def is_configured(provider: Provider, environment: Mapping[str, str]) -> bool:
    """Return whether *environment* has what a provider needs."""
    return not provider.variables or any(
        environment.get(variable, "").strip() for variable in provider.variables
    )


def parse_leniently(spec: str) -> tuple[str, str | None]:
    """Split ``provider:name`` of ``SEMIBOT_MODEL``; an unknown provider is part of the name."""
    # A variable that is set once for several programs may hold just a name with a colon.
    is_known = spec.partition(":")[0] in PROVIDERS
    return parse_spec(spec if is_known else f"{BARE_NAME_PROVIDER}:{spec}")


def parse_spec(spec: str) -> tuple[str, str | None]:
    """Split ``provider:name``; the name may have colons in it, as ``llama3:8b`` has.

    Raises:
        UsageError: If there is no such provider.
    """
    provider, colon, name = spec.strip().partition(":")
    if not colon:
        return (provider, None) if provider in PROVIDERS else (BARE_NAME_PROVIDER, provider)
    if provider not in PROVIDERS:
        known = ", ".join(PROVIDERS)
        raise UsageError(
            f"there is no model provider {provider!r}; there are {known}. "
            f"For a model whose name has a colon in it write {BARE_NAME_PROVIDER}:{spec.strip()}"
        )
    return provider, name or None
