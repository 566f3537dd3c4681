from __future__ import annotations

import random

import pytest
import trio

from semibot.channel import Backoff, vitals
from semibot.channel.address import parse_plane_url
from semibot.channel.web_socket import LinkEnded
from semibot.observe.watchdog import LoopBlock, Watchdog
from semibot.secret import Secret


def test_the_delay_is_full_jitter_up_to_30_s():
    backoff = Backoff(random.Random(1))
    rounds = []
    for _ in range(300):
        backoff.reset()
        rounds.append([backoff.next_delay() for _ in range(40)])
    for failures, delays in enumerate(zip(*rounds, strict=True)):
        longest = min(30.0, 2.0**failures)
        assert all(0 <= delay <= longest for delay in delays)
        assert min(delays) < longest * 0.1
        assert max(delays) > longest * 0.9


def test_the_delay_stays_bounded_for_ever():
    backoff = Backoff(random.Random(1))
    backoff.failures = 100_000
    assert backoff.next_delay() <= 30


@pytest.mark.parametrize(
    ("url", "header", "port", "use_tls", "resource"),
    [
        ("ws://h", "h", 80, False, "/ws/vm?user_id=u+1"),
        ("wss://h.example/", "h.example", 443, True, "/ws/vm?user_id=u+1"),
        ("ws://h:443/x/y?a=b&user_id=z", "h:443", 443, False, "/x/y?a=b&user_id=u+1"),
        ("ws://[::1]:9/ws/vm", "[::1]:9", 9, False, "/ws/vm?user_id=u+1"),
    ],
)
def test_a_url_is_taken_apart(url, header, port, use_tls, resource):
    address = parse_plane_url(url)
    assert (address.host_header, address.port, address.use_tls) == (header, port, use_tls)
    assert address.resource("u 1", None) == resource
    assert address.resource("u 1", Secret("t&t")) == resource + "&ticket=t%26t"


async def test_a_heartbeat_tells_what_was_worst_since_the_last_one(autojump_clock):
    watchdog = Watchdog()
    health = vitals.Vitals(watchdog, is_simulated=False)
    health.note_lag(0.5)
    health.note_lag(0.25)
    watchdog.record(0.1, LoopBlock(seconds=2.5, where="a.py:1 in f", stack=("b", "a")))
    watchdog.record(0.1, LoopBlock(seconds=1.5, where="a.py:9 in g", stack=()))
    beat = health.heartbeat(("s1",), 2)
    assert beat.lag_ms == 500
    assert beat.blocked is not None
    assert (beat.blocked.seconds, beat.blocked.where) == (2.5, "a.py:1 in f")
    assert beat.blocked.stack == ("b", "a")
    assert beat.rss_bytes is not None
    assert beat.rss_bytes > 2**20
    assert beat.sent_at == trio.current_time()
    beat = health.heartbeat((), 2)
    assert (beat.lag_ms, beat.blocked) == (0, None)
    watchdog.record(0.75, None)
    health.note_lag(0.5)
    assert health.heartbeat((), 2).lag_ms == 750
    assert health.heartbeat(("s1",), 1).sent_at is None


def test_a_system_that_does_not_say_what_memory_is_used_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(vitals, "_STATM", tmp_path / "missing")
    assert vitals.resident_bytes() is None


def test_the_end_of_a_link_is_told_with_its_code_if_there_is_one():
    assert str(LinkEnded(1006, "lost")) == "lost"
    assert str(LinkEnded(4008, "silent")) == "silent (close code 4008)"
