"""Tokens: what is accepted, and every way in which one is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Final

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semibot.errors import ConfigError, TokenRefused
from semibot.secret import Secret
from semibot.security.tokens import (
    LEEWAY,
    MAX_LIFETIME,
    MAX_TOKEN_LENGTH,
    Tokens,
    UserClaims,
    VmClaims,
    check_secret,
)

KEY: Final = "0f" * 8 + "a key of the tests, no secret"
NOW: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND: Final = int(NOW.timestamp())
TTL: Final = 12 * 3600


class Clock:
    """A wall clock that stands where it is put."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time


def tokens(key: str = KEY, clock: Clock | None = None, ttl: float = TTL) -> Tokens:
    return Tokens(Secret(key), clock or Clock(), ttl)


GOOD: Final = {"userId": "u", "orgId": "o", "iat": SECOND, "exp": SECOND + TTL}
HEADER: Final = {"alg": "HS256", "typ": "JWT"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: object, payload: object, key: str = KEY) -> str:
    """Return a token that is properly signed, whatever it says."""
    parts = [
        b64(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, payload)
    ]
    text = ".".join(parts)
    signature = hmac.new(key.encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{b64(signature)}"


def refusal(token: str, *, is_vm: bool = True) -> str:
    with pytest.raises(TokenRefused) as caught:
        (tokens().verify_vm_token if is_vm else tokens().verify_user_token)(token)
    assert token == "" or token not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value.reason


# --- what is accepted -----------------------------------------------------------------


def test_a_vm_token_says_whose_vm_it_is() -> None:
    claims = tokens().verify_vm_token(tokens().make_vm_token("ü", "o"))
    assert claims == VmClaims(user_id="ü", org_id="o", issued_at=SECOND, expires_at=SECOND + TTL)


def test_a_user_token_says_whose_it_is() -> None:
    claims = tokens().verify_user_token(tokens().make_user_token("u", "o"))
    assert claims == UserClaims(user_id="u", org_id="o", expires_at=SECOND + TTL)


def test_a_token_of_ours_is_a_plain_jwt() -> None:
    token = tokens().make_vm_token("u", "o")
    assert jwt.get_unverified_header(token) == HEADER
    decoded = jwt.decode(token, options={"verify_signature": False})
    assert decoded == {**GOOD, "aud": "semibot-vm"}


def test_a_token_made_elsewhere_needs_no_audience_and_no_typ() -> None:
    token = signed({"alg": "HS256"}, {**GOOD, "more": [1]})
    assert tokens().verify_vm_token(token).user_id == "u"
    assert tokens().verify_user_token(token).user_id == "u"


def test_the_key_id_in_a_header_chooses_nothing() -> None:
    token = signed({**HEADER, "kid": "../../etc/passwd"}, GOOD)
    assert tokens().verify_vm_token(token).user_id == "u"


def test_a_token_expires_to_the_second() -> None:
    clock = Clock()
    token = tokens().make_vm_token("u", "o")
    clock.time = NOW + timedelta(seconds=TTL - 1)
    tokens(clock=clock).verify_vm_token(token)
    clock.time = NOW + timedelta(seconds=TTL)
    with pytest.raises(TokenRefused, match="expired"):
        tokens(clock=clock).verify_vm_token(token)


def test_a_clock_may_be_half_a_minute_ahead() -> None:
    ahead = {**GOOD, "iat": SECOND + LEEWAY, "nbf": SECOND + LEEWAY}
    assert tokens().verify_vm_token(signed(HEADER, ahead)).user_id == "u"


# --- who it is for --------------------------------------------------------------------


def test_a_token_of_one_kind_is_never_one_of_the_other() -> None:
    ours = tokens()
    assert refusal(ours.make_user_token("u", "o")) == "audience"
    assert refusal(ours.make_vm_token("u", "o"), is_vm=False) == "audience"


@pytest.mark.parametrize("claim", ["role", "permissions"])
def test_a_token_with_rights_is_a_users(claim: str) -> None:
    token = signed(HEADER, {**GOOD, claim: None})
    assert refusal(token) == "audience"
    assert tokens().verify_user_token(token).user_id == "u"
    assert refusal(signed(HEADER, {**GOOD, claim: [], "aud": "semibot-vm"})) == "audience"


@pytest.mark.parametrize("audience", ["", None, 5, ["semibot-vm"], ["semibot"], "SEMIBOT-VM"])
def test_an_audience_is_one_string(audience: object) -> None:
    token = signed(HEADER, {**GOOD, "aud": audience})
    assert refusal(token) == "audience"
    assert refusal(token, is_vm=False) == "audience"


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *(({name: ...}, "missing") for name in GOOD),
        *(({name: None}, "claims") for name in GOOD),
        *(({name: True}, "claims") for name in GOOD),
        *(({name: ["u"]}, "claims") for name in GOOD),
        *(({name: 1.5}, "claims") for name in GOOD),
        *(({name: -1}, "claims") for name in GOOD),
        *(({name: 10**30}, "claims") for name in GOOD),
        ({"userId": ""}, "claims"),
        ({"userId": "u" * 257}, "claims"),
        ({"iat": str(SECOND)}, "claims"),
        ({"nbf": "soon"}, "claims"),
        ({"nbf": SECOND + LEEWAY + 1}, "future"),
        ({"iat": SECOND + LEEWAY + 1}, "future"),
        ({"iat": SECOND - 10, "exp": SECOND}, "expired"),
        ({"iat": SECOND, "exp": SECOND}, "lifetime"),
        ({"iat": SECOND, "exp": SECOND - 1}, "lifetime"),
        ({"exp": SECOND + MAX_LIFETIME + 1}, "lifetime"),
        ({"iat": 0}, "lifetime"),
    ],
    ids=str,
)
def test_claims_have_to_be_there_and_sane(change: dict[str, object], reason: str) -> None:
    claims = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    assert refusal(signed(HEADER, claims)) == reason
    assert refusal(signed(HEADER, claims), is_vm=False) == reason


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"alg": "none"}, "algorithm"),
        ({"alg": "None", "typ": "JWT"}, "algorithm"),
        ({"alg": "HS384"}, "algorithm"),
        ({"alg": "HS512"}, "algorithm"),
        ({"alg": "RS256"}, "algorithm"),
        ({"alg": "hs256"}, "algorithm"),
        ({"alg": None}, "algorithm"),
        ({"alg": ["HS256"]}, "algorithm"),
        ({"typ": "JWT"}, "algorithm"),
        ({**HEADER, "typ": "at+jwt"}, "type"),
        ({**HEADER, "typ": 5}, "type"),
        ({**HEADER, "crit": ["exp"]}, "crit"),
        ({**HEADER, "crit": []}, "crit"),
        ({**HEADER, "b64": True}, "crit"),
        ({**HEADER, "crit": ["b64"], "b64": False}, "crit"),
        ([], "malformed"),
        (5, "malformed"),
        (b"{", "malformed"),
        (b"\xff", "malformed"),
        (b"[" * 6000, "malformed"),
        ({**HEADER, "kid": 5}, "malformed"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_header_chooses_nothing(header: object, reason: str) -> None:
    found = refusal(signed(header, GOOD))
    assert found == reason or (reason == "crit" and found == "malformed")


def test_an_unsigned_token_is_refused() -> None:
    token = jwt.encode(GOOD, None, algorithm="none")
    assert refusal(token) == "algorithm"


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"{", b"[]", b"5", b"\xff", b"[" * 6000, json.dumps(GOOD).encode() + b" x"),
        json.dumps(GOOD).encode()[:-1] + b', "exp": 99999999999}',
        json.dumps({**GOOD, "more": float("nan")}).encode(),
    ],
    ids=lambda data: str(data[:30]),
)
def test_a_payload_is_strict_json(payload: bytes) -> None:
    assert refusal(signed(HEADER, payload)) == "malformed"


