from __future__ import annotations

import functools

import pytest
import trio
import trio.testing

from semibot.errors import ServiceEnded
from semibot.lifetimes import grace, open_services
from semibot.testing import capture_logs


async def fail_with(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def hang() -> None:
    await trio.sleep_forever()


async def test_services_are_cancelled_when_the_body_has_left() -> None:
    said: list[str] = []

    async def service() -> None:
        try:
            await trio.sleep_forever()
        finally:
            said.append("service ended")

    async with open_services() as services:
        services.start_soon(service)
        await trio.testing.wait_all_tasks_blocked()
        said.append("body left")
    assert said == ["body left", "service ended"]


async def test_leaving_the_block_waits_for_the_clean_up_of_services(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def service() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with grace("test.cleanup", 5):
                await trio.sleep(3)

    async with open_services() as services:
        services.start_soon(service)
        await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() == 3


async def test_the_error_of_the_body_comes_out_bare() -> None:
    error = ValueError("body")
    with pytest.raises(ValueError, match="body") as caught:
        async with open_services() as services:
            services.start_soon(hang)
            raise error
    assert caught.value is error


async def test_a_group_from_the_body_comes_out_as_it_is() -> None:
    group = ExceptionGroup("body", [ValueError("one"), OSError("two")])
    with pytest.RaisesGroup(ValueError, OSError) as caught:
        async with open_services() as services:
            services.start_soon(hang)
            raise group
    assert caught.value is group


async def test_the_error_of_a_service_cancels_the_body_and_comes_out_bare() -> None:
    with pytest.raises(OSError, match="service"):
        async with open_services() as services:
            services.start_soon(fail_with, OSError("service"))
            await trio.sleep_forever()


async def test_the_error_of_a_service_is_raised_although_the_body_gets_to_its_end() -> None:
    failed = trio.Event()

    async def service() -> None:
        failed.set()
        raise OSError("service")

    with pytest.raises(OSError, match="service"):
        async with open_services() as services:
            services.start_soon(service)
            await failed.wait()


async def test_only_the_first_failure_of_a_service_is_raised() -> None:
    async def fail_second() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("second")

    with capture_logs() as logs, pytest.raises(OSError, match="first"):
        async with open_services() as services:
            services.start_soon(fail_second)
            services.start_soon(fail_with, OSError("first"))
            await trio.sleep_forever()
    assert [entry["event"] for entry in logs] == ["service failed while it stopped"]


async def test_two_services_that_fail_in_one_step_raise_one_error() -> None:
    with pytest.raises(OSError, match="service"):
        async with open_services() as services:
            services.start_soon(fail_with, OSError("service one"))
            services.start_soon(fail_with, OSError("service two"))
            await trio.sleep_forever()


async def test_the_error_of_the_body_wins_and_notes_that_of_a_service() -> None:
    with pytest.raises(ValueError, match="body") as caught:
        async with open_services() as services:
            services.start_soon(fail_with, OSError("service"))
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("body")
    assert caught.value.__notes__ == ["a service failed as well: OSError('service')"]


async def test_a_service_that_returns_before_it_is_told_to_has_failed() -> None:
    with pytest.raises(ServiceEnded, match=r"service .*checkpoint returned before"):
        async with open_services() as services:
            services.start_soon(trio.lowlevel.checkpoint)
            await trio.sleep_forever()


async def test_a_service_is_called_what_its_starter_says() -> None:
    with pytest.raises(ServiceEnded) as caught:
        async with open_services() as services:
            services.start_soon(trio.lowlevel.checkpoint, name="heartbeat")
            await trio.sleep_forever()
    assert caught.value.service == "heartbeat"


async def test_a_service_without_a_name_is_called_what_it_looks_like() -> None:
    with pytest.raises(ServiceEnded) as caught:
        async with open_services() as services:
            services.start_soon(functools.partial(trio.sleep, 0))
            await trio.sleep_forever()
    assert caught.value.service.startswith("functools.partial(<function sleep")


async def test_a_service_that_returns_when_it_is_told_to_stop_has_not_failed() -> None:
    async def polite() -> None:
        with trio.CancelScope() as scope:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                scope.cancel()
                raise

    async with open_services() as services:
        services.start_soon(polite)
        await trio.testing.wait_all_tasks_blocked()


async def test_a_failure_while_stopping_is_logged_and_not_raised() -> None:
    async def service() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("too late")

    with capture_logs() as logs:
        async with open_services() as services:
            services.start_soon(service, name="writer")
            await trio.testing.wait_all_tasks_blocked()
    assert [(entry["event"], entry["service"]) for entry in logs] == [
        ("service failed while it stopped", "writer")
    ]


async def test_a_service_started_as_the_body_leaves_never_runs_past_its_first_await() -> None:
    said: list[str] = []

    async def service() -> None:
        said.append("began")
        await trio.lowlevel.checkpoint()
        said.append("went on")

    async with open_services() as services:
        services.start_soon(service)
    assert said == ["began"]


async def test_a_cancellation_from_outside_is_never_replaced_by_a_failure() -> None:
    async def fail_when_it_ends(ended: trio.Event) -> None:
        await ended.wait()
        raise OSError("service")

    with capture_logs() as logs, trio.CancelScope() as outer:
        ended = trio.Event()
        async with open_services() as services:
            services.start_soon(fail_when_it_ends, ended)
            outer.cancel()
            try:
                await trio.sleep_forever()
            finally:
                ended.set()
                with grace("test.cleanup", 5):
                    await trio.testing.wait_all_tasks_blocked()
    assert outer.cancelled_caught
    assert [entry["event"] for entry in logs] == ["service failed during a cancellation"]


async def test_a_bug_in_the_shape_of_keyboard_interrupt_comes_as_a_group() -> None:
    with pytest.RaisesGroup(KeyboardInterrupt):
        async with open_services() as services:
            services.start_soon(fail_with, KeyboardInterrupt())
            await trio.sleep_forever()


async def test_the_clean_up_of_the_body_can_use_a_service(
    autojump_clock: trio.testing.MockClock,
) -> None:
    written: list[str] = []

    async def writer(receive: trio.MemoryReceiveChannel[str]) -> None:
        async for item in receive:
            await trio.sleep(1)
            written.append(item)

    with trio.move_on_after(10) as outer:
        async with open_services() as services:
            send, receive = trio.open_memory_channel[str](0)
            services.start_soon(writer, receive)
            try:
                await trio.sleep_forever()
            finally:
                with grace("test.cleanup", 5):
                    await send.send("terminal event")
                    await send.send("goodbye")  # returns once the first is written
    assert outer.cancelled_caught
    assert written == ["terminal event"]
    assert trio.current_time() == 11


async def test_a_plain_nursery_would_lose_the_last_event(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Show why services exist: here the writer dies together with the body."""
    written: list[str] = []

    async def writer(receive: trio.MemoryReceiveChannel[str]) -> None:
        async for item in receive:
            await trio.sleep(1)
            written.append(item)

    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[str](0)
            nursery.start_soon(writer, receive)
            try:
                await trio.sleep_forever()
            finally:
                with grace("test.cleanup", 5):
                    await send.send("terminal event")
    assert written == []
    assert trio.current_time() == 15


async def test_the_graces_of_nested_services_add_up_and_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def stubborn() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with grace("test.cleanup", 2):
                await trio.sleep_forever()

    with trio.move_on_after(1) as outer:
        async with open_services() as first, open_services() as second:
            first.start_soon(stubborn)
            second.start_soon(stubborn)
            await trio.sleep_forever()
    assert outer.cancelled_caught
    assert trio.current_time() == 5
