from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import attrs
import pytest

from semibot.config.deadlines import Deadlines
from semibot.errors import BadCursor, IdempotencyConflict
from semibot.store._rows import find_session_of
from semibot.store.base import (
    EventsIn,
    LinkClaim,
    LinkRef,
    NewMessage,
    NewSession,
    ReportIn,
    StoredEvent,
)
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports

DAY = timedelta(days=1)


@attrs.define
class Clock:
    time: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def now(self):
        return self.time


@attrs.define
class Office:
    """A store with two users, whose VMs are linked, and one session each."""

    store: object
    clock: Clock
    links: dict[str, LinkRef] = attrs.field(factory=dict)
    count: int = 0

    async def start(self):
        for user in ("ada", "bob"):
            await self.store.ensure_user(user, "acme", vm_mode="external")
            await self.store.ensure_vm(user, f"vm-{user}", "external")
            accepted = await self.store.accept_link(
                LinkClaim(user_id=user, boot_hash=user, dial=1, level=2, ticket_hash=None)
            )
            self.links[user] = LinkRef(
                vm_id=accepted.vm.id, user_id=user, epoch=accepted.vm.epoch, boot_hash=user
            )
            await self.store.accept_message(message_of(user))
            await self.store.hold_session(f"session-{user}", self.links[user])

    async def report(self, method, params, *, user="ada", id="", session_id=None):
        """Report, and return why that was dropped."""
        self.count += 1
        report = ReportIn(
            id=f"report-{self.count}" if id == "" else id,
            session_id=f"session-{user}" if session_id is None else session_id,
            method=method,
            params=params,
        )
        result = await self.store.commit_intake(self.links[user], [report])
        assert result.done_ids == ((report.id,) if report.id else ())
        assert [who for who, _ in result.dropped] in ([], [report.id or method])
        return result.dropped[0][1] if result.dropped else None

    async def rows(self, sql):
        """Return what a SELECT of one column finds."""
        rows = await self.store._readers.read(lambda db: db.execute(f"SELECT ({sql}) AS found"))
        return rows[0].json("found")


def message_of(user):
    return NewMessage(
        user_id=user,
        session_id=f"session-{user}",
        create=NewSession(agent_id=None, runtime_type="semigraph", openclaw_config=None),
        message="hello",
        message_id=f"message-{user}",
        run_id=f"run-{user}",
        command_id=f"command-{user}",
        cancel_ids=(),
        on_busy="enqueue",
        expires_at=None,
        idempotency=None,
    )


@pytest.fixture
async def office(tmp_path):
    path = tmp_path / "semibot.db"
    clock = Clock()
    ports = attrs.evolve(simulated_ports(), wall_clock=clock)
    async with open_sqlite_store(path, ports=ports, deadlines=Deadlines()) as store:
        office = Office(store, clock)
        await office.start()
        yield office


USAGE = {"model": "m", "tokens_in": 7, "tokens_out": 3}
MEMORY = {"agent_id": "agent", "content": "Ada likes strong coffee"}


# --- reports --------------------------------------------------------------------------


async def test_a_repeated_report_changes_nothing(office):
    for _ in range(3):
        assert await office.report("usage_report", USAGE, id="one") is None
    assert len((await office.store.list_usage("ada", None, 10)).rows) == 1


async def test_report_ids_are_unique_per_user(office):
    assert await office.report("usage_report", USAGE, id="one") is None
    assert await office.report("usage_report", USAGE, id="one", user="bob") is None
    assert len((await office.store.list_usage("bob", None, 10)).rows) == 1


async def test_level_1_reports_are_not_checked_for_repeats(office):
    for _ in range(2):
        assert await office.report("usage_report", USAGE, id=None) is None
    assert len((await office.store.list_usage("ada", None, 10)).rows) == 2


