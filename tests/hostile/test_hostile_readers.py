"""Arbitrary and nearly valid bytes: everything that reads them answers with its one error."""

from __future__ import annotations

import pytest
from hostile_targets import TARGETS, Target, attack

EXAMPLES = 100


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name.replace(" ", "-"))
def test_nothing_but_the_one_error(target: Target) -> None:
    outcome = attack(target, EXAMPLES)
    # Both happen, so that it is known that the inputs are worth something. Streams go on
    # after what they do not understand.
    assert outcome.accepted >= 1
    assert outcome.refused >= 10 or target.is_stream


def test_an_error_that_is_another_one_is_found() -> None:
    def careless(data: bytes) -> None:
        target.read(data)
        if b"request_cancel" in data:
            raise KeyError("id")

    target = TARGETS[0]
    with pytest.raises(KeyError):
        attack(Target(name="", samples=target.samples, read=careless, refuses=target.refuses), 500)
