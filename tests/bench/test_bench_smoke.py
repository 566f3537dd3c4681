"""The benchmark runs to its end, and says what it measured."""

from __future__ import annotations

import pytest
from bench import SMOKE, run
from bench_peers import PEERS
from bench_report import Figure, Row, ratio, render
from bench_wire import Line, advance, in_pieces, make_frames

from semibot.wire.frames import SseEvent, decode_from_vm

LINES = [Line("s1", "r1", 1, 2), Line("s2", "r2", 3, 7)]


def unmask(frame: bytes) -> str:
    skipped = {126: 4, 127: 10}.get(frame[1] & 127, 2)
    mask, data = frame[skipped : skipped + 4], frame[skipped + 4 :]
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(data)).decode()


async def test_each_situation_is_measured_for_each_server_that_is_installed():
    peers = [peer for peer in PEERS if peer.is_installed]
    said = []
    rows = await run(SMOKE, peers, said.append)
    assert len(rows) == 4
    assert len(said) == 4 * len(peers)
    assert all(set(row.peers) == {peer.name for peer in peers} for row in rows)
    table = render(rows, [peer.name for peer in peers])
    assert table.count("\n") == 1 + 2 + 2 + 3 + 1


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_load_is_what_a_vm_says_with_sessions_taking_turns(batch):
    events: list[SseEvent] = []
    for frame in make_frames(LINES, 5, batch):
        decoded = decode_from_vm(unmask(frame))
        events += decoded if isinstance(decoded, tuple) else [decoded]
    names = [(event.session_id, event.term, event.seq) for event in events]
    assert names == [("s1", 1, 2), ("s2", 3, 7), ("s1", 1, 3), ("s2", 3, 8), ("s1", 1, 4)]
    assert [line.next_seq for line in advance(LINES, 5)] == [5, 9]


def test_a_frame_has_events_of_one_session_if_its_turn_is_as_long():
    frames = [decode_from_vm(unmask(frame)) for frame in make_frames(LINES, 7, 2, turn=2)]
    said = [
        [(event.session_id, event.seq) for event in (one if isinstance(one, tuple) else (one,))]
        for one in frames
    ]
    assert said == [
        [("s1", 2), ("s1", 3)],
        [("s2", 7), ("s2", 8)],
        [("s1", 4), ("s1", 5)],
        [("s2", 9)],
    ]
    assert [line.next_seq for line in advance(LINES, 7, turn=2)] == [6, 10]


def test_pieces_are_the_frames_joined():
    assert in_pieces([b"aa", b"b", b"ccc", b"d"], size=3) == [b"aab", b"ccc", b"d"]


def test_a_ratio_is_taken_within_rounds_and_above_one_is_better():
    row = Row(
        "busy",
        {
            "semibot": {"cpu_us_per_event": Figure(2, [1, 2, 4])},
            "other": {"cpu_us_per_event": Figure(8, [4, 10, 8])},
        },
    )
    assert ratio(row, "cpu_us_per_event", "other") == 4
    assert ratio(row, "cpu_us_per_event", "semibot", ours="other") == 0.25
