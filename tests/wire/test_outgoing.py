from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.wire.frames import (
    MAX_BATCH_BYTES,
    MAX_BATCH_FRAMES,
    Cancelled,
    CommandAck,
    FireAndForget,
    HeldSession,
    SessionStatus,
    encode_batch,
    encode_frame,
)
from semibot.wire.outgoing import Outgoing


class Item:
    def __init__(self, text):
        self._text = text
        self.log = []

    def text(self):
        return self._text

    def taken(self):
        self.log.append("taken")

    def written(self, level):
        self.log.append(f"written {level}")


def say(outgoing, lane, count=1, size=10):
    for _ in range(count):
        outgoing.put_event(lane, lane.last_seq + 1, "r1", "x" * size)


def receipt(command_id):
    return Cancelled(session_id="s1", command_id=command_id, run_id=None, receipt={})


def take_all(outgoing):
    frames = []
    while texts := outgoing.take():
        outgoing.written()
        frames += [json.loads(text) for text in texts]
    return frames


def names(frames):
    return [
        frame.get("seq") or frame.get("command_id") or frame.get("commands") or frame.get("id")
        for frame in frames
    ]


def linked(level=2):
    outgoing = Outgoing()
    outgoing.begin_link(level)
    outgoing.settle({})
    return outgoing


def test_a_lane_is_sent_strictly_in_order():
    outgoing = linked()
    lane = outgoing.open("s1", 1, 1)
    outgoing.put_note(lane, CommandAck(commands=("c0",)))
    say(outgoing, lane, 2)
    outgoing.put_note(lane, CommandAck(commands=("c1", "c2")))
    outgoing.put_snapshot(lane, snapshot("n1"))
    say(outgoing, lane)
    outgoing.put_snapshot(lane, snapshot("n2"))
    outgoing.put_note(lane, receipt("c3"))
    expected = [["c0"], 1, 2, ["c1", "c2"], 3, "n2", "c3"]
    assert names(take_all(outgoing)) == expected
    assert take_all(outgoing) == []
    outgoing.begin_link(2)
    assert outgoing.take() == ()
    assert outgoing.settle({"s1": SessionStatus(acked_seq=1)}) == ()
    assert names(take_all(outgoing)) == [["c0"], 2, ["c1", "c2"], 3, "n2", "c3"]
    outgoing.acknowledge({}, ["c0", "c1", "n2"])
    outgoing.begin_link(2)
    outgoing.settle({"s1": SessionStatus(acked_seq=3)})
    assert names(take_all(outgoing)) == [["c1", "c2"], "c3"]  # c2 is still missing
    assert not outgoing.is_idle
    outgoing.acknowledge({}, ["c2", "c3"])
    assert outgoing.is_idle
    assert outgoing.kept_bytes == lane.kept_bytes == 0


def snapshot(id):
    return FireAndForget(session_id="s1", method="snapshot_sync", params={}, id=id)


def test_an_answer_to_the_same_command_replaces_the_earlier_one():
    outgoing = linked()
    lane = outgoing.open("s1", 1, 1)
    outgoing.put_note(lane, receipt("c1"))
    kept = outgoing.kept_bytes
    assert names(take_all(outgoing)) == ["c1"]
    outgoing.put_note(lane, receipt("c1"))
    assert outgoing.kept_bytes == kept
    assert names(take_all(outgoing)) == ["c1"]


def test_a_snapshot_that_nobody_can_acknowledge_is_sent_once():
    outgoing = linked()
    lane = outgoing.open("s1", 1, 1)
    outgoing.put_snapshot(lane, FireAndForget(session_id="s1", method="snapshot_sync", params={}))
    assert len(take_all(outgoing)) == 1
    assert outgoing.is_idle


