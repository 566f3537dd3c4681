from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable

import attrs
import pytest

from semibot.secret import Secret

TEXT = "sk-do-not-show"
MASK = "Secret(***)"


@attrs.frozen
class Settings:
    key: Secret


def test_the_text_comes_out_only_on_request() -> None:
    assert Secret(TEXT).reveal() == TEXT


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        "{}".format,
        "{:>40}".format,
        "{!r}".format,
        lambda secret: f"{secret}",
        lambda secret: "%s" % secret,  # noqa: UP031 - this way must be masked too
        lambda secret: repr([secret]),
        lambda secret: repr(Settings(secret)),
        lambda secret: repr({"key": secret}),
    ],
)
def test_every_way_to_show_it_is_masked(show: Callable[[Secret], str]) -> None:
    shown = show(Secret(TEXT))
    assert TEXT not in shown
    assert MASK in shown


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps])
def test_it_does_not_leave_the_process(take: Callable[[Secret], object]) -> None:
    with pytest.raises(TypeError) as caught:
        take(Secret(TEXT))
    assert TEXT not in str(caught.value)


def test_it_has_no_dictionary_to_look_into() -> None:
    with pytest.raises(TypeError):
        vars(Secret(TEXT))


def test_equal_texts_are_equal_secrets() -> None:
    assert Secret(TEXT) == Secret(TEXT)
    assert Secret(TEXT) != Secret("other")
    assert hash(Secret(TEXT)) == hash(Secret(TEXT))
    assert len({Secret(TEXT), Secret(TEXT), Secret("other")}) == 2


def test_a_secret_is_not_equal_to_its_text() -> None:
    assert Secret(TEXT) != TEXT
    assert Secret(TEXT).__eq__(TEXT) is NotImplemented


def test_texts_beyond_ascii_can_be_compared() -> None:
    assert Secret("schlüssel") == Secret("schlüssel")
    assert Secret("schlüssel") != Secret("schlussel")
    assert Secret("\udcff") == Secret("\udcff")


def test_an_empty_secret_is_false() -> None:
    assert not Secret("")
    assert Secret(TEXT)
