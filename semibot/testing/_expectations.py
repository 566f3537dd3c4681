"""How the checks of a conformance suite say what they want."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeAlias

from semibot.store.base import Store

StoreCheck: TypeAlias = Callable[[Store], Awaitable[None]]
"""Asks one thing of an empty store; raises ``AssertionError`` if the answer is wrong."""


def expect(actual: object, wanted: object) -> None:
    """Check that two values are equal."""
    if actual != wanted:
        raise AssertionError(f"expected {wanted!r}, got {actual!r}")


@contextmanager
def expect_raises(*kinds: type[Exception]) -> Generator[None]:
    """Check that the block raises one of *kinds*."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"expected {' or '.join(kind.__name__ for kind in kinds)}")