def test_a_batch_has_at_most_512_frames_and_64_kib():
    outgoing = linked()
    lane = outgoing.open("s1", 1, 1)
    say(outgoing, lane, 600)
    assert len(outgoing.take()) == MAX_BATCH_FRAMES
    assert len(outgoing.take()) == 88
    say(outgoing, lane, 30, size=5000)
    sizes = []
    while texts := outgoing.take():
        sizes.append(len(encode_batch(texts).encode()))
    assert all(MAX_BATCH_BYTES - 6000 < size <= MAX_BATCH_BYTES for size in sizes[:-1])
    assert len(sizes) == 3


def test_a_larger_frame_stands_alone():
    outgoing = linked()
    lane = outgoing.open("s1", 1, 1)
    say(outgoing, lane)
    say(outgoing, lane, size=100_000)
    say(outgoing, lane)
    assert [len(outgoing.take()) for _ in range(4)] == [1, 1, 1, 0]


def test_lanes_and_the_vms_own_take_turns():
    outgoing = linked()
    for name in ("a", "b"):
        say(outgoing, outgoing.open(name, 1, 1), 1000)
    own = [Item(json.dumps({"id": f"own {number}"})) for number in range(3)]
    for item in own:
        outgoing.put_own(item)
    frames = [json.loads(text) for text in outgoing.take()]
    who = [frame.get("session_id", "own") for frame in frames[:9]]
    assert who == ["a", "b", "own"] * 3
    assert own[0].log == ["taken"]
    outgoing.written()
    assert own[0].log == ["taken", "written 2"]


def test_what_is_not_wanted_any_more_is_passed_over():
    outgoing = linked()
    unwanted = Item(None)
    outgoing.put_own(unwanted)
    assert not outgoing.is_idle
    assert outgoing.take() == ()
    assert outgoing.is_idle
    outgoing.put_own(Item("{}"))
    assert outgoing.take() == ("{}",)
    assert unwanted.log == []


def test_after_a_reconnect_requests_go_first_and_reports_last():
    outgoing = linked()
    first, second = outgoing.open("a", 1, 1), outgoing.open("b", 1, 1)
    say(outgoing, first, 3)
    say(outgoing, second, 2)
    for discarded in (False, True):
        outgoing.begin_link(2)
        outgoing.put_own(Item('{"seq": "ask"}'))
        for number in range(2):
            outgoing.put_own(Item(json.dumps({"seq": f"request {number}"})), first=True)
        outgoing.settle({name: SessionStatus(acked_seq=0) for name in "ab"})
        outgoing.put_own(Item('{"seq": "report"}'), last=True)
        say(outgoing, first, 2)
        if discarded:
            outgoing.discard("b")
            outgoing.acknowledge({"a": 3}, [])
        frames = names(take_all(outgoing))
        if discarded:
            assert frames == ["request 0", "request 1", 4, "ask", 5, 6, "report", 7]
        else:
            assert frames == ["request 0", "request 1", 1, 1, "ask", 2, 2, 3, 4, "report", 5]
        outgoing.put_own(Item('{"seq": "next"}'), last=True)
        assert names(take_all(outgoing)) == ["next"]


def test_heartbeats_overtake_and_do_not_pile_up():
    outgoing = linked()
    say(outgoing, outgoing.open("s1", 1, 1))
    outgoing.put_heartbeat("1")
    outgoing.put_heartbeat("2")
    assert outgoing.take() == ("2",)
    assert len(outgoing.take()) == 1
    outgoing.put_heartbeat("3")
    outgoing.put_own(Item("{}"))
    outgoing.begin_link(2)  # both belonged to the link before
    assert outgoing.take() == ()


def test_resume_names_every_lane_and_what_is_left_in_it():
    outgoing = linked()
    outgoing.open("idle", 4, 10)
    lane = outgoing.open("busy", 2, 1)
    say(outgoing, lane, 5)
    outgoing.take()
    outgoing.acknowledge({"busy": 2}, [])
    closed = outgoing.open("closed", 1, 1)
    say(outgoing, closed)
    outgoing.close("closed")
    outgoing.open("gone", 1, 1)
    outgoing.close("gone")
    assert outgoing.begin_link(2) == {
        "idle": HeldSession(term=4, first_seq=10, last_seq=9),
        "busy": HeldSession(term=2, first_seq=3, last_seq=5),
        "closed": HeldSession(term=1, first_seq=1, last_seq=1),
    }
    status = {"busy": SessionStatus(fenced=True), "idle": SessionStatus(acked_seq=9)}
    # Whoever answered commands in "closed" has to know that nobody got the answers.
    assert outgoing.settle(status) == ("busy", "closed")
    assert outgoing.lane("closed") is None
    outgoing.open("new", 1, 1)
    assert outgoing.settle({}) == ()  # only what was named is judged


