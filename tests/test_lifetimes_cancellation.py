"""Cancel service scopes, deadlines and graces at every step that they take."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from semibot.errors import DeadlineExceeded
from semibot.lifetimes import Services, deadline, grace, open_services, open_stop_clock
from semibot.testing.sweep import cancel_everywhere

CLEANUP_GRACE = 2.0


class Watched:
    """Services that say how many of them are alive."""

    def __init__(self) -> None:
        self.began = 0
        self.ended = 0

    async def run(self) -> None:
        self.began += 1
        try:
            await trio.sleep_forever()
        finally:
            with grace("test.cleanup", CLEANUP_GRACE):
                await trio.sleep(1)
            self.ended += 1

    async def run_stubbornly(self) -> None:
        self.began += 1
        try:
            await trio.sleep_forever()
        finally:
            with grace("test.cleanup", CLEANUP_GRACE):
                await trio.sleep_forever()
            self.ended += 1

    def audit(self) -> str | None:
        alive = self.began - self.ended
        return f"{alive} services are alive" if alive else None


def test_a_cancel_at_any_step_leaves_no_service_and_is_bounded() -> None:
    watched = Watched()

    async def scenario() -> None:
        async with open_services() as services:
            services.start_soon(watched.run)
            await trio.sleep(1)
            services.start_soon(watched.run_stubbornly)
            await trio.sleep(1)

    report = cancel_everywhere(scenario, audit=watched.audit)
    assert report.problems == ()
    assert report.cancel_points > 8
    assert report.longest <= CLEANUP_GRACE
    assert watched.began > report.cancel_points


def test_a_cancel_at_any_step_of_nested_scopes_ends_them_from_the_inside() -> None:
    watched = Watched()
    order: list[str] = []

    @asynccontextmanager
    async def open_level(name: str) -> AsyncGenerator[Services]:
        async with open_services() as services:
            services.start_soon(watched.run_stubbornly)
            try:
                yield services
            finally:
                order.append(name)

    async def scenario() -> None:
        order.clear()
        async with open_level("outer"):
            await trio.sleep(1)
            async with open_level("inner"):
                await trio.sleep(1)

    def audit() -> str | None:
        return watched.audit() or (str(order) if order == ["outer", "inner"] else None)

    report = cancel_everywhere(scenario, audit=audit)
    assert report.problems == ()
    assert report.longest <= 2 * CLEANUP_GRACE


def test_a_cancel_at_any_step_lets_the_last_word_out() -> None:
    said: list[str] = []
    written: list[str] = []

    async def writer(receive: trio.MemoryReceiveChannel[str]) -> None:
        with receive:
            async for item in receive:
                await trio.sleep(0.1)
                written.append(item)
        await trio.sleep_forever()

    async def scenario() -> None:
        said.clear()
        written.clear()
        send, receive = trio.open_memory_channel[str](0)
        async with open_services() as services:
            services.start_soon(writer, receive)
            try:
                said.append("begun")
                await trio.sleep(1)
            finally:
                with grace("test.cleanup", CLEANUP_GRACE):
                    await send.send("terminal event")
                    send.close()
                    await trio.sleep(0.5)

    def audit() -> str | None:
        return None if bool(said) == (written == ["terminal event"]) else f"{said} {written}"

    report = cancel_everywhere(scenario, audit=audit)
    assert report.problems == ()
    assert report.longest <= CLEANUP_GRACE


def test_a_cancel_at_any_step_obeys_a_stop_clock() -> None:
    async def scenario() -> None:
        with open_stop_clock() as clock:
            async with open_services() as services:
                services.start_soon(Watched().run_stubbornly)
                try:
                    await trio.sleep(1)
                finally:
                    clock.stop(0.5)

    report = cancel_everywhere(scenario)
    assert report.problems == ()
    assert report.longest <= 0.5


def test_a_cancel_at_any_step_of_a_deadline_is_a_cancel() -> None:
    async def scenario() -> None:
        with deadline("test.outer", 10), deadline("test.inner", 5):
            await trio.sleep(1)
            await trio.lowlevel.checkpoint()

    report = cancel_everywhere(scenario)
    assert report.problems == ()
    assert report.longest == 0


async def test_a_cancelled_scope_still_names_the_deadline_of_its_clean_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.move_on_after(1):
        try:
            await trio.sleep_forever()
        finally:
            with grace("test.cleanup", 5):
                with pytest.raises(DeadlineExceeded, match=r"test\.flush \(2 s\)"):
                    with deadline("test.flush", 2):
                        await trio.sleep_forever()
    assert trio.current_time() == 3
