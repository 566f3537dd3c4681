"""What a tail publishes when, and what it keeps."""

from __future__ import annotations

import pytest
from relay_kit import event, loss

from semibot.host.tail import CHUNK_BYTES, KEPT_BYTES, Cursor, Tail, Tally


class Tailed:
    """A tail with a cursor that takes whatever there is."""

    def __init__(self, *, term: int = 1, committed_seq: int = 0) -> None:
        self.tally = Tally()
        self.uses = 0
        self.tail = Tail(
            "s1", term=term, committed_seq=committed_seq, tally=self.tally, on_use=self._count
        )

    def _count(self, tail: Tail) -> None:
        assert tail is self.tail
        self.uses += 1

    def cursor(self, seq: int = 0, run_id: str | None = None) -> Cursor:
        cursor = Cursor(run_id=run_id, term=self.tail.term, seq=seq, shown=seq)
        self.tail.attach(cursor)
        return cursor

    def receive(self, *numbers: int, waits: bool = False, **fields) -> None:
        for seq in numbers:
            self.tail.receive(event(seq, term=self.tail.term, **fields), waits_for_commit=waits)

    def numbers(self) -> tuple[int, int, int]:
        return self.tail.committed_seq, self.tail.published_seq, self.tail.received_seq


def test_an_event_is_published_on_arrival():
    tailed = Tailed()
    tailed.receive(1, 2)
    assert tailed.numbers() == (0, 2, 2)


def test_an_event_that_waits_holds_back_all_later_ones_until_its_commit():
    tailed = Tailed()
    tailed.receive(1)
    tailed.receive(2, waits=True)
    tailed.receive(3)
    tailed.receive(4, waits=True)
    tailed.receive(5)
    assert tailed.numbers() == (0, 1, 5)
    tailed.tail.commit(1)
    assert tailed.numbers() == (1, 1, 5)
    tailed.tail.commit(2)
    assert tailed.numbers() == (2, 3, 5)
    tailed.tail.commit(5)
    assert tailed.numbers() == (5, 5, 5)


@pytest.mark.parametrize(("seq", "term"), [(1, 1), (3, 1), (2, 2), (2, 0)])
def test_an_event_that_is_not_the_next_is_refused_and_changes_nothing(seq, term):
    tailed = Tailed()
    tailed.receive(1)
    with pytest.raises(ValueError, match=f"{term}-{seq} is not next after 1-1"):
        tailed.tail.receive(event(seq, term=term), waits_for_commit=False)
    assert tailed.numbers() == (0, 1, 1)


def test_bytes_count_as_uncommitted_until_their_commit():
    tailed = Tailed()
    tailed.receive(1, 2)
    both = tailed.tail.uncommitted_bytes
    assert tailed.tail.committed_bytes == 0
    tailed.tail.commit(1)
    assert tailed.tail.uncommitted_bytes == tailed.tail.committed_bytes == both // 2
    assert tailed.tally.committed_bytes == both // 2
    tailed.tail.commit(1)  # known already
    tailed.tail.commit(2)
    assert (tailed.tail.uncommitted_bytes, tailed.tail.committed_bytes) == (0, both)
    assert tailed.tally.committed_bytes == both


def test_readers_share_the_same_bytes():
    tailed = Tailed()
    tailed.receive(1, 2, 3)
    first, second = tailed.cursor(), tailed.cursor()
    assert tailed.tail.take(first) is tailed.tail.take(second)
    assert first.seq == second.seq == 3
    assert not tailed.tail.has_news(first)
    assert tailed.tally.events_forwarded == 6


def test_what_was_joined_once_is_not_taken_for_more_that_came_since():
    tailed = Tailed()
    tailed.receive(1)
    first, second = tailed.cursor(), tailed.cursor()
    one = tailed.tail.take(first)
    tailed.receive(2)
    both = tailed.tail.take(second)
    assert both == one + tailed.tail.take(first)


