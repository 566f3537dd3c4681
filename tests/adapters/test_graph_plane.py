"""What a graph agent asks its control plane for: skill packages and memories."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from semibot.adapters.graph import GraphAgent
from semibot.adapters.graph.skills import MAX_LISTED, MAX_PACKAGES
from semibot.config import Deadlines
from semibot.errors import DeadlineExceeded, RequestFailed
from semibot.models import Call, Say, Script, scripted_model, tool_request
from semibot.session import Run, Session, open_session
from semibot.testing import simulated_ports
from semibot.tools import tool
from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.events import SkillCallComplete, SkillCallStart, ToolCallComplete

KIT: JsonObject = {"id": "kit", "name": "PDF kit", "description": "Split\nPDFs."}


def package(skill_id: str = "kit", **files: str) -> JsonObject:
    listed: list[JsonValue] = [
        {"path": path.replace("__", "/").replace("_", "."), "content": text, "encoding": "utf-8"}
        for path, text in (files or {"SKILL_md": "Use pdftk."}).items()
    ]
    return {"package": {"skill_id": skill_id, "version": "current", "files": listed}}


class Plane:
    """A control plane that answers what a test tells it to, after a while."""

    def __init__(self, answer: Callable[[str, JsonObject], JsonValue]) -> None:
        self.answer = answer
        self.seconds = 1.0
        self.asked: list[tuple[str, str, JsonObject]] = []

    async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
        self.asked.append((session_id, method, params))
        await trio.sleep(self.seconds)
        return self.answer(method, params)

    async def fire_and_forget(self, session_id: str, method: str, params: JsonObject) -> None:
        raise AssertionError("nothing is reported")


@asynccontextmanager
async def opened(
    directory: Path, script: Script, plane: Plane | None, index: JsonValue = None, **options: object
) -> AsyncIterator[Session]:
    async with open_session(
        GraphAgent(script, **options),  # type: ignore[arg-type]
        workspace=directory,
        session_id="s",
        payload={} if index is None else {"skill_index": index},
        control_plane=plane,
        ports=simulated_ports(environment={"PATH": "/usr/bin:/bin", "KEY": "k"}),
        deadlines=Deadlines(tool_limit=20),
    ) as session:
        yield session


async def finish(session: Session, message: str = "go") -> tuple[Run, list[object]]:
    async with session.run(message) as run:
        events: list[object] = [event async for event in run.events]
    return run, events


def results(script: Script, count: int) -> list[str]:
    return [message.content for message in script.requests[-1].messages[-count:]]


def offered(script: Script, number: int = -1) -> set[str]:
    return {spec.name for spec in script.requests[number].tools}


def use(*arguments: dict[str, str]) -> Call:
    return Call([tool_request(f"c{n}", "use_skill", each) for n, each in enumerate(arguments)])


async def test_a_skill_of_the_host_is_fetched_once_and_read_like_a_local_one(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    plane = Plane(lambda *_: package(SKILL_md="Use pdftk.", references__a_md="All of it."))
    both = ({"skill_id": "kit"}, {"skill_id": "kit", "file": "references/a.md"})
    script = scripted_model([use(*both), Say("ok"), use(both[0]), Say("ok")])
    async with opened(tmp_path, script, plane, [KIT]) as session:
        _, events = await finish(session)
        assert results(script, 2) == ["Use pdftk.", "All of it."]
        await finish(session)
        assert results(script, 1) == ["Use pdftk."]
    assert plane.asked == [("s", "get_skill_package", {"skill_id": "kit"})]
    assert "- kit: PDF kit. Split PDFs." in script.requests[0].messages[0].content
    starts = [event for event in events if isinstance(event, SkillCallStart)]
    assert [(event.skill_id, event.skill_name) for event in starts] == [("kit", "PDF kit")] * 2


async def test_what_does_not_fit_here_is_not_offered(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    index: JsonValue = [
        {**KIT, "requires": {"binaries": ["sh"], "env_vars": ["KEY"]}},
        {"id": "moon", "requires": {"binaries": ["no-such-program"]}},
        {"id": "key", "requires": {"env_vars": ["OTHER"]}},
    ]
    plane = Plane(lambda *_: package())
    script = scripted_model([use({"skill_id": "moon"}), Say("ok")])
    async with opened(tmp_path, script, plane, index) as session:
        run, _ = await finish(session)
    prompt = script.requests[0].messages[0].content
    assert "kit" in prompt
    assert "moon" not in prompt
    assert "- key" not in prompt
    assert "no skill 'moon'; there are: kit" in results(script, 1)[0]
    assert (run.outcome, plane.asked) == ("completed", [])


async def test_a_local_skill_hides_the_host_s(autojump_clock: MockClock, tmp_path: Path) -> None:
    directory = tmp_path / ".semibot" / "skills" / "kit"
    directory.mkdir(parents=True)
    (directory / "SKILL.md").write_text("---\nname: Mine\n---\nLocal words.\n")
    plane = Plane(lambda *_: package("other", SKILL_md="From the host."))
    script = scripted_model([use({"skill_id": "kit"}, {"skill_id": "other"}), Say("ok")])
    async with opened(tmp_path, script, plane, [KIT, {"id": "other"}]) as session:
        await finish(session)
    local, remote = results(script, 2)
    assert "Local words." in local
    assert remote == "From the host."
    assert [params["skill_id"] for _, _, params in plane.asked] == ["other"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"package": None}, "does not have kit any more"),
        (None, "makes no sense"),
        ("package", "makes no sense"),
        ({"package": []}, "makes no sense"),
        ({"package": {"skill_id": "kit", "files": "none"}}, "makes no sense"),
        (package("other"), "makes no sense"),
        ({"package": {"files": []}}, "no file 'SKILL.md'; it has: none"),
        (package(other_md="x"), "no file 'SKILL.md'; it has: other.md"),
        (RequestFailed("FORBIDDEN", "not yours"), "does not hand out kit: not yours"),
        (DeadlineExceeded("channel.request", 60), "channel.request"),
    ],
)
async def test_a_package_that_does_not_come_is_said_in_words(
    autojump_clock: MockClock, tmp_path: Path, answer: JsonValue | Exception, words: str
) -> None:
    def reply(method: str, params: JsonObject) -> JsonValue:
        if isinstance(answer, Exception):
            raise answer
        return answer

    script = scripted_model([use({"skill_id": "kit"}), Say("ok")])
    async with opened(tmp_path, script, Plane(reply), [KIT]) as session:
        run, events = await finish(session)
    assert words in results(script, 1)[0]
    (complete,) = [event for event in events if isinstance(event, SkillCallComplete)]
    assert not complete.success
    assert run.outcome == "completed"


async def test_a_host_that_does_not_answer_is_waited_for_as_long_as_for_any_tool(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    plane = Plane(lambda *_: package())
    plane.seconds = 1000
    script = scripted_model(
        [use({"skill_id": "kit"}), Say("ok"), use({"skill_id": "kit"}), Say("")]
    )
    async with opened(tmp_path, script, plane, [KIT]) as session:
        begin = trio.current_time()
        await finish(session)
        assert 20 <= trio.current_time() - begin < 22
        plane.seconds = 0
        await finish(session)
    assert results(script, 1) == ["Use pdftk."]


@pytest.mark.parametrize(
    "index",
    [
        "kit",
        5,
        {"id": "kit"},
        [],
        [None, "kit", 5, [], {}, {"id": 5}, {"id": "../x"}, {"id": ""}, {"id": None}],
    ],
)
async def test_an_odd_index_offers_nothing_and_breaks_nothing(
    autojump_clock: MockClock, tmp_path: Path, index: JsonValue
) -> None:
    script = scripted_model([use({"skill_id": "kit"}), Say("ok")])
    async with opened(tmp_path, script, Plane(lambda *_: package()), index) as session:
        run, _ = await finish(session)
    assert run.outcome == "completed"
    assert "use_skill" not in offered(script)
    assert "Skills" not in script.requests[0].messages[0].content
    assert "there are: none" in results(script, 1)[0]


async def test_odd_fields_of_an_entry_count_as_not_given(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    odd: JsonObject = {"id": "kit", "name": 5, "description": {}, "version": [], "requires": "sh"}
    plane = Plane(lambda *_: package())
    script = scripted_model([use({"skill_id": "kit"}), Say("ok")])
    async with opened(tmp_path, script, plane, [odd, {**KIT, "name": "second"}]) as session:
        await finish(session)
    assert "- kit: kit. " in script.requests[0].messages[0].content
    assert results(script, 1) == ["Use pdftk."]


async def test_the_prompt_stays_small(autojump_clock: MockClock, tmp_path: Path) -> None:
    index: JsonValue = [
        {"id": f"k{n}", "description": "word " * 500} for n in range(MAX_LISTED + 2)
    ]
    script = scripted_model([Say("ok")])
    async with opened(tmp_path, script, Plane(lambda *_: None), index) as session:
        await finish(session)
    prompt = script.requests[0].messages[0].content
    assert len(prompt) < 40_000
    assert f"- more: k{MAX_LISTED}, k{MAX_LISTED + 1}" in prompt


async def test_of_many_packages_the_newest_are_kept(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    ids = [f"k{n}" for n in range(MAX_PACKAGES + 1)]
    plane = Plane(lambda _, params: package(str(params["skill_id"])))
    plane.seconds = 0
    turns = [use({"skill_id": name}) for name in (*ids, ids[-1], ids[0])]
    script = scripted_model([*turns, Say("ok")])
    index: JsonValue = [{"id": name} for name in ids]
    async with opened(tmp_path, script, plane, index, max_iterations=50) as session:
        await finish(session)
    assert [params["skill_id"] for *_, params in plane.asked] == [*ids, ids[0]]


async def test_a_patch_brings_a_new_index_with_its_version(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    plane = Plane(lambda method, params: package(SKILL_md=f"v{params.get('version')}"))
    script = scripted_model([use({"skill_id": "kit"}), Say("ok")] * 2 + [Say("none")])
    async with opened(tmp_path, script, plane, [KIT]) as session:
        await finish(session)
        assert results(script, 1) == ["vNone"]
        session.update_config({"skill_index": [{**KIT, "version": "2"}]})
        await finish(session)
        assert results(script, 1) == ["v2"]
        session.update_config({"skill_index": []})
        await finish(session)
    assert "use_skill" not in offered(script)


async def test_memories_of_the_host_are_searched(autojump_clock: MockClock, tmp_path: Path) -> None:
    hits: list[JsonValue] = [
        {"content": "likes tea", "score": 0.9, "metadata": {"x": 1}},
        {"content": 5},
        "odd",
        {"content": "no score", "score": "high"},
        {"content": "y" * 5000, "score": True},
    ]
    plane = Plane(lambda *_: {"results": hits})
    call = Call(
        [
            tool_request("c1", "search_memory", {"query": "tea"}),
            tool_request("c2", "search_memory", {"query": "tea", "top_k": 99}),
            tool_request("c3", "search_memory", {"query": "  "}),
        ]
    )
    script = scripted_model([call, Say("ok")])
    async with opened(tmp_path, script, plane) as session:
        _, events = await finish(session)
    said = [event for event in events if isinstance(event, ToolCallComplete)]
    completes = sorted(said, key=lambda event: event.call_id)
    assert completes[0].result == [
        {"content": "likes tea", "score": 0.9},
        {"content": "no score"},
        {"content": "y" * 2000},
    ]
    assert [event.success for event in completes] == [True, True, False]
    assert plane.asked == [
        ("s", "memory_search", {"query": "tea", "top_k": 5}),
        ("s", "memory_search", {"query": "tea", "top_k": 20}),
    ]


@pytest.mark.parametrize("answer", [None, [], {"results": "none"}, {"results": 5}])
async def test_memories_that_make_no_sense_are_said_in_words(
    autojump_clock: MockClock, tmp_path: Path, answer: JsonValue
) -> None:
    call = Call(tool_request("c", "search_memory", {"query": "tea"}))
    script = scripted_model([call, Say("ok")])
    async with opened(tmp_path, script, Plane(lambda *_: answer)) as session:
        run, _ = await finish(session)
    assert "makes no sense" in results(script, 1)[0]
    assert run.outcome == "completed"


async def test_a_control_plane_that_cannot_search_is_asked_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    def refuse(method: str, params: JsonObject) -> JsonValue:
        raise RequestFailed(code, "no")

    code = "REQUEST_FAILED"
    call = Call(tool_request("c", "search_memory", {"query": "tea"}))
    script = scripted_model([call, Say("ok"), call, Say("ok"), Say("ok")])
    async with opened(tmp_path, script, Plane(refuse)) as session:
        await finish(session)
        assert "cannot be searched: no" in results(script, 1)[0]
        code = "UNSUPPORTED_METHOD"
        await finish(session)
        assert "search_memory" in offered(script)
        await finish(session)
        assert "search_memory" not in offered(script)


async def test_in_process_the_memory_of_the_session_is_searched(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    call = Call(tool_request("c", "search_memory", {"query": "tea"}))
    script = scripted_model([Say("You like green tea."), call, Say("ok")])
    async with opened(tmp_path, script, None) as session:
        await finish(session, "what do I like?")
        await finish(session, "again")
    assert "green tea" in results(script, 1)[0]


async def test_tools_of_your_own_take_the_place_of_these(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    @tool
    def search_memory(query: str) -> str:
        """Search."""
        return f"mine: {query}"

    @tool
    def use_skill(skill_id: str) -> str:
        """Use."""
        return f"mine: {skill_id}"

    call = Call(
        [
            tool_request("a", "search_memory", {"query": "x"}),
            tool_request("b", "use_skill", {"skill_id": "y"}),
        ]
    )
    script = scripted_model([call, Say("ok")])
    tools = [search_memory, use_skill]
    async with opened(tmp_path, script, None, tools=tools, has_builtin_tools=False) as session:
        await finish(session)
    assert results(script, 2) == ["mine: x", "mine: y"]
    assert offered(script) == {"search_memory", "use_skill"}
