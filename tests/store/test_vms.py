from __future__ import annotations

import attrs
import pytest

from semibot.config.deadlines import Deadlines
from semibot.errors import NotFound
from semibot.store.base import (
    AgentRow,
    LinkAccepted,
    LinkClaim,
    LinkRef,
    LinkRefused,
    NewMessage,
    NewSession,
)
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports
from semibot.wire.frames import HeldSession

LATER = 10**13
"""A time in a few centuries."""


@pytest.fixture
async def store(tmp_path):
    path = tmp_path / "semibot.db"
    async with open_sqlite_store(path, ports=simulated_ports(), deadlines=Deadlines()) as store:
        await store.ensure_user("ada", "acme", vm_mode="local")
        await store.ensure_user("bob", "acme", vm_mode=None)
        yield store


@pytest.fixture
async def vm(store):
    return await store.ensure_vm("ada", "vm-1", "local")


def claim(boot="boot-1", *, dial=1, ticket=None, user="ada", level=2):
    return LinkClaim(user_id=user, boot_hash=boot, dial=dial, level=level, ticket_hash=ticket)


def level_1(*, ticket=None):
    return claim(None, dial=0, ticket=ticket, level=1)


def ref(accepted):
    vm = accepted.vm
    return LinkRef(vm_id=vm.id, user_id=vm.user_id, epoch=vm.epoch, boot_hash=vm.boot_hash)


async def make_session(store, session_id, user="ada"):
    await store.accept_message(
        NewMessage(
            user_id=user,
            session_id=session_id,
            create=NewSession(agent_id=None, runtime_type="semigraph", openclaw_config=None),
            message="hello",
            message_id=f"{session_id}-message",
            run_id=f"{session_id}-run",
            command_id=f"{session_id}-command",
            cancel_ids=(),
            on_busy="enqueue",
            expires_at=None,
            idempotency=None,
        )
    )


async def hold_with_written_run(store, session_id, link):
    await make_session(store, session_id)
    await store.hold_session(session_id, link)
    await store.mark_written(f"{session_id}-command", link)


# --- users, agents --------------------------------------------------------------------


async def test_a_user_has_the_mode_of_the_organization(store):
    assert (await store.get_user("ada")).vm_mode == "local"
    assert (await store.get_user("bob")).vm_mode == "local"
    assert await store.get_user("eve") is None


async def test_an_organization_without_a_mode_has_the_schemas(store):
    user = await store.ensure_user("eve", "other", vm_mode=None)
    assert (user.org_id, user.vm_mode) == ("other", "docker")


async def test_a_user_stays_in_the_organization(store):
    user = await store.ensure_user("ada", "other", vm_mode="docker")
    assert (user.org_id, user.vm_mode) == ("acme", "local")


AGENT = AgentRow(
    id="agent-1",
    org_id="acme",
    name="Clerk",
    agent_config={"model": "m"},
    runtime_type="semigraph",
    openclaw_config=None,
)


async def test_an_agent_is_made_and_replaced(store):
    await store.put_agent(AGENT)
    assert await store.get_agent("acme", "agent-1") == AGENT
    changed = attrs.evolve(AGENT, name="Judge", openclaw_config={"a": 1})
    await store.put_agent(changed)
    assert await store.get_agent("acme", "agent-1") == changed


async def test_an_agent_belongs_to_its_organization(store):
    await store.put_agent(AGENT)
    assert await store.get_agent("other", "agent-1") is None
    with pytest.raises(NotFound):
        await store.put_agent(attrs.evolve(AGENT, org_id="other", name="Thief"))
    assert await store.get_agent("acme", "agent-1") == AGENT


# --- rows -----------------------------------------------------------------------------


async def test_a_user_has_one_active_vm(store, vm):
    assert (vm.id, vm.status, vm.mode, vm.attempt, vm.epoch) == ("vm-1", "starting", "local", 0, 0)
    assert await store.ensure_vm("ada", "vm-2", "docker") == vm
    assert await store.active_vms() == (vm,)