def test_another_key_is_refused() -> None:
    assert refusal(signed(HEADER, GOOD, key=KEY + "x")) == "signature"
    assert refusal(signed(HEADER, GOOD)[:-2]) in {"signature", "malformed"}


def test_a_changed_token_is_refused() -> None:
    header, payload, signature = tokens().make_vm_token("u", "o").split(".")
    other = b64(json.dumps({**GOOD, "userId": "v"}).encode())
    assert refusal(f"{header}.{other}.{signature}") == "signature"
    assert refusal(f"{header}.{payload}.") == "signature"
    assert refusal(f"{header}.{payload}") == "malformed"


@pytest.mark.parametrize("token", ["", ".", "..", "...", "a.b.c", "ü.ü.ü", "\ud800", "x" * 8000])
def test_what_is_no_token_is_refused(token: str) -> None:
    assert refusal(token) in {"malformed", "algorithm"}


def test_a_long_token_is_not_even_looked_at() -> None:
    token = signed(HEADER, {**GOOD, "more": "x" * MAX_TOKEN_LENGTH})
    assert refusal(token) == "length"


@settings(deadline=None)
@given(st.text(max_size=60), st.integers(0, 300))
def test_no_text_raises_anything_but_a_refusal(text: str, place: int) -> None:
    whole = signed(HEADER, GOOD)
    for token in (text, f"{text}.{text}.{text}", whole[:place] + text + whole[place:]):
        if token == whole:
            continue
        for verify in (tokens().verify_vm_token, tokens().verify_user_token):
            try:
                verify(token)
            except TokenRefused:
                continue
            raise AssertionError(token)


