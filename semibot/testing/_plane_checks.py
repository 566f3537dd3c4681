"""What any store has to do with VMs, their links and reports; a part of ``store_conformance``."""

from __future__ import annotations

from typing import Final

import attrs

from semibot.errors import IdempotencyConflict, LinkFenced, LocalProtocolError, NotFound
from semibot.store.base import AgentRow, LinkAccepted, LinkRefused, NewSession, ReportIn, Store
from semibot.wire.codec import JsonObject
from semibot.wire.frames import HeldSession

from ._expectations import StoreCheck, expect, expect_raises
from .store_user import StoreUser, link_of, started

SOON: Final = 2**52
"""A time that has not come; milliseconds since 1970."""


async def writing_can_be_tried(store: Store) -> None:
    """A store that works says so."""
    await store.check()
    expect(store.failure, None)


async def users_have_an_organization_and_agents(store: Store) -> None:
    """What is made once stays; agents are the organization's."""
    user = await store.ensure_user("ada", "org", vm_mode="local")
    expect((user.id, user.org_id, user.vm_mode), ("ada", "org", "local"))
    expect(await store.ensure_user("ada", "other", vm_mode=None), user)
    expect((await store.get_user("ada"), await store.get_user("bob")), (user, None))
    agent = AgentRow(
        id="agent",
        org_id="org",
        name="Agent",
        agent_config={"model": "m"},
        runtime_type="semigraph",
        openclaw_config=None,
    )
    await store.put_agent(agent)
    expect(await store.get_agent("org", "agent"), agent)
    expect(await store.get_agent("other", "agent"), None)


# --- links ----------------------------------------------------------------------------


async def a_user_has_one_active_vm(store: Store) -> None:
    """Asking for it again returns it; one that has ended is history."""
    await store.ensure_user("ada", "org", vm_mode=None)
    vm = await store.ensure_vm("ada", "vm-1", "local")
    expect((vm.id, vm.status, vm.mode), ("vm-1", "starting", "local"))
    expect(await store.ensure_vm("ada", "vm-2", "local"), vm)
    expect([each.id for each in await store.active_vms()], ["vm-1"])
    await store.lose_vm(
        "vm-1", status="failed", last_error="exited", code="INTERRUPTED", message="it ended"
    )
    expect(await store.active_vms(), ())
    newest = await store.newest_vm("ada")
    expect(newest and (newest.status, newest.last_error, newest.epoch), ("failed", "exited", 1))
    expect(await store.set_vm_status("vm-1", "ready"), None)
    expect((await store.ensure_vm("ada", "vm-2", "local")).id, "vm-2")


async def a_ticket_is_spent_once(store: Store) -> None:
    """The process that spent it may show it again, and nobody else."""
    await store.ensure_user("ada", "org", vm_mode=None)
    vm = await store.ensure_vm("ada", "vm", "local")
    await store.begin_attempt(vm.id, "ticket", SOON)
    ada = StoreUser(store, "ada", link_of(vm))
    wrong = await ada.try_to_dial("boot-1", 1, "other")
    expect(isinstance(wrong, LinkRefused) and wrong.code, 4001)
    without = await ada.try_to_dial("boot-1", 1)
    expect(isinstance(without, LinkRefused) and without.code, 4001)
    first = await ada.try_to_dial("boot-1", 1, "ticket")
    expect(isinstance(first, LinkAccepted) and (first.vm.status, first.vm.epoch), ("ready", 1))
    again = await ada.try_to_dial("boot-1", 2, "ticket")
    expect(isinstance(again, LinkAccepted) and again.is_same_process, True)
    thief = await ada.try_to_dial("boot-2", 1, "ticket")
    expect(isinstance(thief, LinkRefused) and thief.code, 4001)
    older = await ada.try_to_dial("boot-1", 1)
    expect(isinstance(older, LinkRefused) and older.code, 4009)


async def a_newer_link_fences_the_older_one(store: Store) -> None:
    """Whatever the older link still wants to write is refused."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    command_id = (await ada.work(accepted.session_id)).commands[0].id
    events = await ada.events(accepted, started(accepted))
    old = ada.link
    again = await ada.dial("boot-1")
    expect((again.is_same_process, again.losses, again.vm.epoch), (True, (), old.epoch + 1))
    with expect_raises(LinkFenced):
        await store.commit_intake(old, [events])
    with expect_raises(LinkFenced):
        await store.hold_session(accepted.session_id, old)
    with expect_raises(LinkFenced):
        await store.mark_written(command_id, old)
    expect((await store.touch_vm(old), await store.link_closed(old)), (False, False))
    expect(list(await store.held_sessions(ada.link)), [accepted.session_id])
    expect((await store.commit_intake(ada.link, [events])).refused, {})
    expect((await store.touch_vm(ada.link), await store.link_closed(ada.link)), (True, True))


async def another_process_loses_the_sessions_of_the_first(store: Store) -> None:
    """Accepting it and losing what the first one held are one transaction."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    replaced = await ada.dial("boot-2")
    expect(replaced.is_same_process, False)
    expect([loss.ended_runs for loss in replaced.losses], [(accepted.run_id,)])
    expect(await store.held_sessions(ada.link), {})
    expect(await store.tail_start(accepted.session_id), (2, 2))