async def test_a_vm_is_somebodys(store):
    with pytest.raises(NotFound, match="no user eve"):
        await store.ensure_vm("eve", "vm-9", "local")
    assert await store.newest_vm("ada") is None


async def test_the_newest_vm_is_the_active_one_else_the_last(store, vm):
    await store.set_vm_status("vm-1", "terminated")
    assert (await store.newest_vm("ada")).id == "vm-1"
    assert await store.active_vms() == ()
    await store.ensure_vm("ada", "vm-2", "local")
    assert (await store.newest_vm("ada")).id == "vm-2"
    await store.set_vm_status("vm-2", "failed", last_error="exit 1")
    newest = await store.newest_vm("ada")
    assert (newest.id, newest.status, newest.last_error) == ("vm-2", "failed", "exit 1")


async def test_history_is_not_changed(store, vm):
    await store.set_vm_status("vm-1", "terminated")
    before = await store.newest_vm("ada")
    assert await store.set_vm_status("vm-1", "ready") is None
    with pytest.raises(NotFound, match="no active VM vm-1"):
        await store.begin_attempt("vm-1", "ticket", LATER)
    assert await store.newest_vm("ada") == before


async def test_an_attempt_is_counted_and_clears_the_last_error(store, vm):
    await store.set_vm_status("vm-1", "starting", last_error="exit 1")
    first = await store.begin_attempt("vm-1", "ticket-1", LATER)
    assert (first.attempt, first.attempts, first.last_error) == (1, 1, None)
    assert first.last_bootstrap_at is not None
    second = await store.begin_attempt("vm-1", "ticket-2", LATER)
    assert (second.attempt, second.attempts) == (2, 2)


async def test_a_status_keeps_the_last_error_that_it_does_not_replace(store, vm):
    await store.set_vm_status("vm-1", "starting", last_error="exit 1")
    moved = await store.set_vm_status("vm-1", "disconnected")
    assert (moved.last_error, moved.status) == ("exit 1", "disconnected")
    assert moved.disconnected_at is not None


