"""Make and check the tokens of users and VMs: JSON Web Tokens, signed with HS256.

PyJWT signs and compares signatures; what a token has to say is checked here, more strictly
than PyJWT would. The key has at least 32 bytes, there is one algorithm, ``exp`` and ``iat``
have to be there and may not lie far apart, and a token made for a VM is never a user's, nor
the other way round. Nothing in a token's header chooses anything.
"""

from __future__ import annotations

import re
from typing import Final, final

import attrs
import jwt

from semibot.errors import ConfigError, RemoteProtocolError, TokenRefused
from semibot.ports import WallClock
from semibot.secret import Secret
from semibot.wire.codec import JsonObject, JsonValue, dump_json, load_json

ALGORITHM: Final = "HS256"
"""The one algorithm."""

MIN_KEY_BYTES: Final = 32
"""Shortest key, in bytes of UTF-8."""

MAX_TOKEN_LENGTH: Final = 8 * 1024
"""Longest token that is looked at, in characters."""

MAX_LIFETIME: Final = 31 * 24 * 3600
"""Longest time between ``iat`` and ``exp``, in seconds."""

LEEWAY: Final = 30
"""How far the clock of whoever made a token may be ahead, in seconds."""

VM_AUDIENCE: Final = "semibot-vm"
"""``aud`` of a VM token."""

USER_AUDIENCE: Final = "semibot"
"""``aud`` of a user token."""

MAX_NAME_LENGTH: Final = 256
"""Most characters of a user's or an organization's id."""

_USER_CLAIMS: Final = ("role", "permissions")
_LARGEST_TIME: Final = 2**53


# --- keys -----------------------------------------------------------------------------

_GUESSABLE: Final = (  # noqa: SIM905 - as a list it would be a hundred lines
    "a an and any app api at be bit bits bytes change changed changeit changeme characters "
    "chars com correct battery horse staple cat keyboard default demo dev development do dummy "
    "example fake fixme for generated github here hs256 hmac in insecure is it jwt key least "
    "length local long longer me minimum must my need not of only our pass passphrase password "
    "placeholder please prod production random replace replaceme sample secret secure semibot "
    "should signing some string strong super test testing that the this to todo token too top "
    "unsafe use value very with you your "
    "0123456789 1234567890 123456 12345 1234 123 32 64 128 256 512 2024 2025 2026 "
    "abcdefghijklmnopqrstuvwxyz abcdef abc qwerty"
).split()
"""Words that the keys of tutorials and sample files are made of."""

# Longest first and without going back, so that a hostile text costs no more than its length.
_ONLY_GUESSABLE: Final = re.compile(
    r"(?:[\W_]*(?:" + "|".join(sorted(_GUESSABLE, key=len, reverse=True)) + r"))++[\W_]*"
)
_FEWEST_DIFFERENT: Final = 5


def check_secret(secret: Secret | None, name: str = "JWT_SECRET") -> Secret:
    """Return *secret* if it can keep strangers out.

    Args:
        secret: The key.
        name: The variable that it came from, for the message.

    Raises:
        ConfigError: If it is missing, has less than :data:`MIN_KEY_BYTES` bytes, or is one
            that everybody knows or can guess.
    """
    advice = f"set {name} to at least {MIN_KEY_BYTES} random bytes: `openssl rand -hex 32`"
    if secret is None or not secret:
        raise ConfigError(f"{name} is not set; {advice}")
    text = secret.reveal()
    if _is_well_known(text):
        raise ConfigError(f"{name} is a text that everybody knows; {advice}")
    if len(text.encode("utf-8", "surrogatepass")) < MIN_KEY_BYTES:
        raise ConfigError(f"{name} is too short; {advice}")
    return secret


def _is_well_known(text: str) -> bool:
    return len(set(text)) < _FEWEST_DIFFERENT or _ONLY_GUESSABLE.fullmatch(text.lower()) is not None


# --- tokens ---------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class VmClaims:
    """What a VM token says."""

    user_id: str
    """Whose VM it is."""
    org_id: str
    """The user's organization."""
    expires_at: int
    """When it stops being accepted, in seconds since 1970."""
    issued_at: int
    """When it was made, in seconds since 1970."""


@attrs.frozen(kw_only=True)
class UserClaims:
    """What a user token says."""

    user_id: str
    """The user."""
    org_id: str
    """The user's organization."""
    expires_at: int
    """When it stops being accepted, in seconds since 1970."""


