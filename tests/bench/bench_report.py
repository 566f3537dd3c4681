"""The table that a benchmark prints."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import attrs

UNITS = {
    "cpu_us_per_event": "CPU us/event",
    "events_per_second": "events/s",
    "p50_us": "p50 us",
    "p99_us": "p99 us",
    "kib": "KiB",
}
RISING = frozenset({"events_per_second"})
"""Figures of which more is better."""


@attrs.frozen
class Figure:
    """One figure of one server."""

    median: float
    rounds: Sequence[float]


@attrs.frozen
class Row:
    """One situation: per server, per name, a figure."""

    name: str
    peers: Mapping[str, Mapping[str, Figure]]


def ratio(row: Row, key: str, peer: str, ours: str = "semibot") -> float:
    """Return how much better *ours* is: the median of the rounds' ratios; above 1 is better."""
    mine, theirs = row.peers[ours][key].rounds, row.peers[peer][key].rounds
    ratios = [b / a if a > 0 else float("inf") for a, b in zip(mine, theirs, strict=True)]
    if key in RISING:
        ratios = [1 / one for one in ratios]
    return statistics.median(ratios)


def render(rows: Sequence[Row], peers: Sequence[str]) -> str:
    """Return the rows as a Markdown table: medians, and how many times better semibot is."""
    others = [peer for peer in peers if peer != "semibot"] if "semibot" in peers else []
    heads = ["situation", "figure", *peers, *(f"x better than {peer}" for peer in others)]
    lines = [heads, ["-"] * len(heads)]
    for row in rows:
        for key in next(iter(row.peers.values())):
            medians = [row.peers[peer][key].median for peer in peers]
            cells = [f"{median:,.1f}" if median < 1000 else f"{median:,.0f}" for median in medians]
            ratios = [f"{ratio(row, key, peer):.2f}" for peer in others]
            lines.append([row.name, UNITS[key], *cells, *ratios])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