async def test_a_row_that_turns_external_needs_no_ticket_any_more(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    await store.accept_link(claim(ticket="ticket-1"))
    turned = await store.ensure_vm("ada", "vm-2", "external")
    assert (turned.id, turned.mode, turned.attempt, turned.attempts) == ("vm-1", "external", 0, 0)
    accepted = await store.accept_link(claim("boot-2"))
    assert isinstance(accepted, LinkAccepted)
    assert await store.ensure_vm("ada", "vm-2", "external") == accepted.vm


# --- accepting links ------------------------------------------------------------------


async def accept(store, claim):
    accepted = await store.accept_link(claim)
    assert isinstance(accepted, LinkAccepted), accepted
    return accepted


async def refuse(store, claim):
    before = await store.newest_vm(claim.user_id)
    refused = await store.accept_link(claim)
    assert isinstance(refused, LinkRefused), refused
    assert await store.newest_vm(claim.user_id) == before
    return refused.code, refused.reason


async def test_a_stranger_is_refused(store, vm):
    assert await refuse(store, claim(user="eve")) == (4004, "unknown_user")


async def test_a_user_without_a_vm_is_refused(store):
    assert await refuse(store, claim()) == (4003, "no_vm")


async def test_a_link_of_history_is_refused(store, vm):
    await store.set_vm_status("vm-1", "failed")
    assert (await refuse(store, claim()))[0] == 4003


async def test_accepting_makes_the_row_ready(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    await store.set_vm_status("vm-1", "disconnected", last_error="exit 1")
    accepted = await accept(store, claim(ticket="ticket-1", dial=3))
    row = accepted.vm
    assert (row.status, row.epoch, row.level, row.boot_hash) == ("ready", 1, 2, "boot-1")
    assert (row.attempt, row.attempts) == (1, 0)
    assert (row.disconnected_at, row.last_error) == (None, None)
    assert row.last_heartbeat_at is not None
    assert (accepted.losses, accepted.is_same_process) == ((), False)


async def test_a_row_that_never_had_a_ticket_takes_whoever_has_the_token(store):
    await store.ensure_vm("ada", "vm-1", "external")
    await accept(store, claim("boot-1", dial=5))
    second = await accept(store, claim("boot-2", dial=1))
    assert (second.vm.epoch, second.vm.boot_hash) == (2, "boot-2")
    assert not second.is_same_process
    third = await accept(store, level_1())
    assert (third.vm.level, third.vm.boot_hash) == (1, None)
    assert (await accept(store, claim("boot-3"))).vm.level == 2


@pytest.mark.parametrize("ticket", [None, "another"])
async def test_a_first_link_needs_the_ticket(store, vm, ticket):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    assert await refuse(store, claim(ticket=ticket)) == (4001, "refused")
    assert (await refuse(store, attrs.evolve(level_1(), ticket_hash=ticket)))[0] == 4001


async def test_a_ticket_where_none_was_issued_is_wrong(store, vm):
    assert (await refuse(store, claim(ticket="made up")))[0] == 4001


async def test_a_ticket_of_another_user_is_wrong(store, vm):
    await store.ensure_vm("bob", "vm-b", "local")
    await store.begin_attempt("vm-b", "ticket-b", LATER)
    assert (await refuse(store, claim(ticket="ticket-b")))[0] == 4001


async def test_a_ticket_expires(store, vm):
    row = await store.begin_attempt("vm-1", "ticket-1", 5)
    assert row.last_bootstrap_at > 5
    assert (await refuse(store, claim(ticket="ticket-1")))[0] == 4001


async def test_only_the_newest_ticket_counts(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    await store.begin_attempt("vm-1", "ticket-2", LATER)
    assert (await refuse(store, claim(ticket="ticket-1")))[0] == 4001
    await accept(store, claim(ticket="ticket-2"))


async def test_a_spent_ticket_is_good_for_the_process_that_spent_it(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    await accept(store, claim("boot-1", dial=1, ticket="ticket-1"))
    again = await accept(store, claim("boot-1", dial=2, ticket="ticket-1"))
    assert again.is_same_process
    assert (await refuse(store, claim("boot-2", dial=9, ticket="ticket-1")))[0] == 4001
    assert (await refuse(store, level_1(ticket="ticket-1")))[0] == 4001


async def test_a_process_that_was_accepted_comes_back_without_a_ticket(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    await accept(store, claim("boot-1", ticket="ticket-1"))
    again = await accept(store, claim("boot-1", dial=2))
    assert (again.vm.epoch, again.is_same_process) == (2, True)
    assert (await refuse(store, claim("boot-2", dial=3)))[0] == 4001


async def test_a_process_may_come_back_while_the_next_one_is_started(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    await accept(store, claim("boot-1", ticket="ticket-1"))
    await store.begin_attempt("vm-1", "ticket-2", LATER)
    await accept(store, claim("boot-1", dial=2))
    newer = await accept(store, claim("boot-2", ticket="ticket-2"))
    assert not newer.is_same_process
    assert (await refuse(store, claim("boot-1", dial=3)))[0] == 4001


@pytest.mark.parametrize("dial", [1, 2])
async def test_an_older_dial_changes_nothing(store, vm, dial):
    await accept(store, claim(dial=2))
    assert await refuse(store, claim(dial=dial)) == (4009, "older_dial")
    await accept(store, claim(dial=3))


async def test_level_1_needs_a_ticket_that_is_spent(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    assert (await refuse(store, level_1()))[0] == 4001
    first = await accept(store, level_1(ticket="ticket-1"))
    assert (first.vm.level, first.is_same_process) == (1, False)
    assert (await accept(store, level_1())).is_same_process
    replayed = await refuse(store, level_1(ticket="ticket-1"))
    assert replayed[0] == 4001


async def test_level_1_does_not_take_over_from_a_process_that_has_a_newer_attempt(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    await accept(store, claim(ticket="ticket-1"))
    assert await refuse(store, level_1()) == (4009, "other_instance")


async def test_level_1_takes_over_with_a_newer_ticket(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    await accept(store, level_1(ticket="ticket-1"))
    await store.begin_attempt("vm-1", "ticket-2", LATER)
    newer = await accept(store, level_1(ticket="ticket-2"))
    assert not newer.is_same_process


# --- sessions of a process that is replaced -------------------------------------------


async def test_another_process_ends_the_runs_of_the_one_before(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    first = await accept(store, claim("boot-1", ticket="ticket-1"))
    await hold_with_written_run(store, "s1", ref(first))
    await store.begin_attempt("vm-1", "ticket-2", LATER)
    second = await accept(store, claim("boot-2", ticket="ticket-2"))
    (loss,) = second.losses
    assert (loss.session_id, loss.term, loss.ended_runs) == ("s1", 2, ("s1-run",))
    assert [event.type for event in loss.events] == ["run_started", "execution_error"]
    assert "EXECUTION_PLANE_DISCONNECTED" in loss.events[1].data
    assert (await store.get_session("ada", "s1")).holder_vm is None
    assert await store.held_sessions(ref(second)) == {}


async def test_the_same_process_keeps_its_sessions(store, vm):
    first = await accept(store, claim())
    await hold_with_written_run(store, "s1", ref(first))
    again = await accept(store, claim(dial=2))
    assert again.losses == ()
    assert list(await store.held_sessions(ref(again))) == ["s1"]


async def test_a_new_level_1_process_replaces_the_one_before(store, vm):
    await store.begin_attempt("vm-1", "ticket-1", LATER)
    first = await accept(store, level_1(ticket="ticket-1"))
    await hold_with_written_run(store, "s1", ref(first))
    assert list(await store.held_sessions(ref(await accept(store, level_1())))) == ["s1"]
    await store.begin_attempt("vm-1", "ticket-2", LATER)
    second = await accept(store, level_1(ticket="ticket-2"))
    assert [loss.session_id for loss in second.losses] == ["s1"]


# --- links that are up ----------------------------------------------------------------


async def test_a_heartbeat_of_an_older_link_counts_for_nothing(store, vm):
    old = ref(await accept(store, claim()))
    new = ref(await accept(store, claim(dial=2)))
    assert await store.touch_vm(new)
    before = await store.newest_vm("ada")
    assert not await store.touch_vm(old)
    assert not await store.link_closed(old)
    assert not await store.touch_vm(attrs.evolve(new, user_id="bob"))
    assert await store.newest_vm("ada") == before


async def test_a_link_that_closes_leaves_the_row_disconnected(store, vm):
    link = ref(await accept(store, claim()))
    assert await store.link_closed(link)
    row = await store.newest_vm("ada")
    assert (row.status, row.epoch) == ("disconnected", link.epoch)
    assert row.disconnected_at is not None
    await store.set_vm_status("vm-1", "terminated")
    assert not await store.link_closed(link)
    assert not await store.touch_vm(link)


async def test_what_a_vm_names_is_looked_up_among_its_users_sessions(store, vm):
    link = ref(await accept(store, claim()))
    await make_session(store, "kept")
    await make_session(store, "deleted")
    await make_session(store, "bobs", user="bob")
    await make_session(store, "bobs deleted", user="bob")
    await store.delete_session("ada", "deleted", "stop-1")
    await store.delete_session("bob", "bobs deleted", "stop-2")
    names = ["kept", "deleted", "bobs", "bobs deleted", "made up"]
    held = HeldSession(term=1, first_seq=1, last_seq=0)
    found = await store.look_up_sessions(link, dict.fromkeys(names, held))
    assert found == {
        "kept": await store.get_session("ada", "kept"),
        "deleted": "gone",
        "bobs": "foreign",
        "bobs deleted": "foreign",
        "made up": "foreign",
    }
    assert await store.look_up_sessions(link, {}) == {}
