"""The host takes only the next number, and notices when an id would lie."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from semibot.wire.incoming import Accept, Conflict, Duplicate, Fenced, Gap, Incoming


def judge(incoming: Incoming, seq: int, data: str = "x", *, term: int = 1, run: str = "r"):
    return incoming.judge(term, seq, run, data)


def test_the_next_number_is_taken() -> None:
    incoming = Incoming(1, 5)
    assert judge(incoming, 6) == Accept()
    assert judge(incoming, 7) == Accept()
    assert (incoming.committed, incoming.received, incoming.term) == (5, 7, 1)


def test_a_higher_number_is_a_gap() -> None:
    incoming = Incoming(1, 5)
    judge(incoming, 6)
    assert judge(incoming, 8) == Gap(expected=7)
    assert incoming.received == 6


def test_a_repeat_is_a_duplicate_committed_or_not() -> None:
    incoming = Incoming(1, 5)
    judge(incoming, 6)
    assert judge(incoming, 6) == Duplicate(committed=5, is_committed=False)
    assert judge(incoming, 5, "anything") == Duplicate(committed=5, is_committed=True)


def test_other_bytes_or_another_run_under_a_number_are_a_conflict() -> None:
    incoming = Incoming(1, 0)
    judge(incoming, 1)
    assert judge(incoming, 1, "y") == Conflict()
    assert judge(incoming, 1, run="other") == Conflict()
    assert judge(incoming, 0) == Conflict()


def test_another_term_is_fenced_whatever_its_number() -> None:
    incoming = Incoming(3, 0)
    assert judge(incoming, 1, term=2) == Fenced()
    assert judge(incoming, 1, term=4) == Fenced()


def test_a_commit_forgets_what_was_remembered() -> None:
    incoming = Incoming(1, 0)
    for seq in (1, 2, 3):
        judge(incoming, seq, str(seq))
    incoming.commit(2)
    assert (incoming.committed, incoming.received) == (2, 3)
    assert judge(incoming, 3, "3") == Duplicate(committed=2, is_committed=False)
    incoming.commit(1)
    assert incoming.committed == 2
    incoming.commit(9)
    assert (incoming.committed, incoming.received) == (9, 9)
    assert judge(incoming, 10) == Accept()


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.booleans())))
def test_whatever_comes_the_numbers_taken_are_gapless(steps: list[tuple[int, int, bool]]) -> None:
    incoming = Incoming(1, 0)
    taken: dict[int, str] = {}
    for seq, data, commits in steps:
        match judge(incoming, seq, str(data)):
            case Accept():
                assert seq == len(taken) + 1
                taken[seq] = str(data)
            case Duplicate(is_committed=False):
                assert taken[seq] == str(data)
            case Duplicate(committed=committed):
                assert seq <= committed
            case Gap(expected=expected):
                assert seq > expected == len(taken) + 1
            case Conflict():
                assert seq < 1 or taken[seq] != str(data)
            case Fenced():
                raise AssertionError
        if commits:
            incoming.commit(len(taken))
        assert incoming.received == len(taken)