def test_a_lane_that_is_opened_again_goes_on_in_the_same_term():
    outgoing = linked()
    first = outgoing.open("s1", 1, 1)
    say(outgoing, first, 2)
    outgoing.put_note(first, receipt("c1"))
    outgoing.put_snapshot(first, snapshot("n1"))
    outgoing.close("s1")
    again = outgoing.open("s1", 1, 3)
    say(outgoing, again)
    assert names(take_all(outgoing)) == [1, 2, "c1", "n1", 3]
    assert outgoing.kept_bytes == again.kept_bytes
    say(outgoing, first)  # whoever holds the old one says nothing any more
    outgoing.close("s1")
    outgoing.acknowledge({"s1": 3}, ["c1", "n1"])
    assert outgoing.lane("s1") is None
    assert outgoing.kept_bytes == 0


def test_a_lane_of_a_higher_term_leaves_old_events_behind_but_not_answers():
    outgoing = linked()
    first = outgoing.open("s1", 1, 1)
    say(outgoing, first, 5)
    outgoing.put_note(first, receipt("c1"))
    outgoing.close("s1")
    again = outgoing.open("s1", 2, 3)
    say(outgoing, again)
    frames = take_all(outgoing)
    assert names(frames) == ["c1", 3]
    assert frames[1]["term"] == 2
    assert outgoing.kept_bytes == again.kept_bytes
    for term, seq in ((1, 4), (2, 3), (2, 5)):
        with pytest.raises(LocalProtocolError):
            outgoing.open("s1", term, seq)


def test_the_limits_leave_room_for_what_never_waits():
    outgoing = Outgoing(session_limit=10_000, total_limit=15_000, reserve=2_000)
    first, second = outgoing.open("a", 1, 1), outgoing.open("b", 1, 1)
    while outgoing.has_room(first):
        say(outgoing, first, size=100)
    assert 8_000 <= first.kept_bytes < 8_500
    assert outgoing.has_room(second)
    while outgoing.has_room(second):
        say(outgoing, second, size=100)
    assert 13_000 <= outgoing.kept_bytes < 13_500
    assert second.kept_bytes < 8_000
    say(outgoing, first)  # a terminal event does not ask
    outgoing.acknowledge({"a": first.last_seq}, [])
    assert outgoing.has_room(first)
    assert outgoing.has_room(second)


def test_a_gap_that_cannot_be_filled_loses_the_session():
    outgoing = linked()
    lane = outgoing.open("s1", 1, 1)
    say(outgoing, lane, 5)
    outgoing.take()
    outgoing.acknowledge({"s1": 2}, [])
    assert outgoing.send_again("s1", 4)
    assert outgoing.send_again("s1", 4)  # said twice, sent once
    assert names(take_all(outgoing)) == [4, 5]
    assert outgoing.send_again("s1", 6)
    assert not outgoing.send_again("s1", 2)
    assert not outgoing.send_again("s1", 7)
    assert outgoing.send_again("unknown", 1)


def test_an_acknowledgement_of_what_does_not_exist_changes_nothing():
    outgoing = linked()
    first, second = outgoing.open("a", 1, 1), outgoing.open("b", 1, 1)
    say(outgoing, first)
    say(outgoing, second)
    with pytest.raises(RemoteProtocolError):
        outgoing.acknowledge({"a": 1, "b": 2}, [])
    assert first.first_seq == 1