@pytest.mark.parametrize(
    ("method", "params", "reason"),
    [
        ("make_coffee", {}, "unknown method"),
        ("usage_report", {"model": "m"}, "required field 'tokens_in' is missing"),
        ("usage_report", USAGE | {"tokens_in": "7"}, r"\$\.tokens_in"),
        ("usage_report", USAGE | {"tokens_in": -1}, "out of range"),
        ("usage_report", USAGE | {"tokens_out": 2**70}, "out of range"),
        ("usage_report", USAGE | {"latency_ms": "fast"}, r"\$\.latency_ms"),
        ("audit_log", {"details": {}}, "'event' is missing"),
        ("audit_log", {"event": "e", "details": [1]}, r"\$\.details"),
        ("evolution_submit", {"name": "n", "description": "d"}, "'skill_md' is missing"),
        (
            "evolution_submit",
            {"name": "n", "description": "d", "skill_md": "s", "quality_score": 85},
            "from 0 to 1",
        ),
        ("memory_write", {"agent_id": " ", "content": "x"}, "blank"),
        ("memory_write", {"agent_id": "a", "content": "\n"}, "blank"),
        ("memory_write", MEMORY | {"metadata": "x"}, r"\$\.metadata"),
        ("memory_write", MEMORY | {"content": "x" * 300_000}, "too long"),
        ("memory_write", MEMORY | {"metadata": {"x": "x" * 300_000}}, "too long"),
        ("memory_write", MEMORY | {"agent_id": "x" * 300}, "too long"),
        ("audit_log", {"event": "x" * 300}, "too long"),
        ("audit_log", {"event": "e", "details": {"x": "x" * 300_000}}, "too long"),
        ("usage_report", {"model": "x" * 300, "tokens_in": 1, "tokens_out": 1}, "too long"),
        (
            "evolution_submit",
            {"name": "x" * 300, "description": "d", "skill_md": "s"},
            "too long",
        ),
        (
            "evolution_submit",
            {"name": "n", "description": "d", "skill_md": "s" * 300_000},
            "too long",
        ),
        ("snapshot_sync", {"checkpoint": {}}, "'short_term_memory' is missing"),
    ],
)
async def test_a_report_that_is_wrong_is_dropped_and_acknowledged(office, method, params, reason):
    problem = await office.report(method, params, id="one")
    assert problem is not None
    assert re.search(reason, problem)
    assert await office.report(method, params, id="one") is None  # known already
    for table in ("usage_records", "audit_log", "evolved_skills", "memories", "session_snapshots"):
        assert await office.rows(f"SELECT json_group_array(rowid) FROM {table}") == []


async def test_a_report_for_somebody_elses_session_names_no_session(office):
    for session_id in ("session-bob", "__memory__", "made up"):
        assert await office.report("usage_report", USAGE, session_id=session_id) is None
    rows = (await office.store.list_usage("ada", None, 10)).rows
    assert [row["session_id"] for row in rows] == [None, None, None]
    assert (await office.store.list_usage("bob", None, 10)).rows == ()


# --- usage, audit ---------------------------------------------------------------------


async def test_usage_adds_up_by_day_and_model(office):
    await office.report("usage_report", USAGE)
    await office.report("usage_report", USAGE | {"tokens_in": 1, "latency_ms": 12.5})
    await office.report("usage_report", USAGE | {"model": "other"})
    await office.report("usage_report", USAGE, user="bob")
    office.clock.time += DAY
    await office.report("usage_report", USAGE)
    first, second = "2026-01-01", "2026-01-02"
    totals = await office.store.daily_usage("ada", 30)
    assert [tuple(row.values()) for row in totals] == [
        (second, "m", 1, 7, 3),
        (first, "m", 2, 8, 6),
        (first, "other", 1, 7, 3),
    ]
    assert [row["day"] for row in await office.store.daily_usage("ada", 1)] == [second]
    assert await office.store.daily_usage("eve", 30) == ()
    assert len(await office.store.daily_usage("ada", 10**9)) == 3


