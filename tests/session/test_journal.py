"""The journal: numbered once, read by anyone, waiting for nobody."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.errors import CursorExpired, LocalProtocolError
from semibot.session.journal import Journal, JournalEntry
from semibot.wire.events import TextChunk, decode_event


def say(journal: Journal, text: str) -> JournalEntry:
    return journal.append("r", TextChunk(content=text))


async def read(journal: Journal, *, after: int = 0) -> list[int]:
    return [entry.seq async for entry in journal.cursor(after=after)]


async def test_entries_have_ids_sizes_and_their_data_once() -> None:
    journal = Journal(term=3, next_seq=7)
    entry = say(journal, "ü")
    assert entry.id == "3-7"
    assert entry.size == len(entry.data.encode())
    assert decode_event(entry.data) == entry.event
    assert (journal.next_seq, journal.term, journal.kept_bytes) == (8, 3, entry.size)


async def test_what_json_cannot_say_takes_no_number() -> None:
    journal = Journal(term=1, next_seq=1)
    with pytest.raises(LocalProtocolError):
        say(journal, "\ud800")
    assert journal.next_seq == 1
    assert journal.kept_bytes == 0


async def test_every_reader_sees_the_same_and_the_end(autojump_clock: MockClock) -> None:
    journal = Journal(term=1, next_seq=1)
    seen: list[list[int]] = []

    async def reader() -> None:
        seen.append(await read(journal))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(reader)
        for number in range(5):
            say(journal, str(number))
            await wait_all_tasks_blocked()
        journal.close()
    assert seen == [[1, 2, 3, 4, 5]] * 3
    assert await read(journal, after=3) == [4, 5]


async def test_a_reader_that_never_reads_holds_nobody_up_and_expires() -> None:
    journal = Journal(term=1, next_seq=1, max_bytes=1000)
    lazy = journal.cursor(after=0)
    for number in range(1000):
        say(journal, f"{number:04}")
    assert journal.kept_bytes <= 1000
    with pytest.raises(CursorExpired) as caught:
        await lazy.__anext__()
    assert caught.value.after == 0
    assert (
        await journal.cursor(after=caught.value.oldest - 1).__anext__()
    ).seq == caught.value.oldest


async def test_one_event_larger_than_the_bound_stays() -> None:
    journal = Journal(term=1, next_seq=1, max_bytes=10)
    say(journal, "x" * 100)
    assert (await journal.cursor(after=0).__anext__()).seq == 1


async def test_a_cursor_without_a_position_starts_with_the_next_event() -> None:
    journal = Journal(term=1, next_seq=1)
    say(journal, "old")
    cursor = journal.cursor()
    say(journal, "new")
    assert (await cursor.__anext__()).seq == 2
    assert cursor.after == 2


async def test_forgetting_drops_what_is_older_only() -> None:
    journal = Journal(term=1, next_seq=1)
    for number in range(5):
        say(journal, str(number))
    journal.forget_before(4)
    journal.forget_before(2)
    journal.close()
    assert await read(journal, after=3) == [4, 5]
    with pytest.raises(CursorExpired):
        await read(journal, after=2)
    journal.forget_before(99)
    assert await read(journal, after=5) == []


@given(
    st.lists(st.text(alphabet="ab\nü", max_size=30), max_size=40),
    st.integers(min_value=60, max_value=2000),
    st.integers(min_value=1, max_value=50),
)
def test_any_suffix_that_is_kept_is_gapless(texts: list[str], max_bytes: int, first: int) -> None:
    async def main() -> None:
        journal = Journal(term=1, next_seq=first, max_bytes=max_bytes)
        entries = [say(journal, text) for text in texts]
        journal.close()
        assert [entry.seq for entry in entries] == list(range(first, first + len(texts)))
        for after in range(first - 1, first + len(texts)):
            try:
                found = [entry async for entry in journal.cursor(after=after)]
            except CursorExpired as exc:
                assert exc.after == after  # noqa: PT017 - either is fine, but not silence
                continue
            assert found == entries[after - first + 1 :]

    trio.run(main)