async def a_vm_learns_what_became_of_its_sessions(store: Store) -> None:
    """Deleted ones are gone, and what is not the user's is foreign."""
    ada = await StoreUser.join(store)
    bob = await StoreUser.join(store, "bob")
    mine, deleted, other = (
        await ada.open_session(),
        await ada.open_session(),
        await bob.open_session(),
    )
    await store.delete_session("ada", deleted.session_id, "stop")
    named = [mine.session_id, deleted.session_id, other.session_id, "none"]
    held = HeldSession(term=1, first_seq=1, last_seq=0)
    found = await store.look_up_sessions(ada.link, dict.fromkeys(named, held))
    expect(found[mine.session_id], await store.get_session("ada", mine.session_id))
    expect([found[session_id] for session_id in named[1:]], ["gone", "foreign", "foreign"])


# --- commands -------------------------------------------------------------------------


async def a_session_is_held_with_what_it_needs(store: Store) -> None:
    """Its agent, its next number and its newest snapshot come along."""
    ada = await StoreUser.join(store)
    agent = AgentRow(
        id="agent",
        org_id="org",
        name="Agent",
        agent_config={},
        runtime_type="semigraph",
        openclaw_config=None,
    )
    await store.put_agent(agent)
    new = NewSession(agent_id="agent", runtime_type="openclaw", openclaw_config={"a": 1})
    first = await ada.send("s", create=new)
    held = await store.hold_session("s", ada.link)
    expect((held.agent, held.next_seq, held.snapshot), (agent, 1, None))
    expect((held.session.runtime_type, held.session.openclaw_config), ("openclaw", {"a": 1}))
    expect((held.session.holder_vm, held.session.holder_boot), (ada.link.vm_id, "boot-1"))
    expect(await store.hold_session("s", ada.link), held)
    snapshot: JsonObject = {"covers_seq": 3, "checkpoint": {"a": 1}, "short_term_memory": {"b": 2}}
    await ada.answer(first, "answer")
    result = await store.commit_intake(
        ada.link, [_report(None, "snapshot_sync", {**snapshot, "term": 1}, "s")]
    )
    expect(result.dropped, ())
    await store.lose_session("s", code="INTERRUPTED", message="lost")
    held = await store.hold_session("s", ada.link)
    expect((held.session.term, held.next_seq, held.snapshot), (2, 4, snapshot))


async def a_command_is_written_by_the_holder_only(store: Store) -> None:
    """What is done already is not to be written at all."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    (command,) = (await ada.work(accepted.session_id)).commands
    with expect_raises(LinkFenced):
        await store.mark_written(command.id, ada.link)
    await ada.write(accepted.session_id)
    run = await store.get_run(accepted.run_id)
    expect(run and run.is_written, True)
    (command,) = (await ada.work(accepted.session_id)).commands
    expect(command.boot_hash, "boot-1")
    await store.finish_commands([command.id])
    expect((await ada.work(accepted.session_id)).commands, ())
    with expect_raises(NotFound):
        await store.mark_written(command.id, ada.link)
    with expect_raises(NotFound):
        await store.mark_written("none", ada.link)


async def a_level_1_vm_holds_sessions_too(store: Store) -> None:
    """Its process has no name, and stands for itself."""
    ada = await StoreUser.join(store, level=1)
    accepted = await ada.open_session()
    held = await ada.write(accepted.session_id)
    expect(held.session.holder_boot, "level1")
    expect((await ada.say(accepted, started(accepted))).committed, {accepted.session_id: 1})
    expect(list(await store.held_sessions(ada.link)), [accepted.session_id])


async def two_processes_do_not_hold_one_session(store: Store) -> None:
    """The first has to lose it before the second may have it."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.write(accepted.session_id)
    stranger = attrs.evolve(ada.link, boot_hash="boot-2")
    with expect_raises(LocalProtocolError):
        await store.hold_session(accepted.session_id, stranger)


# --- reports --------------------------------------------------------------------------


