"""VM, audit and usage over HTTP."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from http_kit import ANN, BOB, Host

KEYED = {**ANN, "idempotency-key": "k1"}
REBOOTSTRAP = "/api/v1/vm/rebootstrap"


async def test_a_user_without_a_vm_has_a_missing_one() -> None:
    assert (await Host().ask("GET", "/api/v1/vm/status")).data == {"status": "missing"}


async def test_the_times_of_a_vm_are_for_people() -> None:
    host = Host()
    host.scheduler.state = {
        "status": "disconnected",
        "bootstrapAttempts": 3,
        "lastBootstrapAt": 1500,
        "lastHeartbeatAt": None,
        "retryAfterMs": 4000,
    }
    data = (await host.ask("GET", "/api/v1/vm/status")).data
    assert data["lastBootstrapAt"] == "1970-01-01T00:00:01.500Z"
    assert data["lastHeartbeatAt"] is None
    assert data["bootstrapAttempts"] == 3
    assert data["retryAfterMs"] == 4000


async def test_a_vm_is_started_anew() -> None:
    host = Host()
    for body in (None, {}):
        answer = await host.ask("POST", REBOOTSTRAP, body)
        assert answer.data == {"ready": False, "status": "provisioning", "instanceId": "v1"}
    assert host.scheduler.rebootstraps == 2
    assert host.store.users == ["ann", "ann"]


async def test_a_rebootstrap_takes_no_fields() -> None:
    answer = await Host().ask("POST", REBOOTSTRAP, {"force": True})
    assert (answer.status, answer.code) == (400, "VALIDATION_FAILED")


async def test_a_repeated_rebootstrap_starts_nothing_again() -> None:
    host = Host()
    await host.ask("POST", REBOOTSTRAP, headers=KEYED)
    host.store.vm = SimpleNamespace(last_bootstrap_at=2_000_000_000_000)
    host.scheduler.state = {"status": "ready", "instanceId": "v1", "mode": "local"}
    answer = await host.ask("POST", REBOOTSTRAP, headers=KEYED)
    assert answer.data == {"ready": True, "status": "ready", "instanceId": "v1"}
    assert host.scheduler.rebootstraps == 1


async def test_a_repeated_rebootstrap_that_had_no_effect_has_one_now() -> None:
    host = Host()
    host.store.vm = SimpleNamespace(last_bootstrap_at=5)
    await host.ask("POST", REBOOTSTRAP, headers=KEYED)
    await host.ask("POST", REBOOTSTRAP, headers=KEYED)
    assert host.scheduler.rebootstraps == 2


async def test_reports_are_for_their_owner() -> None:
    host = Host()
    answer = await host.ask("GET", "/api/v1/audit", headers=BOB)
    assert answer.data == {"audit": [{"event": "login", "user": "bob"}], "next_cursor": None}
    answer = await host.ask("GET", "/api/v1/usage?limit=7&days=3")
    assert answer.data == {
        "usage": [{"model": "m", "limit": 7}],
        "daily": [{"day": "2026-01-01", "days": 3}],
        "next_cursor": "n",
    }


@pytest.mark.parametrize("days", ["0", "367", "x"])
async def test_an_odd_number_of_days_is_refused(days: str) -> None:
    answer = await Host().ask("GET", f"/api/v1/usage?days={days}")
    assert (answer.status, answer.code) == (400, "VALIDATION_FAILED")
