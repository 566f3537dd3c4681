"""A user of a store, with a VM: short words for what hosts do all day, for tests of stores."""

from __future__ import annotations

from typing import Self, final

from semibot.store.base import (
    CancelAsked,
    EventsIn,
    IntakeResult,
    LinkAccepted,
    LinkClaim,
    LinkRef,
    LinkRefused,
    MessageAccepted,
    NewMessage,
    NewSession,
    OnBusy,
    SessionHeld,
    SessionWork,
    Store,
    StoredEvent,
    VmRow,
)
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    RunStarted,
    SessionEvent,
    TextChunk,
    encode_event,
)


@final
class StoreUser:
    """A user whose VM is linked to the host. Made by :meth:`join`.

    Identifiers count up and begin with the user's, so that several users share a store.
    """

    def __init__(self, store: Store, user_id: str, link: LinkRef) -> None:
        self.store = store
        self.id = user_id
        self.link: LinkRef = link
        """The newest link; :meth:`dial` makes another."""
        self._dial = 1
        self._count = 0

    @classmethod
    async def join(
        cls, store: Store, user_id: str = "ada", *, level: int = 2, org_id: str = "org"
    ) -> Self:
        """Make the user, an ``external`` VM, and its first link."""
        await store.ensure_user(user_id, org_id, vm_mode=None)
        vm = await store.ensure_vm(user_id, f"{user_id}-vm", "external")
        nobody = LinkRef(vm_id=vm.id, user_id=user_id, epoch=0, boot_hash=None)
        user = cls(store, user_id, nobody)
        await user.dial("boot-1" if level > 1 else None)
        return user

    async def dial(self, boot_hash: str | None) -> LinkAccepted:
        """Link a VM process; the newest link is this one."""
        answer = await self.try_to_dial(boot_hash, self._dial)
        match answer:
            case LinkAccepted():
                self._dial += 1
                self.link = link_of(answer.vm)
                return answer
            case LinkRefused():
                raise AssertionError(f"the link was refused: {answer.detail}")

    async def try_to_dial(
        self, boot_hash: str | None, dial: int, ticket_hash: str | None = None
    ) -> LinkAccepted | LinkRefused:
        """Let a VM process ask for a link."""
        return await self.store.accept_link(
            LinkClaim(
                user_id=self.id,
                boot_hash=boot_hash,
                dial=dial,
                level=1 if boot_hash is None else 2,
                ticket_hash=ticket_hash,
            )
        )

    def new_id(self, kind: str) -> str:
        """Return a fresh identifier."""
        self._count += 1
        return f"{self.id}-{kind}-{self._count}"

    async def open_session(self, message: str = "hello") -> MessageAccepted:
        """Send the first message of a new session."""
        new = NewSession(agent_id=None, runtime_type="semigraph", openclaw_config=None)
        return await self.send(self.new_id("session"), message, create=new)

    async def send(
        self,
        session_id: str,
        message: str = "hello",
        *,
        create: NewSession | None = None,
        on_busy: OnBusy = "enqueue",
        key: tuple[str, str] | None = None,
    ) -> MessageAccepted:
        """Send a message."""
        return await self.store.accept_message(
            NewMessage(
                user_id=self.id,
                session_id=session_id,
                create=create,
                message=message,
                message_id=self.new_id("message"),
                run_id=self.new_id("run"),
                command_id=self.new_id("command"),
                cancel_ids=tuple(self.new_id("cancel") for _ in range(17)),
                on_busy=on_busy,
                expires_at=None,
                idempotency=key,
            )
        )

    async def cancel(self, session_id: str, run_id: str | None = None) -> CancelAsked:
        """Ask for a run to be cancelled."""
        return await self.store.ask_cancel(
            self.id, session_id, run_id, self.new_id("cancel"), "user"
        )

    async def work(self, session_id: str) -> SessionWork:
        """Return what the session still has to have done; there is something."""
        work = await self.store.session_work(session_id)
        if work is None:
            raise AssertionError(f"there is no work for {session_id}")
        return work

    async def write(self, session_id: str) -> SessionHeld:
        """Hold the session, and mark its first command that was never written as written."""
        held = await self.store.hold_session(session_id, self.link)
        waiting = [each for each in (await self.work(session_id)).commands if not each.boot_hash]
        await self.store.mark_written(waiting[0].id, self.link)
        return held

    async def events(
        self, accepted: MessageAccepted, *events: SessionEvent, after: int | None = None
    ) -> EventsIn:
        """Return events of a run as a VM would send them.

        Args:
            accepted: The message that the run answers.
            *events: What it says.
            after: Number before the first; by default the committed maximum.
        """
        term, last_seq = await self.store.tail_start(accepted.session_id) or (1, 0)
        first = (last_seq if after is None else after) + 1
        return EventsIn(
            session_id=accepted.session_id,
            term=term,
            events=tuple(
                StoredEvent(
                    term=term,
                    seq=seq,
                    run_id=accepted.run_id,
                    type=event.type,
                    data=encode_event(event),
                )
                for seq, event in enumerate(events, first)
            ),
        )

    async def say(self, accepted: MessageAccepted, *events: SessionEvent) -> IntakeResult:
        """Commit the next events of a run."""
        return await self.store.commit_intake(self.link, [await self.events(accepted, *events)])

    async def answer(self, accepted: MessageAccepted, *chunks: str) -> IntakeResult:
        """Write a run's message to the VM, and let the VM answer it."""
        await self.write(accepted.session_id)
        said = [TextChunk(content=chunk) for chunk in chunks]
        return await self.say(accepted, started(accepted), *said, completed(accepted))


def link_of(vm: VmRow) -> LinkRef:
    """Return the link that a VM's row says was accepted last."""
    return LinkRef(vm_id=vm.id, user_id=vm.user_id, epoch=vm.epoch, boot_hash=vm.boot_hash)


def started(accepted: MessageAccepted, message: str = "hello") -> RunStarted:
    """Return the first event of a run."""
    return RunStarted(run_id=accepted.run_id, message_id=accepted.message_id, message=message)


def completed(accepted: MessageAccepted, final_response: str = "") -> ExecutionComplete:
    """Return the end of a run that was answered."""
    return ExecutionComplete(run_id=accepted.run_id, final_response=final_response)


def cancelled(accepted: MessageAccepted) -> ExecutionComplete:
    """Return the end of a run that was cancelled."""
    return ExecutionComplete(run_id=accepted.run_id, cancelled=True)


def failed(accepted: MessageAccepted, code: str = "MODEL_ERROR") -> ExecutionError:
    """Return the end of a run that failed."""
    return ExecutionError(run_id=accepted.run_id, code=code, error="it did not work")