@final
class Tokens:
    """Makes and checks the tokens of one host.

    Args:
        key: What they are signed with.
        wall_clock: What time it is.
        token_ttl: How long a new token is accepted, in seconds, at most
            :data:`MAX_LIFETIME`.

    Raises:
        ConfigError: If the key is too short, or tokens would live too long or not at all.
    """

    def __init__(self, key: Secret, wall_clock: WallClock, token_ttl: float) -> None:
        self._key = key.reveal().encode("utf-8", "surrogatepass")
        if len(self._key) < MIN_KEY_BYTES:
            raise ConfigError(f"a key of tokens has at least {MIN_KEY_BYTES} bytes")
        if not 1 <= token_ttl <= MAX_LIFETIME:
            raise ConfigError(f"VM_TOKEN_TTL is between 1 second and {MAX_LIFETIME} seconds")
        self._wall_clock = wall_clock
        self._ttl = int(token_ttl)
        self._jws = jwt.PyJWS([ALGORITHM])

    def make_vm_token(self, user_id: str, org_id: str) -> str:
        """Return a new token for the user's VM; it is a secret."""
        return self._make(user_id, org_id, VM_AUDIENCE)

    def make_user_token(self, user_id: str, org_id: str) -> str:
        """Return a new token for the user; it is a secret."""
        return self._make(user_id, org_id, USER_AUDIENCE)

    def verify_vm_token(self, token: str) -> VmClaims:
        """Return what a VM token says.

        A token that names ``role`` or ``permissions`` is a user's, whatever else it says.

        Raises:
            TokenRefused: If it is not one that is accepted now.
        """
        claims = self._verified(token, VM_AUDIENCE)
        if any(name in claims for name in _USER_CLAIMS):
            raise TokenRefused("audience")
        return VmClaims(
            user_id=_name(claims, "userId"),
            org_id=_name(claims, "orgId"),
            expires_at=_time(claims, "exp"),
            issued_at=_time(claims, "iat"),
        )

    def verify_user_token(self, token: str) -> UserClaims:
        """Return what a user token says.

        Raises:
            TokenRefused: If it is not one that is accepted now.
        """
        claims = self._verified(token, USER_AUDIENCE)
        return UserClaims(
            user_id=_name(claims, "userId"),
            org_id=_name(claims, "orgId"),
            expires_at=_time(claims, "exp"),
        )

    def _now(self) -> int:
        return int(self._wall_clock.now().timestamp())

    def _make(self, user_id: str, org_id: str, audience: str) -> str:
        now = self._now()
        claims: JsonObject = {
            "userId": user_id,
            "orgId": org_id,
            "iat": now,
            "exp": now + self._ttl,
            "aud": audience,
        }
        return self._jws.encode(dump_json(claims).encode(), self._key, algorithm=ALGORITHM)

    def _verified(self, token: str, audience: str) -> JsonObject:
        """Return the claims of a token of which everything but the names has been checked."""
        claims = self._signed(token)
        expires_at, issued_at, now = _time(claims, "exp"), _time(claims, "iat"), self._now()
        if issued_at > now + LEEWAY:
            raise TokenRefused("future")
        if "nbf" in claims and _time(claims, "nbf") > now + LEEWAY:
            raise TokenRefused("future")
        if not 0 < expires_at - issued_at <= MAX_LIFETIME:
            raise TokenRefused("lifetime")
        if now >= expires_at:
            raise TokenRefused("expired")
        if "aud" in claims and claims["aud"] != audience:
            raise TokenRefused("audience")
        return claims

    def _signed(self, token: str) -> JsonObject:
        if len(token) > MAX_TOKEN_LENGTH:
            raise TokenRefused("length")
        try:
            header = self._jws.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise TokenRefused("malformed") from None
        _check_header(header)
        try:
            payload = self._jws.decode_complete(token, self._key, algorithms=[ALGORITHM])["payload"]
        except (jwt.PyJWTError, ValueError):
            raise TokenRefused("signature") from None
        try:
            claims = load_json(payload)
        except RemoteProtocolError:
            raise TokenRefused("malformed") from None
        if not isinstance(claims, dict):
            raise TokenRefused("malformed")
        return claims


def _check_header(header: dict[str, JsonValue]) -> None:
    if header.get("alg") != ALGORITHM:
        raise TokenRefused("algorithm")
    kind = header.get("typ")
    if kind is not None and not (isinstance(kind, str) and kind.upper() == "JWT"):
        raise TokenRefused("type")
    if "crit" in header or "b64" in header:
        raise TokenRefused("crit")


def _time(claims: JsonObject, name: str) -> int:
    if name not in claims:
        raise TokenRefused("missing")
    value = claims[name]
    if type(value) is not int or not 0 <= value <= _LARGEST_TIME:
        raise TokenRefused("claims")
    return value


def _name(claims: JsonObject, name: str) -> str:
    if name not in claims:
        raise TokenRefused("missing")
    value = claims[name]
    if not (isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH):
        raise TokenRefused("claims")
    return value
