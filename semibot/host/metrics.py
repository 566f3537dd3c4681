"""Count what a host does, and say it in the text format that Prometheus reads."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias, final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of :meth:`Metrics.exposition`."""

OTHERS: Final = "others"
"""Label value that stands for all values that a reader is not shown."""

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of a histogram's buckets, in seconds."""

_Key: TypeAlias = tuple[str, ...]

Shows: TypeAlias = Callable[[str, str], bool]
"""Whether a reader is shown a label's value: takes the label and the value."""


def _show_all(_label: str, _value: str) -> bool:
    return True


class _Labels:
    """The label names of one metric, and how their values are keyed and written."""

    def __init__(self, metric: str, names: _Key) -> None:
        self._metric = metric
        self._names = names

    def key(self, labels: Mapping[str, str]) -> _Key:
        """Return the values in order; refuse names that the metric does not have."""
        if set(labels) != set(self._names):
            message = f"{self._metric} has the labels {self._names}, not {tuple(labels)}"
            raise ValueError(message)
        return tuple(labels[name] for name in self._names)

    def seen_by(self, shows: Shows, key: _Key) -> _Key:
        """Return *key* with what is not shown replaced by :data:`OTHERS`."""
        return tuple(
            value if shows(name, value) else OTHERS
            for name, value in zip(self._names, key, strict=True)
        )

    def text(self, key: _Key, extra: str = "") -> str:
        """Return ``{name="value",...}``, or nothing without labels."""
        pairs = [f'{name}="{_escape(value)}"' for name, value in zip(self._names, key, strict=True)]
        if extra:
            pairs.append(extra)
        return "{" + ",".join(pairs) + "}" if pairs else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


@final
class Counter:
    """A number that only grows, by label values.

    Args:
        name: Name of the metric.
        help_text: One line for people.
        labels: Names of its labels.
    """

    kind: Final = "counter"

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = name
        self.help_text = help_text
        self._labels = _Labels(name, labels)
        self._values: dict[_Key, float] = {} if labels else {(): 0.0}

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        """Add *amount*, at least 0."""
        if not amount >= 0:
            message = f"{self.name} cannot go down"
            raise ValueError(message)
        key = self._labels.key(labels)
        self._values[key] = self._values.get(key, 0.0) + amount

    def catch_up(self, total: float, **labels: str) -> None:
        """Go up to *total*, which somebody else has counted; never down."""
        key = self._labels.key(labels)
        self._values[key] = max(self._values.get(key, 0.0), float(total))

    def value(self, **labels: str) -> float:
        """Return the number; 0 for labels that were never counted."""
        return self._values.get(self._labels.key(labels), 0.0)

    def samples(self, shows: Shows) -> Iterator[str]:
        """Return the lines of the exposition."""
        yield from _lines(self.name, self._labels, self._values, shows)


@final
class Gauge:
    """A number that goes up and down, by label values.

    Args:
        name: Name of the metric.
        help_text: One line for people.
        labels: Names of its labels.
    """

    kind: Final = "gauge"

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = name
        self.help_text = help_text
        self._labels = _Labels(name, labels)
        self._values: dict[_Key, float] = {} if labels else {(): 0.0}

    def set(self, value: float, **labels: str) -> None:
        """Make it *value*."""
        self._values[self._labels.key(labels)] = float(value)

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        """Add *amount*."""
        key = self._labels.key(labels)
        self._values[key] = self._values.get(key, 0.0) + amount

    def dec(self, amount: float = 1.0, **labels: str) -> None:
        """Take *amount* away."""
        self.inc(-amount, **labels)

    def remove(self, **labels: str) -> None:
        """Forget one series, so that what has ended does not stay for ever."""
        self._values.pop(self._labels.key(labels), None)

    def replace(self, label: str, values: Mapping[str, float]) -> None:
        """Make *values* of its one label *label* all that there is."""
        self._values = {
            self._labels.key({label: name}): float(value) for name, value in values.items()
        }

    def value(self, **labels: str) -> float:
        """Return the number; 0 for labels that were never set."""
        return self._values.get(self._labels.key(labels), 0.0)

    def samples(self, shows: Shows) -> Iterator[str]:
        """Return the lines of the exposition."""
        yield from _lines(self.name, self._labels, self._values, shows)


def _lines(name: str, labels: _Labels, values: Mapping[_Key, float], shows: Shows) -> Iterator[str]:
    seen: dict[_Key, float] = {}
    for key, value in values.items():
        shown = labels.seen_by(shows, key)
        seen[shown] = seen.get(shown, 0.0) + value
    for key in sorted(seen):
        yield f"{name}{labels.text(key)} {_number(seen[key])}"


