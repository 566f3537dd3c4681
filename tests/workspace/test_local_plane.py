"""What is answered where there is no control plane."""

from __future__ import annotations

from pathlib import Path

import pytest

from semibot.errors import RequestFailed
from semibot.live import live_ports
from semibot.session import ControlPlane
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject, JsonValue
from semibot.workspace.local_plane import LocalControlPlane
from semibot.workspace.memory import ShortTermMemory
from semibot.workspace.skills import Skill, read_skills

WHEN = "2026-01-02T03:04:05+00:00"


def plane(tmp_path: Path, *said: str, skills: tuple[Skill, ...] = ()) -> LocalControlPlane:
    memory = ShortTermMemory(tmp_path / "memory.md")
    memory.append(tuple(Message(role="assistant", content=text) for text in said), WHEN, 0)
    return LocalControlPlane(memory, skills, live_ports().threads)


async def ask(plane: ControlPlane, method: str, **params: JsonValue) -> JsonObject:
    answer = await plane.request("s", method, params)
    assert isinstance(answer, dict)
    return answer


async def test_memories_come_best_first_with_real_scores(tmp_path: Path) -> None:
    memory = plane(tmp_path, "the blue whale", "a blue car", "nothing")
    assert await ask(memory, "memory_search", query="blue whale") == {
        "results": [
            {
                "content": "the blue whale",
                "score": 1.0,
                "metadata": {"role": "assistant", "created_at": WHEN},
            },
            {
                "content": "a blue car",
                "score": 0.5,
                "metadata": {"role": "assistant", "created_at": WHEN},
            },
        ]
    }


@pytest.mark.parametrize(("top_k", "count"), [({}, 5), ({"top_k": 1}, 1), ({"top_k": 20}, 20)])
async def test_top_k_bounds_the_memories(
    tmp_path: Path, top_k: dict[str, JsonValue], count: int
) -> None:
    memory = plane(tmp_path, *(f"word {n}" for n in range(30)))
    answer = await ask(memory, "memory_search", query="word", **top_k)
    results = answer["results"]
    assert isinstance(results, list)
    assert len(results) == count


async def test_a_blank_query_finds_nothing(tmp_path: Path) -> None:
    assert await ask(plane(tmp_path, "word"), "memory_search", query=" ") == {"results": []}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("memory_search", {}),
        ("memory_search", {"query": 5}),
        ("memory_search", {"query": "a", "top_k": 0}),
        ("memory_search", {"query": "a", "top_k": 21}),
        ("memory_search", {"query": "a", "top_k": True}),
        ("memory_search", {"query": "a", "top_k": "5"}),
        ("memory_search", {"query": "a", "top_k": None}),
        ("get_skill_package", {}),
        ("get_skill_package", {"skill_id": ["a"]}),
        ("get_skill_package", {"skill_id": "a", "version": 1}),
    ],
)
async def test_bad_params_are_refused(tmp_path: Path, method: str, params: JsonObject) -> None:
    with pytest.raises(RequestFailed) as caught:
        await plane(tmp_path, "a").request("s", method, params)
    assert caught.value.code == "BAD_PARAMS"


@pytest.mark.parametrize("method", ["mcp_call", "get_config", "get_session", ""])
async def test_other_methods_need_a_control_plane(tmp_path: Path, method: str) -> None:
    with pytest.raises(RequestFailed, match="needs a control plane") as caught:
        await plane(tmp_path).request("s", method, {})
    assert caught.value.code == "UNSUPPORTED_METHOD"


async def test_a_memory_that_cannot_be_read_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "memory.md").mkdir()
    memory = LocalControlPlane(ShortTermMemory(tmp_path / "memory.md"), (), live_ports().threads)
    with pytest.raises(RequestFailed) as caught:
        await memory.request("s", "memory_search", {"query": "a"})
    assert caught.value.code == "REQUEST_FAILED"


@pytest.mark.parametrize(
    "version", [{}, {"version": None}, {"version": "latest"}, {"version": "3"}]
)
async def test_a_skill_is_handed_out_with_its_files(
    tmp_path: Path, version: dict[str, JsonValue]
) -> None:
    kit = tmp_path / "skills" / "kit"
    kit.mkdir(parents=True)
    (kit / "SKILL.md").write_text("# s")
    (kit / "manifest.json").write_text('{"version": "3"}')
    local = plane(tmp_path, skills=read_skills(tmp_path / "skills"))
    answer = await ask(local, "get_skill_package", skill_id="kit", **version)
    package = answer["package"]
    assert isinstance(package, dict)
    assert (package["skill_id"], package["version"]) == ("kit", "3")
    assert {"path": "SKILL.md", "content": "# s", "encoding": "utf-8"} in package["files"]
    other = await ask(local, "get_skill_package", skill_id="kit", version="2")
    assert other == {"package": None}
    assert await ask(local, "get_skill_package", skill_id="moon") == {"package": None}


async def test_a_report_is_logged_without_its_contents(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "semibot")
    await plane(tmp_path).fire_and_forget("s", "audit_log", {"event": "secret"})
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.semibot == {
        "event": "report without a control plane",
        "session_id": "s",
        "method": "audit_log",
    }
