from __future__ import annotations

import subprocess
import sys

import pytest

from semibot.config import Deadlines
from semibot.errors import UsageError
from semibot.models import PROVIDERS, ModelFactory, Say, resolve_model, scripted_model
from semibot.testing import simulated_ports


async def name_of(factory: ModelFactory, **environment: str) -> str:
    async with factory(simulated_ports(environment=environment), Deadlines()) as model:
        return model.name


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("openai:gpt-4.1", "openai:gpt-4.1"),
        ("openai:llama3:8b", "openai:llama3:8b"),
        ("gpt-4.1", "openai:gpt-4.1"),
        (" gpt-4.1 ", "openai:gpt-4.1"),
        ("openai", "openai:gpt-5"),
        ("openai:", "openai:gpt-5"),
        ("", "openai:gpt-5"),
        ("demo", "demonstration"),
        ("scripted", "openai:scripted"),
        ("demo:anything", "demonstration"),
    ],
)
async def test_a_spec_names_a_provider_and_a_model(spec: str, name: str) -> None:
    assert await name_of(resolve_model(spec)) == name


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "demonstration"),
        ({"OPENAI_API_KEY": " "}, "demonstration"),
        ({"OPENAI_API_KEY": "k"}, "openai:gpt-5"),
        ({"OPENAI_BASE_URL": "http://localhost/v1"}, "openai:gpt-5"),
        ({"OPENAI_API_KEY": "k", "SEMIBOT_MODEL": "m"}, "openai:m"),
        ({"OPENAI_API_KEY": "k", "SEMIBOT_MODEL": "openai:m"}, "openai:m"),
        ({"OPENAI_API_KEY": "k", "SEMIBOT_MODEL": "llama3:8b"}, "openai:llama3:8b"),
        ({"OPENAI_API_KEY": "k", "SEMIBOT_MODEL": "demo"}, "demonstration"),
        ({"SEMIBOT_MODEL": "m"}, "demonstration"),
    ],
)
async def test_without_a_spec_the_environment_decides(
    environment: dict[str, str], name: str
) -> None:
    assert await name_of(resolve_model(None), **environment) == name


async def test_a_default_model_comes_from_the_environment() -> None:
    assert await name_of(resolve_model("openai"), SEMIBOT_MODEL="m") == "openai:m"
    assert await name_of(resolve_model("openai:n"), SEMIBOT_MODEL="m") == "openai:n"


def test_a_factory_is_returned_as_it_is() -> None:
    script = scripted_model([Say("x")])
    assert resolve_model(script) is script


def test_an_unknown_provider_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_model("anthropic:claude")
    for provider in PROVIDERS:
        assert provider in str(caught.value)
    assert "openai:anthropic:claude" in str(caught.value)


def test_importing_the_models_does_not_import_the_sdk() -> None:
    code = "import sys, semibot.models; print({'openai', 'httpx2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
