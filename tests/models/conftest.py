from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from semibot.config import Deadlines
from semibot.models import Model, openai_model
from semibot.testing import simulated_ports

OpenModel = Callable[..., AbstractAsyncContextManager[Model]]


@pytest.fixture
def open_openai() -> OpenModel:
    """Open the real ``openai`` model on a base URL, with no other environment."""

    @asynccontextmanager
    async def open_model(
        base_url: str, deadlines: Deadlines | None = None, **environment: str
    ) -> AsyncGenerator[Model]:
        settings = {"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": base_url, **environment}
        ports = simulated_ports(environment=settings)
        async with openai_model("m")(ports, deadlines or Deadlines()) as model:
            yield model

    return open_model
