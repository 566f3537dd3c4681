"""Users, agents, and the lives of their VMs: bootstrap attempts, tickets and links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from semibot.errors import NotFound
from semibot.store._database import Database, Row
from semibot.store._losses import lose_sessions
from semibot.store._rows import boot_of, session_row
from semibot.store.base import (
    AgentRow,
    LinkAccepted,
    LinkClaim,
    LinkRef,
    LinkRefused,
    SessionLoss,
    SessionRow,
    UserRow,
    VmMode,
    VmRow,
    VmStatus,
)
from semibot.wire.codec import dump_json
from semibot.wire.frames import HeldSession

# --- users, agents --------------------------------------------------------------------


def ensure_user(db: Database, user_id: str, org_id: str, *, vm_mode: VmMode | None) -> UserRow:
    """See :meth:`~semibot.store.base.Store.ensure_user`; a known user stays where it is."""
    if not (users := _users(db, user_id)):
        _ensure_organization(db, org_id, vm_mode)
        db.change(
            "INSERT INTO users (id, org_id, created_at) VALUES (?, ?, ?)",
            (user_id, org_id, db.now()),
        )
        users = _users(db, user_id)
    return users[0]


def _ensure_organization(db: Database, org_id: str, vm_mode: VmMode | None) -> None:
    if vm_mode is None:
        db.change(
            "INSERT INTO organizations (id, created_at) VALUES (?, ?) ON CONFLICT (id) DO NOTHING",
            (org_id, db.now()),
        )
    else:
        db.change(
            "INSERT INTO organizations (id, default_vm_mode, created_at) VALUES (?, ?, ?)"
            " ON CONFLICT (id) DO NOTHING",
            (org_id, vm_mode, db.now()),
        )


def get_user(db: Database, user_id: str) -> UserRow | None:
    """See :meth:`~semibot.store.base.Store.get_user`."""
    return next(iter(_users(db, user_id)), None)


def _users(db: Database, user_id: str) -> list[UserRow]:
    rows = db.execute(
        "SELECT users.id, org_id, coalesce(vm_mode, default_vm_mode) AS mode"
        " FROM users JOIN organizations ON organizations.id = org_id WHERE users.id = ?",
        (user_id,),
    )
    return [
        UserRow(
            id=row.text("id"), org_id=row.text("org_id"), vm_mode=cast("VmMode", row.text("mode"))
        )
        for row in rows
    ]


def put_agent(db: Database, agent: AgentRow) -> None:
    """See :meth:`~semibot.store.base.Store.put_agent`.

    Raises:
        NotFound: If the id is that of another organization's agent.
    """
    _ensure_organization(db, agent.org_id, None)
    openclaw = None if agent.openclaw_config is None else dump_json(agent.openclaw_config)
    changed = db.change(
        "INSERT INTO agents"
        " (id, org_id, name, agent_config, runtime_type, openclaw_config, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET name = excluded.name,"
        " agent_config = excluded.agent_config, runtime_type = excluded.runtime_type,"
        " openclaw_config = excluded.openclaw_config WHERE org_id = excluded.org_id",
        (
            agent.id,
            agent.org_id,
            agent.name,
            dump_json(agent.agent_config),
            agent.runtime_type,
            openclaw,
            db.now(),
        ),
    )
    if not changed:
        raise NotFound(f"the organization has no agent {agent.id}, and the id is taken")


def get_agent(db: Database, org_id: str, agent_id: str) -> AgentRow | None:
    """See :meth:`~semibot.store.base.Store.get_agent`."""
    row = db.one("SELECT * FROM agents WHERE org_id = ? AND id = ?", (org_id, agent_id))
    if row is None:
        return None
    return AgentRow(
        id=row.text("id"),
        org_id=row.text("org_id"),
        name=row.text("name"),
        agent_config=row.object("agent_config"),
        runtime_type=row.text("runtime_type"),
        openclaw_config=row.object_or_none("openclaw_config"),
    )


# --- rows -----------------------------------------------------------------------------


def newest_vm(db: Database, user_id: str) -> VmRow | None:
    """See :meth:`~semibot.store.base.Store.newest_vm`."""
    row = db.one(
        "SELECT * FROM user_vm_instances WHERE user_id = ?"
        " ORDER BY status NOT IN ('failed', 'terminated') DESC, created_at DESC, rowid DESC"
        " LIMIT 1",
        (user_id,),
    )
    return None if row is None else _vm(row)


def active_vms(db: Database) -> tuple[VmRow, ...]:
    """See :meth:`~semibot.store.base.Store.active_vms`."""
    rows = db.execute(
        "SELECT * FROM user_vm_instances WHERE status NOT IN ('failed', 'terminated')"
        " ORDER BY created_at, rowid"
    )
    return tuple(map(_vm, rows))


def ensure_vm(db: Database, user_id: str, vm_id: str, mode: VmMode) -> VmRow:
    """See :meth:`~semibot.store.base.Store.ensure_vm`.

    A row that turns ``external`` forgets its attempts and tickets: from then on a token is
    enough, as for a row that never had one.

    Raises:
        NotFound: If there is no such user.
    """
    user = get_user(db, user_id)
    if user is None:
        raise NotFound(f"there is no user {user_id}")
    vm = next(iter(_active(db, user_id)), None)
    if vm is None:
        db.change(
            "INSERT INTO user_vm_instances (id, user_id, org_id, mode, status, created_at)"
            " VALUES (?, ?, ?, ?, 'starting', ?)",
            (vm_id, user_id, user.org_id, mode, db.now()),
        )
    elif mode == "external" != vm.text("mode"):
        db.change("DELETE FROM vm_tickets WHERE vm_id = ?", (vm.text("id"),))
        db.change(
            "UPDATE user_vm_instances SET mode = 'external', bootstrap_attempts = 0, attempt = 0,"
            " link_attempt = 0, bootstrap_last_error = NULL WHERE id = ?",
            (vm.text("id"),),
        )
    return _vm(_active(db, user_id)[0])


def begin_attempt(db: Database, vm_id: str, ticket_hash: str, expires_at: int) -> VmRow:
    """See :meth:`~semibot.store.base.Store.begin_attempt`.

    Raises:
        NotFound: If the row does not exist, or is history.
    """
    row = db.one(
        "UPDATE user_vm_instances SET attempt = attempt + 1,"
        " bootstrap_attempts = bootstrap_attempts + 1, last_bootstrap_at = ?,"
        " bootstrap_last_error = NULL, status = 'starting'"
        " WHERE id = ? AND status NOT IN ('failed', 'terminated') RETURNING *",
        (db.now(), vm_id),
    )
    if row is None:
        raise NotFound(f"there is no active VM {vm_id}")
    db.change(
        "INSERT INTO vm_tickets (ticket_hash, vm_id, attempt, expires_at) VALUES (?, ?, ?, ?)",
        (ticket_hash, vm_id, row.integer("attempt"), expires_at),
    )
    return _vm(row)


def set_vm_status(
    db: Database, vm_id: str, status: VmStatus, *, last_error: str | None
) -> VmRow | None:
    """See :meth:`~semibot.store.base.Store.set_vm_status`.

    A VM may be connected before whoever started it says ``provisioning``.
    """
    now = db.now()
    row = db.one(
        "UPDATE user_vm_instances SET status = ?1,"
        " bootstrap_last_error = coalesce(?2, bootstrap_last_error),"
        " disconnected_at = CASE WHEN ?1 = 'disconnected' THEN ?3 ELSE disconnected_at END,"
        " terminated_at = CASE WHEN ?1 IN ('failed', 'terminated') THEN ?3 END"
        " WHERE id = ?4 AND status NOT IN ('failed', 'terminated')"
        " AND (?1 <> 'provisioning' OR status <> 'ready') RETURNING *",
        (status, last_error, now, vm_id),
    )
    return None if row is None else _vm(row)


def _active(db: Database, user_id: str) -> list[Row]:
    return db.execute(
        "SELECT * FROM user_vm_instances"
        " WHERE user_id = ? AND status NOT IN ('failed', 'terminated')",
        (user_id,),
    )


def _vm(row: Row) -> VmRow:
    return VmRow(
        id=row.text("id"),
        user_id=row.text("user_id"),
        org_id=row.text("org_id"),
        mode=cast("VmMode", row.text("mode")),
        status=cast("VmStatus", row.text("status")),
        attempts=row.integer("bootstrap_attempts"),
        attempt=row.integer("attempt"),
        boot_hash=row.text_or_none("boot_hash"),
        epoch=row.integer("epoch"),
        level=row.integer("level"),
        last_bootstrap_at=row.integer_or_none("last_bootstrap_at"),
        last_heartbeat_at=row.integer_or_none("last_heartbeat_at"),
        disconnected_at=row.integer_or_none("disconnected_at"),
        last_error=row.text_or_none("bootstrap_last_error"),
    )


# --- links ----------------------------------------------------------------------------


def accept_link(db: Database, claim: LinkClaim) -> LinkAccepted | LinkRefused:
    """See :meth:`~semibot.store.base.Store.accept_link`."""
    if get_user(db, claim.user_id) is None:
        return LinkRefused(code=4004, reason="unknown_user", detail="there is no such user")
    vm = next(iter(_active(db, claim.user_id)), None)
    if vm is None:
        return LinkRefused(code=4003, reason="no_vm", detail="the user has no active VM row")
    ticket = _ticket(db, claim, vm)
    refusal = _gate(db, claim, vm, ticket) or _supersede(claim, vm, ticket)
    if refusal is not None:
        return refusal
    is_fresh = ticket is not None and ticket.is_null("used_by")
    is_same = _is_same_process(claim, vm, is_fresh=is_fresh)
    losses = () if is_same else _replace_process(db, vm)
    if ticket is not None:
        db.change(
            "UPDATE vm_tickets SET used_by = ? WHERE ticket_hash = ? AND used_by IS NULL",
            (claim.boot_hash or "", ticket.text("ticket_hash")),
        )
    rows = db.execute(
        "UPDATE user_vm_instances SET status = 'ready', boot_hash = ?, dial = ?, level = ?,"
        " link_attempt = ?, epoch = epoch + 1, bootstrap_attempts = 0, last_heartbeat_at = ?,"
        " disconnected_at = NULL, bootstrap_last_error = NULL WHERE id = ? RETURNING *",
        (
            claim.boot_hash,
            claim.dial,
            claim.level,
            vm.integer("link_attempt") if ticket is None else ticket.integer("attempt"),
            db.now(),
            vm.text("id"),
        ),
    )
    return LinkAccepted(vm=_vm(rows[0]), losses=losses, is_same_process=is_same)


def _ticket(db: Database, claim: LinkClaim, vm: Row) -> Row | None:
    if claim.ticket_hash is None:
        return None
    return db.one(
        "SELECT * FROM vm_tickets WHERE ticket_hash = ? AND vm_id = ? AND attempt = ?",
        (claim.ticket_hash, vm.text("id"), vm.integer("attempt")),
    )


def _gate(db: Database, claim: LinkClaim, vm: Row, ticket: Row | None) -> LinkRefused | None:
    """Check the ticket, or that none is needed."""
    problem: str | None
    if claim.ticket_hash is not None:
        if ticket is None:
            problem = "the ticket is not that of the newest attempt"
        elif (spent_by := ticket.text_or_none("used_by")) is not None:
            # A process that did not get its `init` sends its ticket again, at any time. One of
            # level 1 cannot say that it is the same, so that this would let a replay in.
            problem = "the ticket is spent"
            if claim.boot_hash is not None and spent_by == claim.boot_hash:
                problem = None
        else:
            problem = "the ticket has expired" if ticket.integer("expires_at") <= db.now() else None
    elif vm.integer("attempt") == 0:
        problem = None  # no ticket was ever issued: the token decides
    elif claim.level >= 2:
        is_known = claim.boot_hash is not None and claim.boot_hash == vm.text_or_none("boot_hash")
        problem = None if is_known else "a process that is not known came without a ticket"
    else:
        spent = db.one(
            "SELECT 1 FROM vm_tickets WHERE vm_id = ? AND attempt = ? AND used_by IS NOT NULL",
            (vm.text("id"), vm.integer("attempt")),
        )
        problem = None if spent is not None else "the ticket of the newest attempt is not spent"
    return None if problem is None else LinkRefused(code=4001, reason="refused", detail=problem)


def _supersede(claim: LinkClaim, vm: Row, ticket: Row | None) -> LinkRefused | None:
    """Check that the link may take the place of the one that was accepted last."""
    if claim.boot_hash is not None and claim.boot_hash == vm.text_or_none("boot_hash"):
        if claim.dial <= vm.integer("dial"):
            detail = f"dial {claim.dial} is not newer than {vm.integer('dial')}"
            return LinkRefused(code=4009, reason="older_dial", detail=detail)
        return None
    accepted_attempt = vm.integer("link_attempt")
    has_newer_attempt = ticket is not None and ticket.integer("attempt") > accepted_attempt
    has_no_attempt = ticket is None and accepted_attempt == 0
    if has_newer_attempt or has_no_attempt or claim.level == vm.integer("level") == 1:
        return None
    detail = f"another process came with attempt {accepted_attempt} and has the link"
    return LinkRefused(code=4009, reason="other_instance", detail=detail)


def _is_same_process(claim: LinkClaim, vm: Row, *, is_fresh: bool) -> bool:
    if claim.boot_hash is not None:
        return claim.boot_hash == vm.text_or_none("boot_hash")
    # Level 1 has no boot id; only a ticket shows that a process is new.
    return vm.integer("level") == 1 and not is_fresh


def _replace_process(db: Database, vm: Row) -> tuple[SessionLoss, ...]:
    return lose_sessions(
        db,
        vm.text("id"),
        "EXECUTION_PLANE_DISCONNECTED",
        "the execution plane was replaced by a new one while it worked; send the message again",
    )


def touch_vm(db: Database, link: LinkRef) -> bool:
    """See :meth:`~semibot.store.base.Store.touch_vm`."""
    changed = db.change(
        "UPDATE user_vm_instances SET last_heartbeat_at = ?"
        " WHERE id = ? AND user_id = ? AND epoch = ?"
        " AND status NOT IN ('failed', 'terminated')",
        (db.now(), link.vm_id, link.user_id, link.epoch),
    )
    return changed > 0


def link_closed(db: Database, link: LinkRef) -> bool:
    """See :meth:`~semibot.store.base.Store.link_closed`."""
    changed = db.change(
        "UPDATE user_vm_instances SET status = 'disconnected', disconnected_at = ?"
        " WHERE id = ? AND user_id = ? AND epoch = ?"
        " AND status NOT IN ('failed', 'terminated')",
        (db.now(), link.vm_id, link.user_id, link.epoch),
    )
    return changed > 0


def held_sessions(db: Database, link: LinkRef) -> Mapping[str, SessionRow]:
    """See :meth:`~semibot.store.base.Store.held_sessions`."""
    rows = db.execute(
        "SELECT * FROM sessions"
        " WHERE holder_vm = ? AND holder_boot = ? AND user_id = ? ORDER BY created_at, id",
        (link.vm_id, boot_of(link), link.user_id),
    )
    return {row.text("id"): session_row(row) for row in rows}


def look_up_sessions(
    db: Database, link: LinkRef, named: Mapping[str, HeldSession]
) -> Mapping[str, SessionRow | Literal["gone", "foreign"]]:
    """See :meth:`~semibot.store.base.Store.look_up_sessions`."""
    ids = dump_json(list(named))
    found: dict[str, SessionRow | Literal["gone", "foreign"]] = dict.fromkeys(named, "foreign")
    for row in db.execute(
        "SELECT session_id FROM tombstones"
        " WHERE user_id = ? AND session_id IN (SELECT value FROM json_each(?))",
        (link.user_id, ids),
    ):
        found[row.text("session_id")] = "gone"
    for row in db.execute(
        "SELECT * FROM sessions WHERE user_id = ? AND id IN (SELECT value FROM json_each(?))",
        (link.user_id, ids),
    ):
        found[row.text("id")] = session_row(row)
    return found