@final
class Histogram:
    """How long things take, in seconds, by label values.

    Args:
        name: Name of the metric.
        help_text: One line for people.
        labels: Names of its labels; their values come from a small set.
    """

    kind: Final = "histogram"

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = name
        self.help_text = help_text
        self._labels = _Labels(name, labels)
        self._counts: dict[_Key, list[int]] = {}
        self._sums: dict[_Key, float] = {}

    def observe(self, value: float, **labels: str) -> None:
        """Count one that took *value* seconds."""
        key = self._labels.key(labels)
        counts = self._counts.setdefault(key, [0] * (len(BUCKETS) + 1))
        counts[bisect_left(BUCKETS, value)] += 1
        self._sums[key] = self._sums.get(key, 0.0) + value

    def count(self, **labels: str) -> int:
        """Return how many were observed."""
        return sum(self._counts.get(self._labels.key(labels), ()))

    def samples(self, shows: Shows) -> Iterator[str]:
        """Return the lines of the exposition; *shows* is not asked, as no label is personal."""
        for key in sorted(self._counts):
            total = 0
            for bound, number in zip((*BUCKETS, math.inf), self._counts[key], strict=True):
                total += number
                limit = "+Inf" if math.isinf(bound) else _number(bound)
                extra = f'le="{limit}"'
                yield f"{self.name}_bucket{self._labels.text(key, extra)} {total}"
            yield f"{self.name}_sum{self._labels.text(key)} {_number(self._sums[key])}"
            yield f"{self.name}_count{self._labels.text(key)} {total}"


@final
class Metrics:
    """Everything that one host counts."""

    def __init__(self) -> None:
        self.ws_connections_active: Gauge = Gauge(
            "ws_connections_active", "Links of VMs that are up."
        )
        self.ws_sessions_per_connection: Gauge = Gauge(
            "ws_sessions_per_connection", "Sessions that a user's VM holds.", "user_id"
        )
        self.ws_messages_sent_total: Counter = Counter(
            "ws_messages_sent_total", "Frames written to VMs.", "type"
        )
        self.ws_messages_received_total: Counter = Counter(
            "ws_messages_received_total", "Frames read from VMs.", "type"
        )
        self.ws_reconnections_total: Counter = Counter(
            "ws_reconnections_total", "Links of VM processes that had one before."
        )
        self.ws_request_duration_seconds: Histogram = Histogram(
            "ws_request_duration_seconds", "Time to answer a VM's request.", "method"
        )
        self.vm_liveness: Gauge = Gauge(
            "vm_liveness", "VMs that had a link here, by how they do.", "state"
        )
        self.vm_loop_lag_seconds: Gauge = Gauge(
            "vm_loop_lag_seconds", "How late a VM's loop was at worst, in a heartbeat.", "user_id"
        )
        self.vm_blocks_total: Counter = Counter(
            "vm_blocks_total", "Heartbeats that told of a loop that had stood still."
        )
        self.vm_blocked_seconds_total: Counter = Counter(
            "vm_blocked_seconds_total", "How long those loops had stood still, in seconds."
        )
        self.sse_buffer_size: Gauge = Gauge(
            "sse_buffer_size", "Bytes of events kept in memory for readers.", "session_id"
        )
        self.sse_events_forwarded_total: Counter = Counter(
            "sse_events_forwarded_total", "Events written to readers."
        )
        self.sse_readers_active: Gauge = Gauge("sse_readers_active", "Event streams that are open.")
        self.http_requests_total: Counter = Counter(
            "http_requests_total", "Answers, by method and status.", "method", "status"
        )

    @property
    def all(self) -> Mapping[str, Counter | Gauge | Histogram]:
        """Every metric by its name."""
        found = (
            value for value in vars(self).values() if isinstance(value, Counter | Gauge | Histogram)
        )
        return MappingProxyType({metric.name: metric for metric in found})

    def exposition(self, shows: Shows = _show_all) -> str:
        """Return everything as text, version 0.0.4 of the format.

        Args:
            shows: Which label values the reader may see; the series of all others are
                added up under :data:`OTHERS`.
        """
        lines: list[str] = []
        for metric in self.all.values():
            lines.append(f"# HELP {metric.name} {metric.help_text}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines.extend(metric.samples(shows))
        return "\n".join(lines) + "\n"
