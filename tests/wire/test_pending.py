from __future__ import annotations

import json
import math

import pytest

from semibot.errors import LocalProtocolError, RemoteProtocolError, RequestFailed
from semibot.wire.frames import ErrorDetail, Request, RequestStatus, Response
from semibot.wire.pending import Pending


class Kit:
    def __init__(self):
        self.now = 0.0
        self.woken = []
        self.pending = Pending(lambda: self.now)

    def add(self, id, method="memory_search", deadline=math.inf, params=None):
        frame = Request(id=id, session_id="s1", method=method, params=params or {})
        return self.pending.add(frame, deadline=deadline, wake=lambda: self.woken.append(id))

    def send(self, *requests):
        for request in requests:
            assert request.text() is not None
            request.taken()
            request.written(2)


def test_a_request_says_what_is_left_of_its_deadline():
    kit = Kit()
    request = kit.add("1", deadline=10)
    kit.now = 7.5
    assert json.loads(request.text())["deadline_ms"] == 2500
    kit.now = 11
    assert json.loads(request.text())["deadline_ms"] == 0
    assert "deadline_ms" not in json.loads(kit.add("2").text())


def test_only_the_first_answer_counts():
    kit = Kit()
    request = kit.add("1")
    assert kit.pending.answer(Response(id="1", result=5, error=None))
    assert not kit.pending.answer(Response(id="1", result=6, error=None))
    request.resolve(7)
    request.fail("X", "y")
    assert request.result() == 5
    assert kit.woken == ["1"]
    assert not kit.pending.remove(request)
    assert len(kit.pending) == 0
    assert not kit.pending.answer(Response(id="1", result=6, error=None))


def test_an_error_is_raised_to_whoever_asked():
    kit = Kit()
    request = kit.add("1")
    assert kit.pending.refuse("1", ErrorDetail(code="NOT_FOUND", message="no"))
    with pytest.raises(RequestFailed, match="no") as caught:
        request.result()
    assert caught.value.code == "NOT_FOUND"


def test_resume_names_only_what_the_host_may_have_seen():
    kit = Kit()
    first, second, third, fourth = (kit.add(name) for name in "1234")
    kit.send(first, second, fourth)
    assert kit.pending.remove(second)  # nobody waits any more: the host is to stop
    fourth.resolve(None)
    assert kit.pending.sent_ids() == ("1",)
    assert kit.pending.unsent() == (third,)
    assert not kit.pending.remove(third)
    assert third.text() is None


def test_what_was_lost_is_sent_again_unless_that_would_do_harm():
    kit = Kit()
    repeatable, not_named, harmful = kit.add("1"), kit.add("2"), kit.add("3", "mcp_call")
    kit.send(repeatable, not_named, harmful)
    results = {name: RequestStatus(status="not_found") for name in ("1", "3", "unknown")}
    kit.pending.settle(("1", "2", "3", "removed"), results)
    assert kit.pending.unsent() == (repeatable, not_named)
    with pytest.raises(RequestFailed) as caught:
        harmful.result()
    assert caught.value.code == "OUTCOME_UNKNOWN"


def test_what_the_host_knows_is_taken_from_it():
    kit = Kit()
    requests = [kit.add(name) for name in "123"]
    kit.send(*requests)
    results = {
        "1": RequestStatus(status="completed", data={"a": 1}),
        "2": RequestStatus(status="failed"),
        "3": RequestStatus(status="pending"),
    }
    kit.pending.settle(("1", "2", "3"), results)
    assert requests[0].result() == {"a": 1}
    with pytest.raises(RequestFailed) as caught:
        requests[1].result()
    assert caught.value.code == "REQUEST_FAILED"
    assert kit.pending.sent_ids() == ("3",)
    with pytest.raises(RemoteProtocolError):
        kit.pending.settle(("3",), {"3": RequestStatus(status="perhaps")})
    kit.pending.fail_all("X", "the end")
    with pytest.raises(RequestFailed, match="the end"):
        requests[2].result()


def test_a_request_that_no_frame_can_hold_is_refused():
    kit = Kit()
    with pytest.raises(LocalProtocolError):
        kit.add("1", params={"x": "y" * 11 * 2**20})
    assert len(kit.pending) == 0