def test_a_chunk_is_at_most_64_kib_or_one_event():
    tailed = Tailed()
    tailed.receive(1, 2, 3, text="a" * (CHUNK_BYTES // 2 - 100))
    tailed.receive(4, text="b" * CHUNK_BYTES)
    tailed.receive(5)
    cursor = tailed.cursor()
    sizes = []
    while tailed.tail.has_news(cursor):
        sizes.append((len(tailed.tail.take(cursor)) <= CHUNK_BYTES, cursor.seq))
    assert sizes == [(True, 2), (True, 3), (False, 4), (True, 5)]


def test_a_large_chunk_is_shared_though_more_has_come():
    tailed = Tailed()
    tailed.receive(1, text="a" * (CHUNK_BYTES * 3 // 4))
    first, second = tailed.cursor(), tailed.cursor()
    chunk = tailed.tail.take(first)
    tailed.receive(2)
    assert tailed.tail.take(second) is chunk


def test_the_oldest_committed_events_go_when_there_are_too_many():
    tailed = Tailed()
    for seq in range(1, 101):
        tailed.receive(seq, text="x" * (KEPT_BYTES // 50))
    assert tailed.tail.start_seq == 1  # uncommitted ones never go
    tailed.tail.commit(100)
    assert KEPT_BYTES * 3 // 4 < tailed.tail.committed_bytes <= KEPT_BYTES
    assert tailed.tail.start_seq > 50
    assert tailed.tally.committed_bytes == tailed.tail.committed_bytes
    cursor = tailed.cursor(99)
    assert b"id: 1-100\n" in tailed.tail.take(cursor)


def test_shedding_keeps_what_is_not_committed():
    tailed = Tailed()
    tailed.receive(1, 2, 3)
    tailed.tail.commit(2)
    tailed.tail.shed()
    tailed.tail.shed()
    assert (tailed.tail.start_seq, tailed.tail.committed_bytes) == (3, 0)
    assert tailed.tail.uncommitted_bytes > 0
    cursor = tailed.cursor(2)
    assert tailed.tail.take(cursor).startswith(b"id: 1-3\n")


def test_a_commit_of_events_that_never_arrived_moves_the_window_behind_them():
    tailed = Tailed()
    tailed.receive(1, waits=True)
    tailed.tail.commit(7)
    assert tailed.numbers() == (7, 7, 7)
    assert tailed.tail.start_seq == 8
    assert tailed.tail.uncommitted_bytes == tailed.tally.committed_bytes == 0
    tailed.receive(8)
    assert tailed.tail.take(tailed.cursor(7)).startswith(b"id: 1-8\n")


def test_a_terminal_event_has_its_own_name():
    tailed = Tailed()
    tailed.receive(1)
    tailed.receive(2, type="execution_complete")
    tailed.receive(3, type="execution_error")
    chunk = tailed.tail.take(tailed.cursor())
    names = [line for line in chunk.splitlines() if line.startswith(b"event:")]
    assert names == [b"event: message", b"event: execution_complete", b"event: execution_error"]


# --- one run --------------------------------------------------------------------------


def test_a_cursor_of_one_run_skips_the_others_and_ends_with_its_terminal_event():
    tailed = Tailed()
    tailed.receive(1, run_id="r1")
    tailed.receive(2, run_id="r1", type="execution_complete")
    tailed.receive(3, run_id="r2", type="run_started")
    tailed.receive(4, run_id="r3", type="run_started")
    tailed.receive(5, run_id="r2", type="execution_complete")
    tailed.receive(6, run_id="r2")
    cursor = tailed.cursor(run_id="r2")
    chunk = tailed.tail.take(cursor)
    assert [line for line in chunk.splitlines() if line.startswith(b"id:")] == [
        b"id: 1-3",
        b"id: 1-5",
    ]
    assert cursor.end_reason == "run_ended"
    assert tailed.tally.events_forwarded == 2


def test_a_cursor_of_one_run_passes_others_events_without_showing_anything():
    tailed = Tailed()
    tailed.receive(1, 2, run_id="r1")
    cursor = tailed.cursor(run_id="r2")
    assert tailed.tail.take(cursor) == b""
    assert (cursor.seq, cursor.shown) == (2, 0)


# --- losses ---------------------------------------------------------------------------


def test_a_loss_drops_what_is_not_committed_and_goes_on_in_the_new_term():
    tailed = Tailed()
    tailed.receive(1, 2, 3)
    tailed.tail.commit(2)
    behind, at_base, beyond = tailed.cursor(1), tailed.cursor(2), tailed.cursor(3)
    tailed.tail.lose(loss(2, event(3, term=2, type="execution_error")))
    assert tailed.numbers() == (3, 3, 3)
    assert tailed.tail.uncommitted_bytes == 0
    assert (behind.needs_resync, at_base.needs_resync, beyond.needs_resync) == (False, False, True)
    assert tailed.tail.take(at_base).startswith(b"id: 2-3\nevent: execution_error\n")
    assert tailed.tail.take(behind).startswith(b"id: 1-2\n")
    tailed.receive(4)
    assert tailed.tail.take(at_base).startswith(b"id: 2-4\n")


def test_what_was_joined_before_a_loss_is_not_taken_after_it():
    tailed = Tailed()
    tailed.receive(1, 2)
    first, second = tailed.cursor(), tailed.cursor()
    tailed.tail.take(first)
    tailed.tail.lose(loss(0, event(1, term=2), event(2, term=2)))
    assert tailed.tail.take(second).startswith(b"id: 2-1\n")


def test_what_a_loss_has_committed_beyond_what_was_known_stays():
    tailed = Tailed()
    tailed.receive(1, 2, 3)
    cursor = tailed.cursor(2)
    tailed.tail.lose(loss(2))
    assert tailed.numbers() == (2, 2, 2)
    assert not cursor.needs_resync
    assert tailed.tail.committed_bytes > 0


def test_a_loss_behind_events_that_never_arrived_moves_the_window():
    tailed = Tailed()
    tailed.receive(1)
    tailed.tail.lose(loss(5, event(6, term=2)))
    assert (tailed.tail.start_seq, *tailed.numbers()) == (6, 6, 6, 6)
    assert tailed.tally.committed_bytes == tailed.tail.committed_bytes > 0


def test_a_loss_before_the_window_still_counts():
    tailed = Tailed(committed_seq=9)
    cursor = tailed.cursor(9)
    tailed.tail.lose(loss(5))
    assert (tailed.tail.start_seq, *tailed.numbers()) == (6, 5, 5, 5)
    assert cursor.needs_resync


def test_a_loss_that_is_known_already_changes_nothing():
    tailed = Tailed(term=3, committed_seq=5)
    tailed.receive(6)
    cursor = tailed.cursor(6)
    tailed.tail.lose(loss(2, term=2))
    tailed.tail.lose(loss(4, event(5, term=3), term=3))
    assert tailed.numbers() == (5, 6, 6)
    assert not cursor.needs_resync


def test_events_that_the_host_makes_without_a_new_term_follow_on():
    tailed = Tailed(committed_seq=2)
    cursor = tailed.cursor(2)
    made = [event(3), event(4, type="execution_complete")]
    tailed.tail.lose(loss(2, *made, term=1))
    assert tailed.numbers() == (4, 4, 4)
    assert not cursor.needs_resync
    assert tailed.tail.take(cursor).startswith(b"id: 1-3\n")
    assert not tailed.tail.is_settled


def test_of_events_that_the_host_makes_the_known_ones_are_left_out():
    tailed = Tailed(committed_seq=3)
    tailed.tail.lose(loss(2, event(3), event(4), term=1))
    assert tailed.numbers() == (4, 4, 4)
    assert tailed.tail.take(tailed.cursor(3)).startswith(b"id: 1-4\n")


def test_a_cursor_of_one_run_that_has_shown_nothing_void_goes_back_to_what_holds():
    tailed = Tailed()
    tailed.receive(1, 2, 3, run_id="r1")
    tailed.tail.commit(1)
    cursor = tailed.cursor(run_id="r2")
    assert tailed.tail.take(cursor) == b""
    tailed.tail.lose(loss(1, event(2, term=2, run_id="r2", type="execution_error")))
    assert (cursor.seq, cursor.needs_resync) == (1, False)
    assert tailed.tail.take(cursor).startswith(b"id: 2-2\n")


def test_a_cursor_that_knows_a_later_term_is_not_touched_by_an_earlier_loss():
    tailed = Tailed()
    cursor = Cursor(run_id=None, term=3, seq=9, shown=9)
    tailed.tail.attach(cursor)
    tailed.tail.lose(loss(0))
    assert (cursor.term, cursor.seq, cursor.needs_resync) == (3, 9, False)


# --- use and end ----------------------------------------------------------------------


def test_a_tail_says_when_it_is_no_longer_idle_and_after_each_commit():
    tailed = Tailed()
    assert tailed.tail.is_idle
    tailed.receive(1)
    tailed.receive(2)
    assert (tailed.uses, tailed.tail.is_idle) == (1, False)
    tailed.tail.commit(2)
    assert (tailed.uses, tailed.tail.is_idle) == (2, True)
    cursor = tailed.cursor(2)
    assert (tailed.uses, tailed.tail.is_idle) == (3, False)
    tailed.tail.detach(cursor)
    assert tailed.tail.is_idle


def test_a_retired_tail_holds_nothing_and_counts_nothing_any_more():
    tailed = Tailed()
    tailed.receive(1, 2)
    tailed.tail.commit(1)
    cursor = tailed.cursor(2)
    ended = tailed.cursor(2)
    ended.end_reason = "run_ended"
    tailed.tail.retire("deleted")
    assert (cursor.end_reason, ended.end_reason) == ("deleted", "run_ended")
    assert tailed.numbers() == (1, 1, 1)
    assert tailed.tail.committed_bytes == tailed.tail.uncommitted_bytes == 0
    tailed.receive(2)
    tailed.tail.commit(2)
    assert tailed.tally.committed_bytes == 0