def test_towards_level_1_everything_is_dropped_once_it_is_written():
    outgoing = Outgoing()
    lane = outgoing.open("s1", 1, 1)
    say(outgoing, lane, 2)
    outgoing.put_note(lane, receipt("c1"))
    assert outgoing.begin_link(1).keys() == {"s1"}
    assert outgoing.take() == ()
    late = outgoing.open("s2", 1, 1)
    say(outgoing, late)
    assert outgoing.take() == ()  # not before the answer to ``resume``
    assert outgoing.settle(None) == ()
    texts = outgoing.take()
    assert json.loads(texts[0]) == {"type": "sse_event", "session_id": "s1", "data": "x" * 10}
    outgoing.discard("s2")
    outgoing.begin_link(1)  # it broke before that was written
    outgoing.settle(None)
    assert len(outgoing.take()) == 1
    outgoing.written()
    outgoing.put_note(lane, receipt("c2"))
    outgoing.put_snapshot(lane, snapshot("n1"))
    assert [frame["type"] for frame in take_all(outgoing)] == ["sse_event", "fire_and_forget"]
    assert outgoing.is_idle
    assert outgoing.kept_bytes == 0
    outgoing.put_note(lane, receipt("c3"))
    outgoing.close("s1")
    assert take_all(outgoing) == []
    assert outgoing.lane("s1") is None


def test_a_snapshot_that_is_nested_deeply_does_not_end_a_level_1_link():
    outgoing = linked(level=1)
    lane = outgoing.open("s1", 1, 1)
    params = {}
    for _ in range(100):
        params = {"deeper": params}
    frame = FireAndForget(session_id="s1", method="snapshot_sync", params=params)
    outgoing.put_snapshot(lane, frame)
    assert outgoing.take() == (encode_frame(frame),)


class ModelHost:
    """Takes the next event only; what is not committed may be forgotten with a link."""

    def __init__(self):
        self.received = {}
        self.committed = {}
        self.duplicates = 0

    def take(self, frame):
        """Return the ``SEQ_GAP`` that answers it, if any."""
        name, seq = frame["session_id"], frame["seq"]
        expected = self.received.get(name, 0) + 1
        if seq > expected:
            return name, expected
        if seq < expected:
            self.duplicates += 1
        else:
            self.received[name] = seq
        return None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from("abc"), st.integers(1, 40)),
        st.tuples(st.just("write"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("commit"), st.sampled_from("abc"), st.booleans()),
        st.tuples(st.just("relink"), st.booleans(), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_a_host_gets_every_event_once_and_in_order_whatever_is_lost(steps):
    outgoing, host = linked(), ModelHost()
    lanes = {name: outgoing.open(name, 1, 1) for name in "abc"}
    total = 0

    def deliver(texts):
        for text in texts:
            assert host.take(json.loads(text)) is None  # never a gap
        outgoing.written()

    def relink(forgets):
        if forgets:  # what was received and not committed is gone with the host's node
            host.received = dict(host.committed)
        named = outgoing.begin_link(2)
        assert outgoing.take() == ()
        for name, held in named.items():
            assert held.first_seq <= host.committed.get(name, 0) + 1 <= held.last_seq + 1
        host.received = {name: host.committed.get(name, 0) for name in named}
        status = {name: SessionStatus(acked_seq=seq) for name, seq in host.received.items()}
        assert outgoing.settle(status) == ()

    for step, first, second in steps:
        if step == "say":
            say(outgoing, lanes[first], second, size=3000)
            total += second
        elif step == "write":
            for _ in range(first):
                deliver(outgoing.take())
            if second:
                outgoing.take()  # taken, but lost with the link
                relink(forgets=False)
        elif step == "commit":
            host.committed[first] = host.received.get(first, 0)
            if second:
                outgoing.acknowledge({first: host.committed[first]}, [])
        else:
            relink(forgets=first)
    before = host.duplicates
    while texts := outgoing.take():
        deliver(texts)
    assert host.duplicates == before == 0
    assert sum(host.received.values()) == total
    outgoing.acknowledge(host.received, [])
    assert outgoing.is_idle
    assert outgoing.kept_bytes == 0