async def test_usage_is_listed_newest_first(office):
    for number in range(5):
        await office.report("usage_report", USAGE | {"tokens_in": number, "latency_ms": 2})
    page = await office.store.list_usage("ada", None, 2)
    seen = [row["tokens_in"] for row in page.rows]
    assert page.rows[0] == {
        "id": 5,
        "session_id": "session-ada",
        "model": "m",
        "tokens_in": 4,
        "tokens_out": 3,
        "latency_ms": 2.0,
        "created_at": page.rows[0]["created_at"],
    }
    while page.next_cursor is not None:
        page = await office.store.list_usage("ada", page.next_cursor, 2)
        seen += [row["tokens_in"] for row in page.rows]
    assert seen == [4, 3, 2, 1, 0]


async def test_the_audit_log_is_its_owners(office):
    await office.report("audit_log", {"event": "opened", "details": {"door": 1}})
    await office.report("audit_log", {"event": "closed"})
    page = await office.store.list_audit("ada", None, 10)
    assert [(row["event"], row["details"]) for row in page.rows] == [
        ("closed", {}),
        ("opened", {"door": 1}),
    ]
    assert page.next_cursor is None
    assert (await office.store.list_audit("bob", None, 10)).rows == ()


async def test_a_cursor_is_good_for_its_own_pages_only(office):
    for _ in range(2):
        await office.report("audit_log", {"event": "opened"})
    cursor = (await office.store.list_audit("ada", None, 1)).next_cursor
    assert cursor is not None
    assert len((await office.store.list_audit("ada", cursor, 1)).rows) == 1
    for wrong in (cursor, "made up"):
        with pytest.raises(BadCursor):
            await office.store.list_usage("ada", wrong, 1)
    with pytest.raises(BadCursor):
        await office.store.list_audit("ada", "made up", 1)


# --- skills ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "status"),
    [(0.8, "approved"), (1, "approved"), (0.79, "pending_review"), (None, "pending_review")],
)
async def test_a_good_skill_is_approved(office, score, status):
    skill = {"name": "n", "description": "d", "skill_md": "# n"}
    if score is not None:
        skill["quality_score"] = score
    assert await office.report("evolution_submit", skill) is None
    found = await office.rows(
        "SELECT json_group_array(json_array(name, quality_score, status)) FROM evolved_skills"
    )
    assert found == [["n", 0.5 if score is None else score, status]]


# --- snapshots ------------------------------------------------------------------------


def snapshot(term, covers_seq, mark=0):
    return {
        "checkpoint": {"mark": mark},
        "short_term_memory": {},
        "conversation_state": "x",
        "term": term,
        "covers_seq": covers_seq,
    }


async def add_events(office, first, last):
    events = tuple(
        StoredEvent(term=1, seq=seq, run_id="run-ada", type="thinking", data="{}")
        for seq in range(first, last + 1)
    )
    batch = EventsIn(session_id="session-ada", term=1, events=events)
    result = await office.store.commit_intake(office.links["ada"], [batch])
    assert result.refused == {}


async def kept(office):
    return await office.rows(
        "SELECT json_group_array(json_array(term, covers_seq, checkpoint ->> 'mark'))"
        " FROM (SELECT * FROM session_snapshots ORDER BY term, covers_seq)"
    )


async def test_the_newest_three_snapshots_are_kept(office):
    await add_events(office, 1, 9)
    for seq in (5, 1, 7, 3, 9):
        assert await office.report("snapshot_sync", snapshot(1, seq)) is None
    assert await kept(office) == [[1, 5, 0], [1, 7, 0], [1, 9, 0]]
    assert await office.report("snapshot_sync", snapshot(1, 7, mark=2)) is None
    assert await kept(office) == [[1, 5, 0], [1, 7, 2], [1, 9, 0]]


async def test_a_snapshot_covers_what_is_committed_at_most(office):
    await add_events(office, 1, 2)
    assert "not committed" in await office.report("snapshot_sync", snapshot(1, 3))
    assert "not committed" in await office.report("snapshot_sync", snapshot(1, -1))
    assert await office.report("snapshot_sync", snapshot(1, 2)) is None


