"""What runs in a simulation is semibot as it is in production, but for its ports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Final

import attrs

import semibot
from semibot.ports import Ports
from semibot.session import ActiveRun
from semibot.testing import adapter_from, simulate
from semibot.testing.simulation import lives, planes
from semibot.wire.events import TextChunk

ROOM: Final = Path(lives.__file__).parent


def _modules() -> dict[str, ModuleType]:
    return {
        name: module
        for name, module in sorted(sys.modules.items())
        if (name == "semibot" or name.startswith("semibot."))
        and not name.startswith("semibot.testing")
    }


def _code() -> dict[str, object]:
    """Return every function and class attribute of semibot, by name."""
    found: dict[str, object] = {}
    for name, module in _modules().items():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = value
            if isinstance(value, type) and value.__module__ == name:
                found |= {f"{name}.{key}.{each}": what for each, what in vars(value).items()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, type | FunctionType | classmethod | staticmethod | property)
    }


def test_nothing_of_semibot_is_replaced_while_a_simulation_runs() -> None:
    simulate(1, minutes=0.02, faults=[])  # imports what it needs
    before = _code()
    during: list[dict[str, object]] = []

    async def look(run: ActiveRun) -> None:
        if not during:
            during.append(_code())
        await run.emit(TextChunk(content="seen"))
        await run.complete()

    simulate(1, minutes=0.05, adapter=adapter_from(look))
    assert len(before) > 2000
    (seen,) = during
    replaced = [name for name in before if seen[name] is not before[name]]
    assert not replaced


def test_every_port_but_what_a_process_starts_with_is_simulated() -> None:
    """A port that is added has to be simulated too, or else a simulation is no proof."""
    source = ast.parse((ROOM / "lives.py").read_text())
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    (evolved,) = (call for call in calls if ast.unparse(call.func) == "attrs.evolve")
    own = {word.arg for word in evolved.keywords}
    given = {"random", "ids", "spawn", "environment", "is_simulated"}  # by simulated_ports()
    assert own | given == {field.name for field in attrs.fields(Ports)}


def _called(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node


def test_processes_are_made_by_the_public_functions_and_get_nothing_but_ports() -> None:
    """No object of a plane is reached into, so none can be wrapped."""
    given = {
        ast.unparse(call.func): {word.arg for word in call.keywords}
        for call in _called(Path(planes.__file__))
        if ast.unparse(call.func).startswith("open_")
    }
    assert given["open_host"] == {"ports"}
    assert given["open_server"] == {"deadlines", "ports"}
    assert given["open_control_channel"] == {"user_id", "token", "ticket", "state_dir", "ports"}
    assert given["open_session_manager"] == {
        "adapters", "workspace", "state_dir", "max_open", "ports",
    }  # fmt: skip


def test_the_room_replaces_no_attribute_of_anything_it_did_not_make() -> None:
    for path in sorted(ROOM.glob("*.py")):
        names = {ast.unparse(call.func) for call in _called(path)}
        assert not names & {"setattr", "unittest.mock.patch", "patch"}, path


def test_the_simulation_comes_with_the_library() -> None:
    assert ROOM.is_relative_to(Path(semibot.__file__).parent)
