from __future__ import annotations

import pytest

from semibot.host.metrics import Counter, Gauge, Histogram, Metrics


def show_all(_label: str, _value: str) -> bool:
    return True


def lines(metric: Counter | Gauge | Histogram) -> list[str]:
    return list(metric.samples(show_all))


def test_a_metric_without_labels_is_there_from_the_start() -> None:
    assert lines(Counter("c", "Help.")) == ["c 0"]
    assert lines(Gauge("g", "Help.")) == ["g 0"]
    assert lines(Gauge("g", "Help.", "user_id")) == []


def test_a_counter_only_grows() -> None:
    counter = Counter("c", "Help.", "type")
    counter.inc(type="ack")
    counter.inc(2.5, type="ack")
    counter.inc(0, type="auth")
    assert counter.value(type="ack") == 3.5
    assert counter.value(type="never") == 0
    assert lines(counter) == ['c{type="ack"} 3.5', 'c{type="auth"} 0']
    for amount in (-1, float("nan")):
        with pytest.raises(ValueError, match="cannot go down"):
            counter.inc(amount, type="ack")


def test_a_counter_catches_up_with_another_count_and_never_falls_back() -> None:
    counter = Counter("c", "Help.")
    counter.catch_up(5)
    counter.catch_up(3)
    assert counter.value() == 5


def test_a_gauge_goes_both_ways_and_forgets() -> None:
    gauge = Gauge("g", "Help.", "user_id")
    gauge.set(2, user_id="a")
    gauge.inc(user_id="a")
    gauge.dec(4, user_id="a")
    gauge.inc(user_id="b")
    assert lines(gauge) == ['g{user_id="a"} -1', 'g{user_id="b"} 1']
    gauge.remove(user_id="a")
    gauge.remove(user_id="a")
    assert gauge.value(user_id="a") == 0
    assert lines(gauge) == ['g{user_id="b"} 1']
    gauge.replace("user_id", {"c": 7})
    assert lines(gauge) == ['g{user_id="c"} 7']


def test_a_histogram_counts_into_buckets_that_include_their_bound() -> None:
    histogram = Histogram("h", "Help.", "method")
    for value in (0.001, 0.005, 0.006, 1000.0):
        histogram.observe(value, method="m")
    said = lines(histogram)
    assert said[0] == 'h_bucket{method="m",le="0.005"} 2'
    assert said[1] == 'h_bucket{method="m",le="0.01"} 3'
    assert said[-4] == 'h_bucket{method="m",le="60"} 3'
    assert said[-3] == 'h_bucket{method="m",le="+Inf"} 4'
    assert said[-2] == 'h_sum{method="m"} 1000.012'
    assert said[-1] == 'h_count{method="m"} 4'
    assert histogram.count(method="m") == 4
    assert histogram.count(method="other") == 0


@pytest.mark.parametrize("labels", [{}, {"other": "x"}, {"type": "x", "more": "y"}])
def test_labels_that_a_metric_does_not_have_are_a_mistake(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="has the labels"):
        Counter("c", "Help.", "type").inc(**labels)


def test_label_values_are_escaped() -> None:
    counter = Counter("c", "Help.", "type")
    counter.inc(type='a"b\\c\nd')
    assert lines(counter) == ['c{type="a\\"b\\\\c\\nd"} 1']


def test_what_a_reader_may_not_see_is_added_up() -> None:
    gauge = Gauge("g", "Help.", "user_id")
    for number, name in enumerate("abc", start=1):
        gauge.set(number, user_id=name)
    assert list(gauge.samples(lambda _, value: value == "b")) == [
        'g{user_id="b"} 2',
        'g{user_id="others"} 4',
    ]


def test_the_exposition_names_every_metric_once() -> None:
    metrics = Metrics()
    metrics.ws_messages_sent_total.inc(1, type="ack")
    metrics.ws_request_duration_seconds.observe(0.2, method="memory_search")
    text = metrics.exposition()
    assert text.endswith("\n")
    assert {
        "ws_connections_active",
        "ws_sessions_per_connection",
        "ws_messages_sent_total",
        "ws_messages_received_total",
        "ws_reconnections_total",
        "ws_request_duration_seconds",
        "sse_buffer_size",
        "sse_events_forwarded_total",
    } <= set(metrics.all)
    for name, metric in metrics.all.items():
        assert text.count(f"# TYPE {name} {metric.kind}\n") == 1
        assert text.count(f"# HELP {name} ") == 1
    assert 'ws_messages_sent_total{type="ack"} 1\n' in text
    assert "\n\n" not in text