# --- keys -----------------------------------------------------------------------------


def test_a_key_has_at_least_thirty_two_bytes() -> None:
    tokens(key="k" * 32)
    tokens(key="ü" * 16)
    with pytest.raises(ConfigError, match="at least 32 bytes"):
        tokens(key="k" * 31)


@pytest.mark.parametrize("ttl", [0, 0.5, -1, MAX_LIFETIME + 1, float("nan"), float("inf")])
def test_tokens_live_for_a_sane_time(ttl: float) -> None:
    with pytest.raises(ConfigError, match="VM_TOKEN_TTL"):
        tokens(ttl=ttl)


@pytest.mark.parametrize(
    "text", ["8f7c32700e7b4b0f" * 2 + "9e5d", "ü€" * 3 + "qpwoeirutylaksjdhfg", KEY]
)
def test_a_good_secret_is_returned(text: str) -> None:
    secret = Secret(text)
    assert check_secret(secret) is secret


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "JWT_SECRET is not set"),
        ("", "JWT_SECRET is not set"),
        ("7d1f93c0a2", "too short"),
        ("ÿ" * 5 + "q8Zr", "too short"),
        ("x" * 64, "everybody knows"),
        ("ab" * 32, "everybody knows"),
        ("secret", "everybody knows"),
        ("changeme", "everybody knows"),
        ("secret" * 8, "everybody knows"),
        ("your-256-bit-secret", "everybody knows"),
        ("a-string-secret-at-least-256-bits-long", "everybody knows"),
        ("super-secret-jwt-key-change-me-in-production", "everybody knows"),
        ("Your_Super_Secret_JWT_Key_Minimum_32_Characters_Long", "everybody knows"),
        ("0123456789abcdef0123456789abcdef", "everybody knows"),
        ("dev-secret-dev-secret-dev-secret-dev", "everybody knows"),
        ("keyboard cat keyboard cat keyboard cat", "everybody knows"),
    ],
)
def test_a_weak_secret_is_refused_with_advice(text: str | None, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_secret(None if text is None else Secret(text))
    assert words in str(caught.value)
    assert "openssl rand -hex 32" in str(caught.value)
    if text:
        assert text not in str(caught.value)


def test_the_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="set OTHER_KEY to at least"):
        check_secret(None, "OTHER_KEY")
