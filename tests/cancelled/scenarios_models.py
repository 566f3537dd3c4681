"""The real OpenAI SDK over sockets in memory, to be cancelled at every step."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import certifi
import trio
from conversations import look_at_state, opened, read_back
from memory_sockets import MemorySockets
from trials import Case, Trial

from semibot.adapters import GraphAgent
from semibot.config import Deadlines
from semibot.models import Delta, Model, ModelRequest, Reply, openai_model
from semibot.models.retry import stream_reply
from semibot.testing import cut_here, simulated_ports
from semibot.testing.model_answers import (
    Answer,
    Cut,
    Finish,
    Hang,
    Pause,
    Refusal,
    Text,
    call_tools,
    say,
)
from semibot.testing.model_server import open_model_server
from semibot.tools import tool
from semibot.tools.ledger import Ledger
from semibot.wire.chat import Message

HELLO: Final = ModelRequest(messages=(Message(role="user", content="Hello"),))

AGAIN: Final = 120.0
"""Three attempts, and what the server takes with its answer."""


@cache
def one_certificate() -> str:
    """Return an authority to trust; reading all of them takes longer than a whole run."""
    end = "-----END CERTIFICATE-----\n"
    text, separator, _ = Path(certifi.where()).read_text().partition(end)
    return text + separator


@asynccontextmanager
async def served(trial: Trial, *behaviours: Answer | Refusal) -> AsyncGenerator[Any]:
    """Serve answers in memory; yield the ports of a client."""
    sockets = MemorySockets()
    trial.parts["sockets"] = sockets
    trio.socket.set_custom_socket_factory(sockets)
    authority = trial.directory / "authority.pem"
    authority.write_text(one_certificate())
    async with open_model_server(behaviours) as server:
        environment = {
            "OPENAI_API_KEY": "sk-secret",
            "OPENAI_BASE_URL": server.base_url,
            "SSL_CERT_FILE": str(authority),
        }
        yield simulated_ports(environment=environment)


def model_of(ports: Any) -> Any:
    return openai_model("m")(ports, Deadlines())


async def ask(model: Model, deltas: list[Delta] | None = None) -> Reply:
    """Ask as an agent does, again if that may help."""

    async def note(delta: Delta) -> None:
        if deltas is not None:
            deltas.append(delta)
        await trio.lowlevel.checkpoint()

    return await stream_reply(
        model, HELLO, note, ledger=Ledger(), call_id="c", source=random.Random(1)
    )


def look(trial: Trial) -> str | None:
    """Look for sockets that nobody closed."""
    sockets: Any = trial.parts.get("sockets")
    left = len(sockets.open) if sockets else 0
    return f"{left} sockets are open" if left else look_at_state(trial)


# --- scenarios ------------------------------------------------------------------------


async def read_to_the_end(trial: Trial) -> None:
    async with served(trial, say("Hi ", "there", delay=0.1)) as ports:
        with cut_here():
            async with model_of(ports) as model:
                await ask(model)


async def wait_for_the_head(trial: Trial) -> None:
    late = Answer(before=(Pause(5),), steps=say("Hi").steps)
    async with served(trial, late, late, late) as ports:
        with cut_here():
            async with model_of(ports) as model:
                await ask(model)


async def stop_in_the_middle(trial: Trial) -> None:
    hanging = Answer(steps=(Text("Hi "), Hang()))
    async with served(trial, hanging, say("Hi")) as ports:
        with cut_here():
            async with model_of(ports) as model:
                with trio.move_on_after(3):
                    await ask(model)
                with trio.move_on_after(3):
                    await ask(model)


async def try_again(trial: Trial) -> None:
    busy = Refusal(status=429, error={"message": "busy"}, headers={"retry-after": "2"})
    cut = Answer(steps=(Cut(),))
    async with served(trial, busy, cut, say("Hi"), say("Hi"), say("Hi")) as ports:
        with cut_here():
            async with model_of(ports) as model:
                await ask(model)


async def leave_early(trial: Trial) -> None:
    answer = Answer(steps=(*(Text(f"{n} ") for n in range(20)), Finish(), Hang()))
    async with served(trial, answer) as ports:
        with cut_here():
            async with model_of(ports) as model, model.stream(HELLO) as stream:
                await anext(stream)


async def ask_twice_at_once(trial: Trial) -> None:
    async with served(trial, *[say("Hi", delay=0.1)] * 4) as ports:
        with cut_here():
            async with model_of(ports) as model, trio.open_nursery() as nursery:
                nursery.start_soon(ask, model)
                nursery.start_soon(ask, model)


async def drive_an_agent(trial: Trial) -> None:
    @tool
    async def weather(city: str) -> str:
        """Tell the weather."""
        await trio.sleep(1)
        return f"rain in {city}"

    calls = call_tools(("weather", {"city": "Oslo"}))
    async with served(trial, calls, say("It rains.")) as ports:
        agent = GraphAgent(openai_model("m"), tools=[weather], has_builtin_tools=False)
        with cut_here():
            async with opened(trial, agent, ports=ports) as session:
                async with session.run("Umbrella?") as run:
                    await run.wait()
        await read_back(trial)


CASES: Final = tuple(
    Case(
        name=f"model stream: {name}",
        act=act,
        look=look,
        within=0.0,
        because="nothing to wait for",
        errors_within=AGAIN,
    )
    for name, act in (
        ("read to its end", read_to_the_end),
        ("the head of the answer is late", wait_for_the_head),
        ("stopped in the middle, and asked again", stop_in_the_middle),
        ("refused, cut, and tried again", try_again),
        ("left early", leave_early),
        ("two requests at once", ask_twice_at_once),
        ("an agent asks, calls a tool and answers", drive_an_agent),
    )
)
