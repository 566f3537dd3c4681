"""The store in SQLite does what every store has to do."""

from __future__ import annotations

import pytest

from semibot.store.base import Store
from semibot.testing._expectations import expect, expect_raises
from semibot.testing.store_conformance import STORE_CHECKS, StoreCheck
from semibot.testing.store_user import StoreUser


@pytest.mark.parametrize("check", STORE_CHECKS.values(), ids=STORE_CHECKS)
async def test_sqlite_conforms(check: StoreCheck, store: Store) -> None:
    await check(store)


def test_a_wrong_answer_fails_a_check() -> None:
    expect(1, 1)
    with pytest.raises(AssertionError, match="expected 2, got 1"):
        expect(1, 2)
    with pytest.raises(AssertionError, match="expected KeyError or ValueError"):
        with expect_raises(KeyError, ValueError):
            pass
    with pytest.raises(TypeError):
        with expect_raises(ValueError):
            raise TypeError


async def test_the_user_of_a_check_notices_what_is_missing(store: Store) -> None:
    ada = await StoreUser.join(store)
    with pytest.raises(AssertionError, match="no work"):
        await ada.work("none")
    await store.lose_vm(
        ada.link.vm_id, status="terminated", last_error=None, code="INTERRUPTED", message=""
    )
    with pytest.raises(AssertionError, match="refused"):
        await ada.dial("boot-2")
