from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from typing import Final

import pytest

from semibot import errors
from semibot.errors import (
    AdapterError,
    ChildStartFailed,
    ConfigError,
    CursorExpired,
    DataDirectoryInUse,
    DeadlineExceeded,
    HostRefused,
    HostUnreachable,
    LinkRefused,
    ModelError,
    OriginRefused,
    PathRefused,
    PlaneNotReady,
    RemoteProtocolError,
    RequestFailed,
    SemibotError,
    ServiceEnded,
    SessionBusy,
    SessionInUse,
    TokenRefused,
    ToolError,
    Unauthenticated,
    WorkspaceUnusable,
)

EXAMPLES: Final = [
    (SessionBusy("s1", 2), ["session s1", "2 run(s)", "on_busy='enqueue'"]),
    (CursorExpired(4, 90), ["event 5", "oldest is 90", "open a new cursor"]),
    (SessionInUse("/data/s1", 4711), ["/data/s1", "process 4711", "use another session id"]),
    (SessionInUse("/data/s1", None), ["another process", "use another session id"]),
    (WorkspaceUnusable("/data", "Read-only file system"), ["/data", "Read-only file system"]),
    (RemoteProtocolError("expected a string", "$.steps[0]"), ["expected a string @ $.steps[0]"]),
    (RemoteProtocolError("not valid JSON"), ["not valid JSON @ $"]),
    (
        AdapterError("it broke", code="BRIDGE_EXITED", is_retryable=True),
        ["it broke"],
    ),
    (RequestFailed("NOT_FOUND", "no such file"), ["no such file"]),
    (
        ModelError("slow down", code="MODEL_RATE_LIMITED", is_retryable=True, retry_after=1.5),
        ["slow down"],
    ),
    (ChildStartFailed("bridge", "No such file"), ["cannot start bridge: No such file"]),
    (PathRefused("../x", "it leads outside"), ["'../x'", "it leads outside"]),
    (DataDirectoryInUse("/data", 4711), ["/data", "process 4711", "another --data-dir"]),
    (DataDirectoryInUse("/data", None), ["another host"]),
    (LinkRefused(4001, ""), ["admin vm-token", "4001: no reason given"]),
    (LinkRefused(4999, "odd"), ["the host refuses this VM", "4999: odd"]),
    (PlaneNotReady("failed", "no such program", 2500), ["failed: no such program", "in 3 s"]),
    (PlaneNotReady("starting", None, 1000), ["starting; try again in 1 s"]),
    (HostUnreachable("http://h", "refused"), ["http://h", "refused", "semibot serve", "--local"]),
    (HostRefused(409, "SESSION_BUSY", "it is busy"), ["it is busy (SESSION_BUSY)"]),
    (TokenRefused("expired"), ["the token is not accepted: expired"]),
    (Unauthenticated(), ["Authorization: Bearer TOKEN"]),
    (Unauthenticated("AUTH_EXPIRED"), ["has expired"]),
    (Unauthenticated("AUTH_INVALID"), ["the token is not accepted"]),
    (OriginRefused("Host"), ["Host is foreign", "at localhost"]),
    (DeadlineExceeded("model.idle", 60.0), ["model.idle (60 s) exceeded"]),
    (ServiceEnded("heartbeat"), ["service heartbeat returned before"]),
    (ConfigError("set OPENAI_API_KEY"), ["set OPENAI_API_KEY"]),
    (ToolError("no such city"), ["no such city"]),
]


def example_id(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, SemibotError) else None


def tree_below(kind: type[SemibotError]) -> Iterator[type[SemibotError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree_below(child)


def documented_tree() -> Iterator[tuple[str, str]]:
    """Return each name in the docstring's tree with the name that it stands below."""
    above: dict[int, str] = {}
    for indent, name in re.findall(r"^( *)\* :exc:`(\w+)`", errors.__doc__ or "", re.MULTILINE):
        level = len(indent) // 4
        above[level] = name
        yield name, above[level - 1] if level else "Exception"


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    classes = [(kind.__name__, kind.__base__) for kind in tree_below(SemibotError)]
    assert sorted(documented_tree()) == sorted(
        (name, base.__name__) for name, base in classes if base is not None
    )


@pytest.mark.parametrize("kind", list(tree_below(SemibotError)))
def test_every_error_has_a_docstring_and_a_stable_code(kind: type[SemibotError]) -> None:
    assert kind.__doc__
    assert re.fullmatch(r"[A-Z][A-Z_]*", kind.code)


def test_codes_of_errors_with_a_meaning_of_their_own_differ() -> None:
    codes = [kind.code for kind in tree_below(SemibotError)]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(("error", "parts"), EXAMPLES, ids=example_id)
def test_the_text_says_what_happened_and_what_to_do(error: SemibotError, parts: list[str]) -> None:
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=example_id)
def test_an_error_survives_pickling_and_copying(error: SemibotError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert again.code == error.code
        assert again.is_retryable == error.is_retryable


def test_the_examples_cover_every_error_that_has_fields() -> None:
    with_fields = {kind for kind in tree_below(SemibotError) if "__init__" in vars(kind)}
    assert with_fields <= {type(error) for error, _ in EXAMPLES}


def test_only_what_may_pass_by_itself_is_retryable() -> None:
    retryable = {kind for kind in tree_below(SemibotError) if kind.is_retryable}
    assert retryable == {DeadlineExceeded, HostUnreachable, PlaneNotReady}
    assert ModelError("busy", is_retryable=True).is_retryable
    assert not ModelError("refused").is_retryable
