from __future__ import annotations

import json
from types import MappingProxyType

import pytest
from gate_kit import make_kit
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import ToolError
from semibot.tools import tool
from semibot.tools.results import MAX_CONTENT, MAX_RESULT, encode, shorten_error
from semibot.wire.codec import dump_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


@given(JSON)
def test_what_fits_is_encoded_as_the_codec_does_it(value):
    encoded = encode(value, 1_000_000)
    assert encoded.is_whole
    assert encoded.text == dump_json(value)


@given(JSON, st.integers(min_value=0, max_value=30))
def test_what_does_not_fit_is_a_beginning_of_the_same_text(value, limit):
    encoded = encode(value, limit)
    whole = dump_json(value)
    assert encoded.is_whole == (len(whole) <= limit)
    assert whole.startswith(encoded.text)
    assert len(encoded.text) <= limit


def test_tuples_and_other_mappings_are_json_data_too():
    assert encode((1, MappingProxyType({"a": ()})), 100).text == '[1,{"a":[]}]'


def test_halves_of_characters_are_replaced():
    assert encode(["\ud800"], 100).text == '["?"]'


def test_data_in_a_circle_is_an_error():
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(ToolError, match="nested deeper than 64"):
        encode(circle, 1_000_000)


def test_the_encoder_stops_at_its_bound():
    def endless():
        while True:
            yield 1

    class Endless(dict):
        def items(self):
            for _ in endless():
                yield "a", 1

    assert not encode(Endless(), 1000).is_whole


def test_long_errors_are_cut():
    assert shorten_error("x") == "x"
    assert len(shorten_error("x" * 5000)) == 4000
    assert shorten_error("x" * 5000).endswith(" ...")


async def returned(value, **options):
    @tool
    async def give() -> object:
        return value

    return await make_kit(give, **options).call("give")


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ("", ""),
        ("text", "text"),
        ({"a": [1, "ü"]}, '{"a":[1,"ü"]}'),
    ],
)
async def test_small_results_are_whole(value, content):
    result = await returned(value)
    assert (result.result, result.content) == (value, content)


@pytest.mark.parametrize("character", ["x", "\n", "ü", "\0", "\U0001f600", '"'])
async def test_a_text_takes_at_most_its_share_of_an_event(character):
    text = character * 70_000
    result = await returned(text)
    assert len(dump_json(result.result).encode()) <= MAX_RESULT
    assert f"of {len(text)} characters]" in result.result
    assert result.result.startswith(character * 10_000)
    assert result.content == text  # the model still reads all of it


async def test_a_text_of_just_the_right_size_is_whole():
    text = "x" * (MAX_RESULT - 2)
    assert (await returned(text)).result == text
    assert (await returned(text + "x")).result != text


async def test_a_text_that_just_fits_the_model_is_whole():
    text = "x" * MAX_CONTENT
    assert (await returned(text)).content == text
    assert len((await returned(text + "x")).content) <= MAX_CONTENT


async def test_data_too_large_for_an_event_is_shown_in_part_there():
    result = await returned(["x" * 100] * 800)
    assert result.result["truncated"] is True
    assert result.result["bytes"] == len(result.content.encode()) == 800 * 103 + 1
    assert result.content.startswith(result.result["preview"])
    assert json.loads(result.content) == ["x" * 100] * 800


async def test_data_too_large_for_the_model_is_shown_in_part():
    result = await returned(["x" * 100] * 1000)
    assert result.result["bytes_at_least"] == MAX_CONTENT
    assert len(result.content) <= MAX_CONTENT
    assert result.content.endswith("characters]")


async def test_a_path_too_long_to_be_named_is_left_out():
    async def keep_result(call_id, text):
        return "p" * 1000

    result = await returned("x" * 200_000, keep_result=keep_result)
    assert len(result.content) <= MAX_CONTENT
    assert result.content.endswith("of 200000 characters]")
