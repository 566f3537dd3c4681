"""What VMs report, and what is read of it: usage, the audit log, skills, snapshots, memories.

A report takes effect once (protocol section 4): its id is noted in the transaction of its
effect, for ever. One that is wrong is dropped with a reason, and noted as well, because the
VM could only send the same again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias

import attrs

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.store._cursors import make_cursor, read_cursor
from semibot.store._database import Database, Row
from semibot.store._rows import find_session_of
from semibot.store.base import LinkRef, MemoryHit, Page, ReportIn
from semibot.wire.codec import JsonObject, JsonValue, dump_json, structure

DAY_MS: Final = 24 * 3600 * 1000
"""A day, in milliseconds."""

KEPT_SNAPSHOTS: Final = 3
"""Snapshots that a session keeps."""

APPROVED_FROM: Final = 0.8
"""Quality from which a skill is approved without a review."""

MEMORY_TYPES: Final = frozenset({"episodic", "semantic", "procedural"})
"""What kinds of memory there are; others are ``episodic``."""

MAX_TOKENS: Final = 10**12
"""More than any run uses; totals stay far below what the database can add up."""

MAX_NAME: Final = 256
"""Most characters of a name: of a model, an event, a skill, an agent."""

MAX_TEXT: Final = 256 * 1024
"""Most characters of a text, or of details as JSON: a page of many is made in memory, and a
memory is taken into an index while every other writer waits."""

MAX_QUERY: Final = 4096
"""How many characters of a question are looked at."""

IDEOGRAPH: Final = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
)
"""A character of Chinese or Japanese."""

IDEOGRAPHS: Final = re.compile(IDEOGRAPH.pattern + "+")
"""A run of them, with no spaces between the words."""

MAX_TERMS: Final = 64
"""Words of a question that are searched for; the first ones."""


TOO_LONG: Final = "bad parameters: a text is too long"
"""Why a report is dropped that would fill what everybody shares."""


# --- effects --------------------------------------------------------------------------


def apply_report(db: Database, link: LinkRef, report: ReportIn) -> str | None:
    """Let a report take effect, unless it did before.

    Args:
        db: The transaction, in which the link was found to be the VM's.
        link: Who reports; everything is written for its user.
        report: The report.

    Returns:
        Why the report is dropped, or None; it is to be acknowledged in either case.
    """
    if report.id is not None:
        is_new = db.change(
            "INSERT INTO reports_seen (user_id, id) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (link.user_id, report.id),
        )
        if not is_new:
            return None
    try:
        match report.method:
            case "usage_report":
                return _add_usage(db, link, report, structure(report.params, _Usage))
            case "audit_log":
                return _add_audit(db, link, report, structure(report.params, _Audit))
            case "evolution_submit":
                return _add_skill(db, link, report, structure(report.params, _Skill))
            case "snapshot_sync":
                return _add_snapshot(db, link, report, structure(report.params, _Snapshot))
            case "memory_write":
                return _add_memory(db, link, report, structure(report.params, _Memory))
            case _:
                return "unknown method"
    except (RemoteProtocolError, LocalProtocolError) as exc:  # raised before anything is written
        return f"bad parameters: {exc}"


@attrs.frozen(kw_only=True)
class _Usage:
    model: str
    tokens_in: int
    tokens_out: int
    latency_ms: float | None = None


def _add_usage(db: Database, link: LinkRef, report: ReportIn, usage: _Usage) -> str | None:
    if not (0 <= usage.tokens_in <= MAX_TOKENS and 0 <= usage.tokens_out <= MAX_TOKENS):
        return "bad parameters: a number of tokens is out of range"
    if len(usage.model) > MAX_NAME:
        return TOO_LONG
    now = db.now()
    session_id, org_id = _session_of(db, link, report), _organization_of(db, link)
    db.change(
        "INSERT INTO usage_records (org_id, user_id, session_id, model, tokens_in, tokens_out,"
        " latency_ms, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            org_id,
            link.user_id,
            session_id,
            usage.model,
            usage.tokens_in,
            usage.tokens_out,
            usage.latency_ms,
            now,
        ),
    )
    db.change(
        "INSERT INTO usage_daily (user_id, day, model, reports, tokens_in, tokens_out)"
        " VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT (user_id, day, model) DO UPDATE SET"
        " reports = reports + 1, tokens_in = tokens_in + excluded.tokens_in,"
        " tokens_out = tokens_out + excluded.tokens_out",
        (link.user_id, _day(now), usage.model, usage.tokens_in, usage.tokens_out),
    )
    return None


@attrs.frozen(kw_only=True)
class _Audit:
    event: str
    details: JsonObject = attrs.field(factory=dict[str, JsonValue])


def _add_audit(db: Database, link: LinkRef, report: ReportIn, audit: _Audit) -> str | None:
    details = dump_json(audit.details)
    if len(audit.event) > MAX_NAME or len(details) > MAX_TEXT:
        return TOO_LONG
    db.change(
        "INSERT INTO audit_log (user_id, session_id, event, details, created_at)"
        " VALUES (?, ?, ?, ?, ?)",
        (link.user_id, _session_of(db, link, report), audit.event, details, db.now()),
    )
    return None


@attrs.frozen(kw_only=True)
class _Skill:
    name: str
    description: str
    skill_md: str
    quality_score: float = 0.5


def _add_skill(db: Database, link: LinkRef, report: ReportIn, skill: _Skill) -> str | None:
    if not 0 <= skill.quality_score <= 1:
        return "bad parameters: quality_score is a number from 0 to 1"
    if len(skill.name) > MAX_NAME or len(skill.description) + len(skill.skill_md) > MAX_TEXT:
        return TOO_LONG
    status = "approved" if skill.quality_score >= APPROVED_FROM else "pending_review"
    db.change(
        "INSERT INTO evolved_skills (user_id, session_id, name, description, skill_md,"
        " quality_score, status, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            link.user_id,
            _session_of(db, link, report),
            skill.name,
            skill.description,
            skill.skill_md,
            skill.quality_score,
            status,
            db.now(),
        ),
    )
    return None


@attrs.frozen(kw_only=True)
class _Snapshot:
    checkpoint: JsonObject
    short_term_memory: JsonObject
    conversation_state: JsonValue = None
    file_manifest: JsonValue = None
    term: int | None = None
    covers_seq: int | None = None


def _add_snapshot(db: Database, link: LinkRef, report: ReportIn, new: _Snapshot) -> str | None:
    session = find_session_of(db, link.user_id, report.session_id)
    if session is None:
        return "gone"
    # Level 1 knows neither: what it sends is about everything that it has said before.
    term = session.term if new.term is None else new.term
    covers_seq = session.last_seq if new.covers_seq is None else new.covers_seq
    if term != session.term:
        return "fenced"
    if not 0 <= covers_seq <= session.last_seq:
        return "bad parameters: covers_seq is not committed"
    db.change(
        "INSERT INTO session_snapshots (session_id, term, covers_seq, checkpoint,"
        " short_term_memory, conversation_state, file_manifest, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (session_id, term, covers_seq) DO UPDATE"
        " SET checkpoint = excluded.checkpoint, short_term_memory = excluded.short_term_memory,"
        " conversation_state = excluded.conversation_state,"
        " file_manifest = excluded.file_manifest, created_at = excluded.created_at",
        (
            session.id,
            term,
            covers_seq,
            dump_json(new.checkpoint),
            dump_json(new.short_term_memory),
            None if new.conversation_state is None else dump_json(new.conversation_state),
            None if new.file_manifest is None else dump_json(new.file_manifest),
            db.now(),
        ),
    )
    db.change(
        "DELETE FROM session_snapshots WHERE session_id = ?1 AND (term, covers_seq) NOT IN"
        " (SELECT term, covers_seq FROM session_snapshots WHERE session_id = ?1"
        " ORDER BY term DESC, covers_seq DESC LIMIT ?2)",
        (session.id, KEPT_SNAPSHOTS),
    )
    return None


@attrs.frozen(kw_only=True)
class _Memory:
    agent_id: str
    content: str
    memory_type: str | None = None
    importance: float | None = None
    metadata: JsonObject | None = None


def _add_memory(db: Database, link: LinkRef, report: ReportIn, memory: _Memory) -> str | None:
    if not (memory.agent_id.strip() and memory.content.strip()):
        return "bad parameters: agent_id and content may not be blank"
    metadata = dump_json(memory.metadata or {})
    if len(memory.agent_id) > MAX_NAME or len(memory.content) + len(metadata) > MAX_TEXT:
        return TOO_LONG
    kind = memory.memory_type or ""
    if kind in {"long_term", "long-term"}:
        kind = "semantic"
    importance = 0.5 if memory.importance is None else min(max(memory.importance, 0.0), 1.0)
    db.change(
        "INSERT INTO memories (org_id, user_id, agent_id, session_id, content, words,"
        " memory_type, importance, metadata, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            _organization_of(db, link),
            link.user_id,
            memory.agent_id,
            _session_of(db, link, report),
            memory.content,
            IDEOGRAPH.sub(r" \g<0> ", memory.content),
            kind if kind in MEMORY_TYPES else "episodic",
            importance,
            metadata,
            db.now(),
        ),
    )
    return None


def _session_of(db: Database, link: LinkRef, report: ReportIn) -> str | None:
    """Return the session that a report names, if it is one of the user's."""
    session = find_session_of(db, link.user_id, report.session_id)
    return None if session is None else session.id


