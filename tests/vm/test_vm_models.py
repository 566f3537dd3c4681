"""Which model answers on a VM, and with whose key."""

from __future__ import annotations

import pytest

from semibot.config import Deadlines
from semibot.errors import UsageError
from semibot.models import Say, scripted_model
from semibot.models.openai import OpenAIModel, read_settings
from semibot.secret import Secret
from semibot.testing import simulated_ports
from semibot.vm import PlaneModels
from semibot.wire.frames import ProviderSettings
from semibot.wire.plane import PlaneSettings

KEY = Secret("sk-of-the-host")


def told(**fields: object) -> PlaneSettings:
    return PlaneSettings(user_id="u", org_id="o", **fields)  # type: ignore[arg-type]


def provider(**fields: str) -> dict[str, ProviderSettings]:
    return {"openai": ProviderSettings(**fields)}


async def name_of(models: PlaneModels, spec: str | None, **environment: str) -> str:
    factory = models.resolve(spec)
    async with factory(simulated_ports(environment=environment), Deadlines()) as model:
        return model.name


@pytest.mark.parametrize(
    ("default", "settings", "spec", "environment", "name"),
    [
        (None, None, None, {}, "demonstration"),
        (None, None, "gpt-4o", {}, "demonstration"),
        (None, told(), "gpt-4o", {"OPENAI_API_KEY": "k"}, "openai:gpt-4o"),
        (None, told(api_keys={"openai": KEY}), "gpt-4o", {}, "openai:gpt-4o"),
        (None, told(api_keys={"openai": KEY}), None, {}, "openai:gpt-5"),
        (None, told(api_keys={"openai": Secret("")}), None, {}, "demonstration"),
        (None, told(api_keys={"anthropic": KEY}), None, {}, "demonstration"),
        ("openai:gpt-x", told(api_keys={"openai": KEY}), None, {}, "openai:gpt-x"),
        ("odd:gpt-x", told(api_keys={"openai": KEY}), None, {}, "openai:odd:gpt-x"),
        ("gpt-x", told(api_keys={"openai": KEY}), "gpt-y", {}, "openai:gpt-y"),
        ("demo", told(api_keys={"openai": KEY}), None, {}, "demonstration"),
        (None, told(api_keys={"openai": KEY}), "demo", {}, "demonstration"),
        (
            None,
            told(providers=provider(base_url="http://h/v1", default_model="llama")),
            None,
            {},
            "openai:llama",
        ),
    ],
)
async def test_the_model_that_answers(
    default: str | None,
    settings: PlaneSettings | None,
    spec: str | None,
    environment: dict[str, str],
    name: str,
) -> None:
    models = PlaneModels(default)
    if settings is not None:
        models.configure(settings)
    assert await name_of(models, spec, **environment) == name


def test_a_provider_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError):
        PlaneModels().resolve("nobody:model")


async def test_a_factory_is_taken_as_it_is() -> None:
    script = scripted_model([Say("x")])
    assert PlaneModels().resolve(script) is script


@pytest.mark.parametrize(
    ("settings", "key", "base_url"),
    [
        (told(api_keys={"openai": KEY}), KEY, "http://env/v1"),
        (
            told(providers=provider(base_url="http://host/v1")),
            Secret("no-key-needed"),
            "http://host/v1",
        ),
        (told(), Secret("sk-of-the-vm"), "http://env/v1"),
    ],
)
async def test_a_key_goes_only_where_it_belongs(
    settings: PlaneSettings, key: Secret, base_url: str
) -> None:
    environment = {"OPENAI_API_KEY": "sk-of-the-vm", "OPENAI_BASE_URL": "http://env/v1"}
    models = PlaneModels()
    models.configure(settings)
    async with models.resolve(None)(simulated_ports(environment=environment), Deadlines()) as model:
        assert isinstance(model, OpenAIModel)
        found = read_settings("m", environment, api_key=model._api_key, base_url=model._base_url)
        assert "sk-of" not in repr(model)
    assert (found.api_key, found.base_url) == (key, base_url)
