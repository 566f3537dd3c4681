"""Readers rest between writes while events come fast, and never for long."""

from __future__ import annotations

import pytest
import trio
from relay_kit import Kit, event

from semibot.host.pace import BUSY, REST, WINDOW, Pace

MANY = int(BUSY * WINDOW) + 1


def test_no_reader_is_kept_from_an_event_for_more_than_ten_milliseconds():
    assert REST <= 0.01


def test_readers_rest_only_while_many_events_are_taken():
    pace = Pace()
    assert pace.rest_after(1.0, MANY - 1) == 0
    assert pace.rest_after(1.001, 1) == REST
    assert pace.rest_after(1.0 + WINDOW, 1) == REST  # it may go on like that
    assert pace.rest_after(1.0 + 2 * WINDOW, 1) == 0


def test_what_was_before_a_silence_does_not_count():
    pace = Pace()
    assert pace.rest_after(1.0, MANY) == REST
    assert pace.rest_after(1.0 + 5 * WINDOW, 1) == 0


@pytest.fixture
def kit():
    return Kit()


async def test_each_event_has_its_own_write_while_they_come_slowly(kit, autojump_clock):
    client = await kit.reader("1-0")
    await client.step()
    for seq in (1, 2, 3):
        await kit.receive(event(seq))
        await client.step()
        assert client.ids[-1] == f"1-{seq}"
    assert trio.current_time() == 0


async def test_what_comes_while_a_reader_rests_is_one_write(kit, autojump_clock):
    client = await kit.reader("1-0")
    await client.step()
    await kit.receive(*(event(seq) for seq in range(1, MANY + 1)))
    await client.step()
    assert len(client.ids) == MANY
    for seq in (MANY + 1, MANY + 2):
        await kit.receive(event(seq))
    await client.step()
    assert client.ids[-2:] == [f"1-{MANY + 1}", f"1-{MANY + 2}"]
    assert trio.current_time() == pytest.approx(REST)


async def test_a_rest_that_is_cancelled_loses_nothing(kit, autojump_clock):
    client = await kit.reader("1-0")
    await client.step()
    await kit.receive(*(event(seq) for seq in range(1, MANY + 1)))
    await client.step()
    await kit.receive(event(MANY + 1))
    with trio.move_on_after(REST / 2) as scope:
        await client.step()
    assert scope.cancelled_caught
    await client.step()
    assert client.ids[-1] == f"1-{MANY + 1}"
    assert trio.current_time() == pytest.approx(REST)