def _organization_of(db: Database, link: LinkRef) -> str:
    row = db.execute("SELECT org_id FROM users WHERE id = ?", (link.user_id,))[0]
    return row.text("org_id")


def _day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).date().isoformat()


# --- memories -------------------------------------------------------------------------


def search_memories(db: Database, user_id: str, query: str, top_k: int) -> tuple[MemoryHit, ...]:
    """See :meth:`~semibot.store.base.Store.search_memories`."""
    terms = _terms(query)
    if not terms or top_k < 1:
        return ()
    rows = db.execute(
        "SELECT memories.content, memories.metadata, bm25(memories_text) AS score"
        " FROM memories_text JOIN memories ON memories.id = memories_text.rowid"
        " WHERE memories_text MATCH ? AND memories.user_id = ?"
        " ORDER BY score, memories.id DESC LIMIT ?",
        (" OR ".join(f'"{term}"' for term in terms), user_id, top_k),
    )
    return tuple(
        MemoryHit(
            content=row.text("content"),
            score=-row.number("score"),  # FTS5 says it upside down
            metadata=row.object("metadata"),
        )
        for row in rows
    )


def _terms(query: str) -> tuple[str, ...]:
    """Return the words of a question: nothing in it can be an operator of the search language.

    Ideographs are written without spaces, and one alone says little, so they are searched for
    in pairs.
    """
    terms: list[str] = []
    for word in re.findall(r"[^\W_]+", query[:MAX_QUERY]):
        terms += IDEOGRAPH.sub(" ", word).split()
        for run in IDEOGRAPHS.findall(word):
            terms += [" ".join(run[at : at + 2]) for at in range(max(len(run) - 1, 1))]
    return tuple(dict.fromkeys(terms))[:MAX_TERMS]


