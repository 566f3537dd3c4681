"""Tickets and the hashes that are kept of them."""

from __future__ import annotations

from semibot.security.tickets import hash_secret, new_ticket
from semibot.testing import simulated_ports


def test_tickets_differ_and_do_not_show() -> None:
    ids = simulated_ports(1).ids
    tickets = [new_ticket(ids) for _ in range(3)]
    assert len({ticket.reveal() for ticket in tickets}) == 3
    assert all(len(ticket.reveal()) == 32 for ticket in tickets)
    assert tickets[0].reveal() not in repr(tickets)


def test_a_hash_is_sha_256_in_hexadecimal() -> None:
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_secret("abc") == expected
    assert hash_secret("ü") != hash_secret("u")
    assert len(hash_secret("\ud800")) == 64