async def test_a_snapshot_may_come_with_the_events_that_it_covers(office):
    event = StoredEvent(term=1, seq=1, run_id="run-ada", type="thinking", data="{}")
    report = ReportIn(
        id="one", session_id="session-ada", method="snapshot_sync", params=snapshot(1, 1)
    )
    result = await office.store.commit_intake(
        office.links["ada"],
        [EventsIn(session_id="session-ada", term=1, events=(event,)), report],
    )
    assert (result.done_ids, result.dropped) == (("one",), ())
    assert await kept(office) == [[1, 1, 0]]


@pytest.mark.parametrize("term", [0, 2])
async def test_a_snapshot_of_another_term_is_refused(office, term):
    assert await office.report("snapshot_sync", snapshot(term, 0)) == "fenced"
    assert await kept(office) == []


async def test_a_snapshot_of_no_session_of_the_user_is_dropped(office):
    problem = await office.report("snapshot_sync", snapshot(1, 0), session_id="session-bob")
    assert problem == "gone"
    assert await kept(office) == []


async def test_a_level_1_snapshot_is_of_now(office):
    await add_events(office, 1, 2)
    params = {"checkpoint": {"mark": 1}, "short_term_memory": {}, "file_manifest": ["a"]}
    assert await office.report("snapshot_sync", params, id=None) is None
    assert await kept(office) == [[1, 2, 1]]


# --- memories -------------------------------------------------------------------------


async def search(office, query, *, user="ada", top_k=5):
    return await office.store.search_memories(user, query, top_k)


async def test_a_memory_is_found_by_its_words(office):
    await office.report("memory_write", MEMORY | {"metadata": {"source": "chat"}})
    (hit,) = await search(office, "What coffee?")
    assert (hit.content, hit.metadata) == ("Ada likes strong coffee", {"source": "chat"})
    assert hit.score > 0
    assert await search(office, "tea") == ()


async def test_better_matches_come_first(office):
    for content in (
        "The coffee machine is on the second floor, next to the stairs and the printer",
        "Ada likes strong coffee",
        "Bob drinks tea",
        "strong coffee, strong coffee",
    ):
        await office.report("memory_write", MEMORY | {"content": content})
    hits = await search(office, "strong coffee")
    assert [hit.content.split()[0] for hit in hits] == ["strong", "Ada", "The"]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3
    assert len(await search(office, "strong coffee", top_k=2)) == 2


async def test_memories_are_their_owners(office):
    for user in ("ada", "bob"):
        for number in range(20):
            content = f"secret {number} of {user}"
            await office.report("memory_write", MEMORY | {"content": content}, user=user)
    hits = await search(office, "secret ada bob", user="bob", top_k=20)
    assert len(hits) == 20
    assert all("of bob" in hit.content for hit in hits)
    assert await search(office, "secret", user="eve") == ()


@pytest.mark.parametrize(
    "query", ["", "  \n", "?!", "\x00", '"', "_", "''", "-", "* ( ) ^ : , .", "\N{HOURGLASS}"]
)
async def test_a_question_without_words_finds_nothing(office, query):
    await office.report("memory_write", MEMORY)
    assert await search(office, query) == ()


@pytest.mark.parametrize(
    "query",
    [
        'coffee"',
        '"coffee',
        "coffee AND",
        "NOT coffee",
        "NEAR(coffee tea, 3)",
        "content : coffee",
        "coffee*",
        "(coffee",
        "^coffee",
        "'; DROP TABLE memories; -- coffee",
        "coffee\x00",
        "COFFEE",
        "coffee " * 10_000,
        " ".join(f"word{number}" for number in range(3)) + " coffee",
    ],
)
async def test_a_question_is_words_and_nothing_else(office, query):
    await office.report("memory_write", MEMORY)
    assert [hit.content for hit in await search(office, query)] == [MEMORY["content"]]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("咖啡", 1),
        ("她喜欢喝咖啡吗", 1),
        ("茶", 0),
        ("啡", 1),
        ("啡咖", 0),
        ("GPT-5の咖啡", 1),
        ("GPT", 1),
    ],
)
async def test_a_language_without_spaces_is_searched_by_pairs(office, query, found):
    content = "小明喜欢喝浓咖啡 也用GPT模型"
    await office.report("memory_write", MEMORY | {"content": content})
    await office.report("memory_write", MEMORY | {"content": "something else"})
    assert [hit.content for hit in await search(office, query)] == [content] * found


