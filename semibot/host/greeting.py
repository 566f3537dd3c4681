"""What a VM is told when its link is accepted: ``init``, and the answer to its ``resume``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from semibot.errors import LocalProtocolError
from semibot.lifetimes import deadline
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.security.envelope import seal_keys
from semibot.store.base import SessionRow
from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.frames import (
    MAX_BATCH_BYTES,
    MAX_BATCH_FRAMES,
    MAX_EVENT_BYTES,
    MAX_FRAME_BYTES,
    HeldSession,
    Init,
    InitData,
    ProviderSettings,
    SessionStatus,
)
from semibot.wire.incoming import Incoming

from .intake import adopt_tail
from .vm_link import HeldHere, VmLink

if TYPE_CHECKING:
    from .links import Links

log: Final = get_logger(__name__)

_LIMITS: Final[JsonObject] = {
    "max_frame_bytes": MAX_FRAME_BYTES,
    "max_event_bytes": MAX_EVENT_BYTES,
    "max_batch_bytes": MAX_BATCH_BYTES,
    "max_batch_frames": MAX_BATCH_FRAMES,
}


def make_init(links: Links, link: VmLink, token: str) -> Init:
    """Return the ``init`` of a link.

    Args:
        links: Whose settings count.
        link: The link.
        token: The VM token exactly as it came in this link's ``auth``.
    """
    api_keys = _sealed_keys(links, token)
    vm = link.vm
    if link.level == 1:
        return Init(data=InitData(user_id=vm.user_id, org_id=vm.org_id, api_keys=api_keys))
    return Init(
        data=InitData(
            user_id=vm.user_id,
            org_id=vm.org_id,
            api_keys=api_keys,
            protocol=link.level,
            epoch=vm.epoch,
            limits=_LIMITS,
            heartbeat_interval_s=links.deadlines.link_heartbeat,
            dead_after_s=links.deadlines.link_dead_after,
            providers=_providers(links),
        )
    )


def _sealed_keys(links: Links, token: str) -> JsonObject:
    sealed: dict[str, JsonValue] = {}
    for name, provider in links.settings.providers.items():
        if provider.api_key:
            try:
                sealed |= seal_keys({name: provider.api_key}, token, partial(_nonce, links.ports))
            except LocalProtocolError as exc:
                log.warning("a provider key is left out", provider=name, reason=str(exc))
    return sealed


def _nonce(ports: Ports, size: int) -> bytes:
    return bytes.fromhex(ports.ids.new_id())[:size]


def _providers(links: Links) -> Mapping[str, ProviderSettings]:
    wanted, _, model = (links.settings.model or "").partition(":")
    return {
        name: ProviderSettings(
            base_url=provider.base_url,
            default_model=model if name == wanted and model else None,
        )
        for name, provider in links.settings.providers.items()
    }


async def settle_sessions(
    links: Links, link: VmLink, named: Mapping[str, HeldSession]
) -> Mapping[str, SessionStatus]:
    """Decide about the sessions that a VM names in ``resume``, and those that it does not.

    Afterwards *link* carries exactly the sessions that are answered with ``acked_seq``.

    Args:
        links: Where sessions are given up.
        link: The VM's new link.
        named: What it says that it holds.

    Raises:
        StoreError: If the store fails.
        DeadlineExceeded: ``store.commit``.
    """
    with deadline("store.commit", links.deadlines.store_commit):
        known = await links.store.look_up_sessions(link.ref, named)
        held = await links.store.held_sessions(link.ref)
    statuses: dict[str, SessionStatus] = {}
    for session_id, said in named.items():
        row = known.get(session_id, "foreign")
        if row == "gone":
            link.release(session_id, "gone")
            statuses[session_id] = SessionStatus(gone=True)
        elif isinstance(row, SessionRow) and session_id in held and said.term == row.term:
            statuses[session_id] = await _settle(links, link, row, said)
        else:
            link.release(session_id, "fenced")
            statuses[session_id] = SessionStatus(fenced=True)
    for session_id in sorted(held.keys() - link.sessions.keys()):
        await links.lose_session(
            link, session_id, message="the execution plane has lost it; send it again"
        )
        statuses[session_id] = SessionStatus(fenced=True)
    return statuses


async def _settle(links: Links, link: VmLink, row: SessionRow, said: HeldSession) -> SessionStatus:
    """Go on with a session, or fence it if the VM no longer has what is not committed."""
    committed = row.last_seq
    if said.first_seq > committed + 1 or said.last_seq < committed:
        return SessionStatus(fenced=True)  # lost by the caller, as nobody carries it
    tail = await adopt_tail(links.relay, row.id, row.term, committed)
    link.hold(row.id, HeldHere(Incoming(row.term, committed), tail, said.last_seq))
    if said.last_seq <= committed:
        tail.settle()
    return SessionStatus(acked_seq=committed)
