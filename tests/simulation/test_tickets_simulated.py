"""What has expired, or was used up by another, lets nobody in, whoever comes with it."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest
import trio

from semibot.host.vm_socket import VmSocket
from semibot.security import tokens
from semibot.store import _vms
from semibot.testing.simulation import simulate

KINDS: Final = frozenset({"token_expiry", "ticket_replay"})


def hits(
    kinds: frozenset[str] = KINDS, *, seeds: range = range(1, 2), minutes: float = 0.15
) -> tuple[Counter[str], set[str]]:
    """Return how often each kind hit, and what was violated."""
    counted = Counter[str]()
    violated = set[str]()
    for seed in seeds:
        report = simulate(seed, minutes=minutes, faults=kinds)
        counted.update(report.faults)
        violated |= {f"{each.invariant}: {each.text}" for each in report.violations}
    return counted, violated


def test_expired_tokens_and_spent_tickets_let_nobody_in() -> None:
    counted, violated = hits()
    assert violated == set()
    assert min(counted[kind] for kind in KINDS) >= 2


def test_hosts_and_vms_that_are_killed_meanwhile_change_nothing() -> None:
    counted, violated = hits(KINDS | {"host_kill"}, seeds=range(1, 3), minutes=2.0)
    assert violated == set()
    assert sum(counted[kind] for kind in KINDS) >= 1


def is_found(text: str) -> bool:
    _, violated = hits()
    return any(text in each for each in violated)


def test_a_ticket_that_is_not_looked_at_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_vms, "_gate", lambda *_: None)
    assert is_found("ticket")


def test_an_expiry_that_is_not_looked_at_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def signed(self: tokens.Tokens, token: str, audience: str) -> object:
        return self._signed(token)

    monkeypatch.setattr(tokens.Tokens, "_verified", signed)
    assert is_found("expired token")


def test_a_token_that_is_never_renewed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(VmSocket, "_renew_token", wait)
    assert is_found("new token is refused")