async def a_report_takes_effect_once(store: Store) -> None:
    """A repeat changes nothing and is acknowledged again; what is wrong is dropped."""
    ada = await StoreUser.join(store)
    usage = _report("id-1", "usage_report", {"model": "m", "tokens_in": 3, "tokens_out": 4})
    audit = _report("id-2", "audit_log", {"event": "login", "details": {"a": 1}})
    wrong = _report("id-3", "usage_report", {"model": 5})
    unknown = _report("id-4", "no_such_method", {})
    for _ in range(2):
        result = await store.commit_intake(ada.link, [usage, audit, wrong, unknown])
        expect(result.done_ids, ("id-1", "id-2", "id-3", "id-4"))
    await store.commit_intake(
        ada.link, [_report("id-5", "usage_report", {"model": "m", "tokens_in": 1, "tokens_out": 1})]
    )
    (day,) = await store.daily_usage("ada", 1)
    expect([day[name] for name in ("model", "tokens_in", "tokens_out")], ["m", 4, 5])
    page = await store.list_usage("ada", None, 1)
    expect(len((await store.list_usage("ada", page.next_cursor, 5)).rows), 1)
    (entry,) = (await store.list_audit("ada", None, 5)).rows
    expect((entry["event"], entry["details"]), ("login", {"a": 1}))
    expect((await store.list_audit("bob", None, 5)).rows, ())
    expect(await store.daily_usage("bob", 1), ())


async def memories_are_found_by_their_owner(store: Store) -> None:
    """The best hit comes first, with a score above 0."""
    ada = await StoreUser.join(store)
    for number, content in enumerate(("the cat sat", "a cat and a cat", "dogs bark")):
        params: JsonObject = {"agent_id": "agent", "content": content}
        await store.commit_intake(ada.link, [_report(f"id-{number}", "memory_write", params)])
    hits = await store.search_memories("ada", "cat", 5)
    expect([hit.content for hit in hits][:1], ["a cat and a cat"])
    expect((len(hits), all(hit.score > 0 for hit in hits)), (2, True))
    expect(len(await store.search_memories("ada", "cat", 1)), 1)
    expect(await store.search_memories("bob", "cat", 5), ())
    expect(await store.search_memories("ada", '" OR * ) (', 5), ())


async def a_snapshot_covers_what_is_committed(store: Store) -> None:
    """One of an older term, or beyond the committed maximum, is dropped."""
    ada = await StoreUser.join(store)
    accepted = await ada.open_session()
    await ada.answer(accepted)
    for number, (term, covers_seq) in enumerate(((2, 1), (1, 3))):
        params: JsonObject = {
            "checkpoint": {},
            "short_term_memory": {},
            "term": term,
            "covers_seq": covers_seq,
        }
        report = _report(f"id-{number}", "snapshot_sync", params, accepted.session_id)
        result = await store.commit_intake(ada.link, [report])
        expect([name for name, _ in result.dropped], [f"id-{number}"])
        expect(result.done_ids, (f"id-{number}",))
    expect((await store.hold_session(accepted.session_id, ada.link)).snapshot, None)


def _report(
    id: str | None, method: str, params: JsonObject, session_id: str = "__memory__"
) -> ReportIn:
    return ReportIn(id=id, session_id=session_id, method=method, params=params)


async def an_answer_is_remembered_under_its_key(store: Store) -> None:
    """The first answer comes back; another body under the key is refused."""
    await store.ensure_user("ada", "org", vm_mode=None)
    expect(await store.remember_answer("ada", "key", "hash", {"a": 1}), {"a": 1})
    expect(await store.remember_answer("ada", "key", "hash", {"a": 2}), {"a": 1})
    expect(await store.remember_answer("bob", "key", "other", {"b": 1}), {"b": 1})
    with expect_raises(IdempotencyConflict):
        await store.remember_answer("ada", "key", "other", {"a": 1})
    await store.prune()
    expect(await store.remember_answer("ada", "key", "hash", {"a": 3}), {"a": 1})


PLANE_CHECKS: Final[tuple[StoreCheck, ...]] = (
    writing_can_be_tried,
    users_have_an_organization_and_agents,
    a_user_has_one_active_vm,
    a_ticket_is_spent_once,
    a_newer_link_fences_the_older_one,
    another_process_loses_the_sessions_of_the_first,
    a_vm_learns_what_became_of_its_sessions,
    a_session_is_held_with_what_it_needs,
    a_command_is_written_by_the_holder_only,
    a_level_1_vm_holds_sessions_too,
    two_processes_do_not_hold_one_session,
    a_report_takes_effect_once,
    memories_are_found_by_their_owner,
    a_snapshot_covers_what_is_committed,
    an_answer_is_remembered_under_its_key,
)
"""The checks of this file."""
