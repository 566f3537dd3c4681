"""The envelope in which provider keys travel in ``init`` (protocol section 4).

AES-256-GCM under a key that is derived from the VM token of the same link, so that a recorded
``init`` says nothing without the token. Keys live in memory only, as :class:`Secret`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from typing import Final

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.logs import get_logger
from semibot.secret import Secret
from semibot.wire.codec import JsonObject, JsonValue, structure, unstructure

log: Final = get_logger(__name__)

ALGORITHM: Final = "aes-256-gcm"
"""The one algorithm."""

NONCE_BYTES: Final = 12
"""Length of the ``iv``."""

TAG_BYTES: Final = 16
"""Length of the ``tag``."""

_KEY_PREFIX: Final = b"semibot:init:"
_ASSOCIATED: Final = b"semibot:init:api_keys"


@attrs.frozen(kw_only=True)
class _Envelope:
    alg: str
    iv: str
    tag: str
    ciphertext: str


def seal_keys(keys: Mapping[str, Secret], token: str, nonce: Callable[[int], bytes]) -> JsonObject:
    """Return ``api_keys`` of ``init``: each key in an envelope of its own.

    Args:
        keys: Keys by provider.
        token: The VM token exactly as it was sent in this link's ``auth``.
        nonce: Returns as many random bytes as asked for, never the same twice.

    Raises:
        LocalProtocolError: If a key is no Unicode, or *nonce* does not do what it must.
    """
    cipher = AESGCM(_key_from(token))
    return {name: _seal(cipher, key, nonce(NONCE_BYTES)) for name, key in keys.items()}


def _seal(cipher: AESGCM, key: Secret, nonce: bytes) -> JsonValue:
    if len(nonce) != NONCE_BYTES:
        raise LocalProtocolError(f"a nonce has {NONCE_BYTES} bytes")
    try:
        plain = key.reveal().encode()
    except UnicodeEncodeError:
        raise LocalProtocolError("a provider key is no Unicode") from None
    sealed = cipher.encrypt(nonce, plain, _ASSOCIATED)
    return unstructure(
        _Envelope(
            alg=ALGORITHM,
            iv=_to_text(nonce),
            tag=_to_text(sealed[-TAG_BYTES:]),
            ciphertext=_to_text(sealed[:-TAG_BYTES]),
        )
    )


def open_keys(api_keys: JsonObject, token: str) -> Mapping[str, Secret]:
    """Return the provider keys that ``init`` brought.

    One that cannot be opened is left out and logged. A plain string, which level 1 hosts may
    send, is taken as it is.

    Args:
        api_keys: ``api_keys`` of ``init``.
        token: The VM token exactly as it was sent in this link's ``auth``.
    """
    cipher = AESGCM(_key_from(token))
    keys: dict[str, Secret] = {}
    for name, value in api_keys.items():
        if isinstance(value, str):
            keys[name] = Secret(value)
            continue
        try:
            keys[name] = _open(cipher, value)
        except RemoteProtocolError as exc:
            log.warning("a provider key cannot be opened", provider=name, reason=exc.reason)
    return keys


def _open(cipher: AESGCM, value: JsonValue) -> Secret:
    envelope = structure(value, _Envelope)
    if envelope.alg != ALGORITHM:
        raise RemoteProtocolError("unknown algorithm", "$.alg")
    nonce, tag = _from_text(envelope.iv, "$.iv"), _from_text(envelope.tag, "$.tag")
    if len(nonce) != NONCE_BYTES or len(tag) != TAG_BYTES:
        raise RemoteProtocolError("iv or tag has a wrong length")
    sealed = _from_text(envelope.ciphertext, "$.ciphertext") + tag
    try:
        return Secret(cipher.decrypt(nonce, sealed, _ASSOCIATED).decode())
    except InvalidTag:
        raise RemoteProtocolError("sealed for another token, or damaged") from None
    except UnicodeDecodeError:
        raise RemoteProtocolError("not valid Unicode", "$.ciphertext") from None


def _key_from(token: str) -> bytes:
    return hashlib.sha256(_KEY_PREFIX + token.encode("utf-8", "surrogatepass")).digest()


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_text(text: str, path: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RemoteProtocolError("not base64", path) from None
