"""Who asks: the local user, strangers who pretend to be near, and Bearer tokens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from semibot.errors import OriginRefused, Unauthenticated
from semibot.secret import Secret
from semibot.security.principals import Principal, Principals
from semibot.security.tokens import Tokens

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """A wall clock that stands where it is put."""

    def __init__(self, time: datetime = NOW) -> None:
        self.time = time

    def now(self) -> datetime:
        return self.time


def tokens(time: datetime = NOW) -> Tokens:
    return Tokens(Secret("a key of the tests and of nothing else"), Clock(time), 3600)


LOCAL: Final = Principals(is_local=True, tokens=tokens())
BEARER: Final = Principals(is_local=False, tokens=tokens())

# --- on loopback ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8080",
        "LocalHost:1",
        "127.0.0.1",
        "127.0.0.1:65535",
        "127.0.0.2:80",
        "[::1]",
        "[::1]:8080",
    ],
)
def test_whoever_reaches_loopback_by_its_name_is_the_local_user(host: str) -> None:
    assert LOCAL.authenticate({"host": host}) == Principal(user_id="local", org_id="local")
    for scheme in ("http", "https"):
        LOCAL.check_origin({"host": host, "origin": f"{scheme}://{host}"})


def test_the_local_user_may_have_another_name() -> None:
    principals = Principals(is_local=True, tokens=tokens(), local_user="me")
    assert principals.authenticate({"host": "localhost"}).user_id == "me"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "evil.localhost",
        "localhost.",
        "localhost:",
        "localhost:x",
        "localhost:123456",
        "localhost,evil.example",
        "127.0.0.1.evil.example",
        "128.0.0.1",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::2]",
        "::1",
        "[::1",
        "[::ffff:8.8.8.8]",
        "[fe80::1%lo]",
        "user@localhost",
        "localhost/",
        " localhost",
        "localhost\n",
        "10.0.0.1",
        "metadata",
        "\uff4cocalhost",
    ],
    ids=ascii,
)
def test_a_foreign_host_is_refused(host: str) -> None:
    with pytest.raises(OriginRefused) as caught:
        LOCAL.authenticate({"host": host})
    assert caught.value.header == "Host"
    assert "the header Host is foreign" in str(caught.value)


def test_a_request_without_a_host_is_refused() -> None:
    with pytest.raises(OriginRefused):
        LOCAL.check_origin({})


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "http://evil.example",
        "http://localhost",
        "http://localhost:3000",
        "http://127.0.0.1:8080",
        "localhost:8080",
        "http://localhost:8080/",
        "file://",
        "http://localhost:8080, http://evil.example",
        "ftp://localhost:8080",
        "http://localhost:8080.evil.example",
        "chrome-extension://localhost:8080",
    ],
    ids=ascii,
)
def test_a_foreign_origin_is_refused(origin: str) -> None:
    with pytest.raises(OriginRefused) as caught:
        LOCAL.authenticate({"host": "localhost:8080", "origin": origin})
    assert caught.value.header == "Origin"


# --- with tokens ----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_bearer_token_says_whose_request_it_is(scheme: str) -> None:
    token = tokens().make_user_token("u", "o")
    headers = {"host": "any.example", "authorization": f"{scheme} {token}"}
    assert BEARER.authenticate(headers) == Principal(user_id="u", org_id="o")


def test_pages_elsewhere_have_no_tokens_so_that_origins_do_not_matter() -> None:
    BEARER.check_origin({"host": "any.example", "origin": "http://evil.example"})
    BEARER.check_origin({})


def code_for(headers: dict[str, str]) -> str:
    with pytest.raises(Unauthenticated) as caught:
        BEARER.authenticate(headers)
    assert str(caught.value)
    for value in headers.values():
        assert value not in str(caught.value) or not value
    return caught.value.code


def test_a_request_without_a_token_is_told_that_it_needs_one() -> None:
    assert code_for({"host": "localhost"}) == "AUTH_REQUIRED"


def test_an_expired_token_is_told_apart() -> None:
    token = tokens(NOW - timedelta(hours=1)).make_user_token("u", "o")
    assert code_for({"authorization": f"Bearer {token}"}) == "AUTH_EXPIRED"


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer a.b.c",
        "Basic dTpw",
        "Bearer a b",
        "Bearera.b.c",
        "Bearer ü",
        "Bearer \n",
        "Bearer x, Bearer y",
    ],
    ids=ascii,
)
def test_what_is_no_good_token_is_invalid(given: str) -> None:
    assert code_for({"authorization": given}) == "AUTH_INVALID"


def test_the_token_of_a_vm_is_no_users() -> None:
    token = tokens().make_vm_token("u", "o")
    assert code_for({"authorization": f"Bearer {token}"}) == "AUTH_INVALID"