# --- what owners read -----------------------------------------------------------------


def list_audit(db: Database, user_id: str, cursor: str | None, limit: int) -> Page:
    """See :meth:`~semibot.store.base.Store.list_audit`."""
    before = None if cursor is None else read_cursor("audit", cursor)[0]
    rows = db.execute(
        "SELECT * FROM audit_log WHERE user_id = ?1 AND (?2 IS NULL OR id < ?2)"
        " ORDER BY id DESC LIMIT ?3",
        (user_id, before, limit + 1),
    )
    return _page("audit", rows, limit, _audit_entry)


def _audit_entry(row: Row) -> JsonObject:
    return {
        "id": row.integer("id"),
        "session_id": row.text_or_none("session_id"),
        "event": row.text("event"),
        "details": row.object("details"),
        "created_at": row.integer("created_at"),
    }


def list_usage(db: Database, user_id: str, cursor: str | None, limit: int) -> Page:
    """See :meth:`~semibot.store.base.Store.list_usage`."""
    before = None if cursor is None else read_cursor("usage", cursor)[0]
    rows = db.execute(
        "SELECT * FROM usage_records WHERE user_id = ?1 AND (?2 IS NULL OR id < ?2)"
        " ORDER BY id DESC LIMIT ?3",
        (user_id, before, limit + 1),
    )
    return _page("usage", rows, limit, _usage_entry)


def _usage_entry(row: Row) -> JsonObject:
    return {
        "id": row.integer("id"),
        "session_id": row.text_or_none("session_id"),
        "model": row.text("model"),
        "tokens_in": row.integer("tokens_in"),
        "tokens_out": row.integer("tokens_out"),
        "latency_ms": row.number_or_none("latency_ms"),
        "created_at": row.integer("created_at"),
    }


_Entry: TypeAlias = Callable[[Row], JsonObject]


def _page(kind: str, rows: Sequence[Row], limit: int, entry: _Entry) -> Page:
    """Make a page of *limit* rows; one more says that another page follows."""
    shown = rows[:limit]
    goes_on = len(rows) > limit and len(shown) > 0
    return Page(
        rows=tuple(map(entry, shown)),
        next_cursor=make_cursor(kind, shown[-1].integer("id")) if goes_on else None,
    )


def daily_usage(db: Database, user_id: str, days: int) -> tuple[JsonObject, ...]:
    """See :meth:`~semibot.store.base.Store.daily_usage`; today in UTC counts as one day."""
    rows = db.execute(
        "SELECT * FROM usage_daily WHERE user_id = ? AND day > ? ORDER BY day DESC, model",
        (user_id, _day(max(db.now() - days * DAY_MS, 0))),
    )
    return tuple(
        {
            "day": row.text("day"),
            "model": row.text("model"),
            "reports": row.integer("reports"),
            "tokens_in": row.integer("tokens_in"),
            "tokens_out": row.integer("tokens_out"),
        }
        for row in rows
    )
