from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
import trio
import trio.testing

from semibot.cli.failures import OutputClosed
from semibot.cli.keyboard import MAX_MESSAGE, Keyboard
from semibot.cli.output import Output
from semibot.errors import UsageError


@contextmanager
def pipe() -> Iterator[tuple[TextIO, TextIO]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as reader:
        writer = os.fdopen(writing, "w", encoding="utf-8")
        try:
            yield reader, writer
        finally:
            writer.close()


# --- output ---------------------------------------------------------------------------


async def test_a_reader_that_does_not_read_holds_up_only_its_writer() -> None:
    text = "x" * 300_000  # more than a pipe takes
    with pipe() as (reader, writer):
        output = Output(writer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.write, text)
            await trio.testing.wait_all_tasks_blocked()  # the loop goes on
            taken = bytearray()
            while len(taken) < len(text):
                await trio.lowlevel.wait_readable(reader.fileno())
                taken += os.read(reader.fileno(), 65536)
        assert taken == text.encode()


async def test_a_write_that_waits_for_its_reader_can_be_cancelled() -> None:
    with pipe() as (_, writer):
        with trio.move_on_after(0.05) as scope:
            await Output(writer).write("x" * 300_000)
        assert scope.cancelled_caught


async def test_two_who_share_a_stream_that_does_not_block_lose_nothing() -> None:
    with pipe() as (reader, writer), os.fdopen(os.dup(writer.fileno()), "w") as other:
        os.set_blocking(writer.fileno(), False)
        taken = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Output(writer).write, "a" * 300_000)
            nursery.start_soon(Output(other).write, "b" * 300_000)
            while len(taken) < 600_000:
                # Room for one of the two only.
                await trio.lowlevel.wait_readable(reader.fileno())
                taken += os.read(reader.fileno(), 4096)
        assert taken.count(b"a") == taken.count(b"b") == 300_000


async def test_writing_to_a_reader_that_is_gone_says_so() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as writer:
        os.close(reading)
        with pytest.raises(OutputClosed):
            await Output(writer).write("x")


async def test_a_regular_file_takes_everything(tmp_path: Path) -> None:
    text = "äö\ud800" * 10_000
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        output = Output(file)
        assert not output.is_terminal
        await output.write(text)
    assert (tmp_path / "out").read_text(encoding="utf-8") == "äö?" * 10_000


async def test_a_closed_stream_drops_everything() -> None:
    await Output(None).write("x")


# --- input ----------------------------------------------------------------------------


async def test_lines_come_one_by_one_and_the_last_needs_no_end() -> None:
    with pipe() as (reader, writer):
        keyboard = Keyboard(reader)
        writer.write("eins\r\nzwei ä\n\ndrei")
        writer.close()
        lines = [await keyboard.read_line() for _ in range(5)]
    assert lines == ["eins", "zwei ä", "", "drei", None]


async def test_a_cancelled_wait_for_a_line_loses_nothing() -> None:
    with pipe() as (reader, writer):
        keyboard = Keyboard(reader)
        os.write(writer.fileno(), b"half")
        with trio.move_on_after(0.05) as scope:
            await keyboard.read_line()
        assert scope.cancelled_caught
        os.write(writer.fileno(), b" and half\n")
        assert await keyboard.read_line() == "half and half"


async def test_forgetting_drops_what_was_typed_of_a_line() -> None:
    with pipe() as (reader, writer):
        keyboard = Keyboard(reader)
        os.write(writer.fileno(), b"half")
        with trio.move_on_after(0.05):
            await keyboard.read_line()
        keyboard.forget()
        os.write(writer.fileno(), b"whole\n")
        assert await keyboard.read_line() == "whole"


async def test_of_two_who_share_input_that_does_not_block_one_gets_the_line() -> None:
    with pipe() as (reader, writer), os.fdopen(os.dup(reader.fileno())) as other:
        os.set_blocking(reader.fileno(), False)
        lines: list[str | None] = []

        async def read(stream: TextIO) -> None:
            lines.append(await Keyboard(stream).read_line())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, reader)
            nursery.start_soon(read, other)
            for _ in range(2):
                await trio.testing.wait_all_tasks_blocked()
                os.write(writer.fileno(), b"line\n")
        assert lines == ["line", "line"]


async def test_input_that_cannot_be_read_is_at_its_end(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        assert await Keyboard(file).read_line() is None


async def test_a_regular_file_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"two\nlines\xff\n")
    with (tmp_path / "in").open(encoding="utf-8") as file:
        assert await Keyboard(file).read_all() == "two\nlines\ufffd\n"


async def test_a_message_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * (MAX_MESSAGE + 1))
    with (tmp_path / "in").open(encoding="utf-8") as file:
        with pytest.raises(UsageError, match="longer than"):
            await Keyboard(file).read_all()


async def test_input_of_a_terminal_that_is_gone_is_at_its_end() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as reader:
        keyboard = Keyboard(reader)
        assert keyboard.is_terminal
        os.close(master)  # the terminal is gone
        assert await keyboard.read_line() is None


async def test_closed_input_is_at_its_end() -> None:
    keyboard = Keyboard(None)
    assert not keyboard.is_terminal
    assert await keyboard.read_line() is None
    assert await keyboard.read_all() == ""
