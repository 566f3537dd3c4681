"""Nonsense on a link: its end answers, or leaves, and goes on with everybody else."""

from __future__ import annotations

from urllib.parse import quote

import pytest
import trio
from hostile_links import attack_host, attack_vm
from http_kit import ANN, Host


def test_a_host_outlives_what_a_vm_says() -> None:
    outcome = attack_host(15)
    assert outcome.accepted


def test_a_vm_outlives_what_a_host_says() -> None:
    outcome = attack_vm(15)
    assert outcome.accepted


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-",
        "1-",
        "-1",
        "1--1",
        "1-1-1",
        " 1-1",
        "1-1 ",
        "+1-1",
        "1_0-1",
        "0x1-1",
        "1.0-1",
        "1e1-1",
        "\u0661-\u0661",
        "1\u20131",
        "1234567890-1",
        "1-1234567890123456789",
        "9" * 30_000,
        "1-1\0",
        "null",
        "1-1,1-1",
        "\xff-1",
    ],
)
async def test_an_event_id_that_is_none_is_a_bad_request(autojump_clock, text) -> None:
    host = Host()
    host.store.add_session()
    stream = "/api/v1/sessions/s1/stream"
    with trio.fail_after(60):
        said = text.encode("latin-1", "replace").decode("latin-1")
        answer = await host.ask("GET", stream, headers={**ANN, "last-event-id": said})
        assert (answer.status, answer.code) == (400, "BAD_EVENT_ID")
        answer = await host.ask("GET", f"{stream}?last_event_id={quote(text)}")
        assert (answer.status, answer.code) == (400, "BAD_EVENT_ID")
