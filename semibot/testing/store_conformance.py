"""What every :class:`~semibot.store.base.Store` has to do, as a suite that you can run on yours.

Each check gets an empty store, uses nothing but the protocol, and raises ``AssertionError``
with what it expected and what it got. With pytest and pytest-trio, one test runs them all:

.. code-block:: python

    @pytest.mark.parametrize("check", STORE_CHECKS.values(), ids=STORE_CHECKS)
    async def test_my_store_conforms(check: StoreCheck, tmp_path: Path) -> None:
        async with open_my_store(tmp_path) as store:
            await check(store)

Not in it, because the protocol cannot provoke them: failures of the disk, crashes, and
cancellation in the middle of a commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ._conversation_checks import CONVERSATION_CHECKS
from ._expectations import StoreCheck as StoreCheck
from ._intake_checks import INTAKE_CHECKS
from ._plane_checks import PLANE_CHECKS

STORE_CHECKS: Final[Mapping[str, StoreCheck]] = MappingProxyType(
    {
        getattr(check, "__name__", str(index)): check
        for index, check in enumerate((*PLANE_CHECKS, *CONVERSATION_CHECKS, *INTAKE_CHECKS))
    }
)
"""The checks by their names, which are what they check."""