async def test_a_question_that_wants_nothing_gets_nothing(office):
    await office.report("memory_write", MEMORY)
    assert await search(office, "coffee", top_k=0) == ()


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("long_term", "semantic"),
        ("long-term", "semantic"),
        ("semantic", "semantic"),
        ("procedural", "procedural"),
        ("episodic", "episodic"),
        ("made up", "episodic"),
        (None, "episodic"),
    ],
)
async def test_kinds_of_memory_have_one_name_each(office, given, stored):
    await office.report("memory_write", MEMORY | {"memory_type": given})
    assert await office.rows("SELECT json_group_array(memory_type) FROM memories") == [stored]


@pytest.mark.parametrize(("given", "stored"), [(None, 0.5), (0.25, 0.25), (7, 1.0), (-1, 0.0)])
async def test_the_importance_of_a_memory_is_from_0_to_1(office, given, stored):
    await office.report("memory_write", MEMORY | {"importance": given})
    assert await office.rows("SELECT json_group_array(importance) FROM memories") == [stored]


# --- answers, pruning -----------------------------------------------------------------


async def test_an_answer_is_given_again_for_a_day(office):
    store = office.store
    assert await store.remember_answer("ada", "key", "hash", {"a": 1}) == {"a": 1}
    assert await store.remember_answer("ada", "key", "hash", {"a": 2}) == {"a": 1}
    assert await store.remember_answer("bob", "key", "other", None) is None
    assert await store.remember_answer("bob", "key", "other", 5) is None
    with pytest.raises(IdempotencyConflict):
        await store.remember_answer("ada", "key", "other", {"a": 1})
    office.clock.time += DAY
    assert await store.remember_answer("ada", "key", "other", {"a": 3}) == {"a": 3}


async def test_a_key_of_a_message_is_no_key_of_another_request(office):
    message = attrs.evolve(
        message_of("ada"),
        create=None,
        message_id="message-2",
        run_id="run-2",
        command_id="command-2",
        idempotency=("key", "hash"),
    )
    await office.store.accept_message(message)
    with pytest.raises(IdempotencyConflict):
        await office.store.remember_answer("ada", "key", "hash", {})


async def test_what_has_expired_is_forgotten(office):
    store = office.store
    await store.remember_answer("ada", "key", "hash", {})
    await store.ensure_user("eve", "acme", vm_mode=None)
    await store.ensure_vm("eve", "vm-eve", "local")
    await store.begin_attempt("vm-eve", "ticket-1", 1)
    await store.begin_attempt("vm-eve", "ticket-2", 1)
    await store.delete_session("bob", "session-bob", "stop-bob")
    await store.finish_commands(["stop-bob", "command-ada"])

    async def left():
        return [
            await office.rows(f"SELECT json_group_array({column}) FROM {table}")
            for table, column in [
                ("idempotency_keys", "key"),
                ("vm_tickets", "ticket_hash"),
                ("tombstones", "session_id"),
            ]
        ]

    await store.prune()
    # The newest attempt's stays: who spent it may come back.
    assert await left() == [["key"], ["ticket-2"], ["session-bob"]]
    office.clock.time += DAY
    await store.prune()
    assert await left() == [[], ["ticket-2"], ["session-bob"]]
    await store.set_vm_status("vm-eve", "terminated")
    assert "command-ada" in await office.rows("SELECT json_group_array(id) FROM commands")
    office.clock.time += 30 * DAY
    await store.prune()
    assert await left() == [[], [], []]
    assert await office.rows("SELECT json_group_array(id) FROM commands WHERE is_done") == []
    assert await store._readers.read(find_session_of, "ada", "session-ada") is not None
