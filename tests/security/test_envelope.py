"""The envelope of provider keys, against the protocol's vector and what may go wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import LocalProtocolError
from semibot.secret import Secret
from semibot.security.envelope import open_keys, seal_keys
from semibot.wire.codec import JsonObject, JsonValue

TOKEN: Final = "vm-token-1"
NONCE: Final = base64.b64decode("AAECAwQFBgcICQoL")
VECTOR: Final[dict[str, JsonValue]] = {
    "alg": "aes-256-gcm",
    "iv": "AAECAwQFBgcICQoL",
    "tag": "Wo4BC+80fVJPrvqE/qoXRw==",
    "ciphertext": "iE/ZjF9HiqEnjog=",
}
RECORDINGS: Final = Path(__file__).parents[1] / "fixtures" / "plane"


def counting_nonce() -> object:
    numbers = iter(range(1000))
    return lambda size: next(numbers).to_bytes(size)


def test_sealing_gives_the_vector_of_the_protocol() -> None:
    sealed = seal_keys({"openai": Secret("sk-test-钥")}, TOKEN, lambda _: NONCE)
    assert sealed == {"openai": VECTOR}


def test_opening_gives_the_key_of_the_vector() -> None:
    keys = open_keys({"openai": VECTOR}, TOKEN)
    assert keys == {"openai": Secret("sk-test-钥")}
    assert "sk-test" not in repr(keys)


@given(
    st.dictionaries(st.text(), st.text(alphabet=st.characters(codec="utf-8")), max_size=4),
    st.text(),
)
def test_what_was_sealed_can_be_opened_with_the_same_token_only(
    keys: dict[str, str], token: str
) -> None:
    secrets = {name: Secret(key) for name, key in keys.items()}
    sealed = seal_keys(secrets, token, counting_nonce())  # type: ignore[arg-type]
    assert open_keys(json.loads(json.dumps(sealed)), token) == secrets
    logging.disable()
    try:
        assert open_keys(sealed, token + "x") == {}
    finally:
        logging.disable(logging.NOTSET)


def test_a_plain_string_is_taken_as_it_is() -> None:
    assert open_keys({"openai": "sk-1"}, TOKEN) == {"openai": Secret("sk-1")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"alg": "aes-128-gcm"}, "unknown algorithm"),
        ({"alg": 5}, "expected a string"),
        ({"iv": "AAEC"}, "iv or tag has a wrong length"),
        ({"tag": "Wo4B"}, "iv or tag has a wrong length"),
        ({"iv": "AAECAwQFBgcICQo?"}, "not base64"),
        ({"iv": "AAECAwQF BgcICQoL"}, "not base64"),
        ({"tag": "Wo4BC+80fVJPrvqE/qoXRw"}, "not base64"),
        ({"tag": "Wo4BC-80fVJPrvqE_qoXRw=="}, "not base64"),
        ({"ciphertext": "ü"}, "not base64"),
        ({"ciphertext": ""}, "sealed for another token, or damaged"),
        ({"ciphertext": "iE/ZjF9HiqEnjok="}, "sealed for another token, or damaged"),
        ({"iv": "AAECAwQFBgcICQoM"}, "sealed for another token, or damaged"),
    ],
    ids=str,
)
def test_what_cannot_be_opened_is_left_out_and_logged(
    change: dict[str, JsonValue], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys: JsonObject = {"bad": {**VECTOR, **change}, "openai": VECTOR}
    assert list(open_keys(keys, TOKEN)) == ["openai"]
    (record,) = caplog.records
    assert "a provider key cannot be opened provider='bad'" in record.getMessage()
    assert reason in record.getMessage()


@pytest.mark.parametrize("value", [None, 5, [], {}, {"alg": "aes-256-gcm"}], ids=str)
def test_what_is_no_envelope_is_left_out(
    value: JsonValue, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_keys({"bad": value}, TOKEN) == {}
    assert len(caplog.records) == 1


def test_a_sealed_text_that_is_no_unicode_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    key = hashlib.sha256(b"semibot:init:" + TOKEN.encode()).digest()
    data = AESGCM(key).encrypt(NONCE, b"\xff", b"semibot:init:api_keys")
    bad = {
        **VECTOR,
        "ciphertext": base64.b64encode(data[:-16]).decode(),
        "tag": base64.b64encode(data[-16:]).decode(),
    }
    assert open_keys({"a": bad}, TOKEN) == {}
    assert "not valid Unicode" in caplog.records[0].getMessage()


def test_no_keys_are_no_envelopes() -> None:
    assert seal_keys({}, TOKEN, lambda _: NONCE) == {}


@pytest.mark.parametrize("nonce", [b"", b"x" * 11, b"x" * 16])
def test_a_nonce_of_another_length_is_not_used(nonce: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="12 bytes"):
        seal_keys({"a": Secret("k")}, TOKEN, lambda _: nonce)


def test_a_key_that_is_no_unicode_is_not_sealed() -> None:
    with pytest.raises(LocalProtocolError, match="no Unicode") as caught:
        seal_keys({"a": Secret("sk-\udcff")}, TOKEN, lambda _: NONCE)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("name", ["graph-exchange", "host-exchange", "openclaw-exchange"])
def test_recorded_envelopes_open_with_the_token_of_their_link(name: str) -> None:
    token, opened = "", 0
    for line in (RECORDINGS / f"{name}.jsonl").read_text("utf-8").splitlines():
        frame = json.loads(line)["frame"]
        if frame.get("type") == "auth":
            token = frame["token"]
        if frame.get("type") == "init":
            keys = open_keys(frame["data"]["api_keys"], token)
            assert keys.keys() == frame["data"]["api_keys"].keys()
            opened += len(keys)
    assert opened
