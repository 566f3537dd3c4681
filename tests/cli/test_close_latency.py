"""Ctrl-C reaches the model's server at once."""

from __future__ import annotations

import statistics

from close_latency import measure_many


async def test_the_server_sees_its_connection_closed_within_200_ms_in_the_median() -> None:
    found = await measure_many(10)
    assert [item.code for item in found] == [130] * 10
    assert all("stopped    model call" in item.receipt for item in found)
    assert statistics.median(item.seconds for item in found) < 0.2
