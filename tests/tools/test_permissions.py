from __future__ import annotations

from datetime import UTC, datetime, timedelta

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import UsageError
from semibot.tools.permissions import (
    GRANT_NAMES,
    ArgvPrefix,
    Equals,
    Grant,
    Policy,
    UnderPath,
)

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


@attrs.frozen
class FakeTool:
    name: str
    access: str = "granted"


WRITE = FakeTool("write_file")
RUN = FakeTool("run_command")
READ = FakeTool("read_file", "allowed")


def decide(policy, tool, now=NOW, **arguments):
    return policy.decide(tool, arguments, now)


# --- the policy -----------------------------------------------------------------------


def test_an_allowed_tool_needs_no_grant():
    verdict = decide(Policy(), READ)
    assert (verdict.action, verdict.rule, verdict.grant_id) == ("allow", "tool_allowed", None)


@pytest.mark.parametrize(("short", "name"), GRANT_NAMES.items())
def test_a_denial_says_how_to_allow_it(short, name):
    verdict = decide(Policy(), FakeTool(name))
    assert (verdict.action, verdict.rule) == ("deny", "no_grant")
    assert f'GraphAgent(grants=["{short}"])' in verdict.reason
    assert f"--allow {short}" in verdict.reason


def test_a_denial_of_any_other_tool_names_it():
    reason = decide(Policy(), FakeTool("launch")).reason
    assert 'GraphAgent(grants=["launch"])' in reason
    assert "`--allow launch`" in reason


@pytest.mark.parametrize("short", ["write", "write_file", " write ", Grant(tool="write_file")])
def test_a_grant_allows_its_tool_and_no_other(short):
    policy = Policy([short])
    verdict = decide(policy, WRITE, path="a", content="")
    assert (verdict.action, verdict.rule, verdict.grant_id) == ("allow", "grant", "grant-1")
    assert decide(policy, RUN, argv=["ls"]).action == "deny"


def test_a_grant_that_denies_beats_all_that_allow():
    grants = [
        Grant.run(),
        Grant(tool="run_command", action="deny", id="no-run"),
        Grant.run("rm"),
        Grant.write(),
    ]
    for order in (grants, grants[::-1]):
        policy = Policy(order)
        verdict = decide(policy, RUN, argv=["rm", "-rf", "."])
        assert (verdict.action, verdict.rule) == ("deny", "denied_by_grant")
        assert verdict.grant_id == "no-run"
        assert decide(policy, RUN, argv=["ls"]).action == "deny"
        assert decide(policy, WRITE, path="a", content="").action == "allow"


def test_a_grant_can_deny_an_allowed_tool():
    policy = Policy([Grant(tool="read_file", action="deny")])
    assert decide(policy, READ, path="a").action == "deny"


def test_expiry_is_checked_at_use():
    policy = Policy([Grant(tool="write_file", expires_at=NOW)])
    assert decide(policy, WRITE, NOW - timedelta(seconds=1), path="a").action == "allow"
    verdict = decide(policy, WRITE, NOW, path="a")
    assert (verdict.action, verdict.rule) == ("deny", "grant_expired")
    assert "--allow write" in verdict.reason


def test_a_grant_that_does_not_cover_the_arguments_says_so():
    verdict = decide(Policy(["write:notes"]), WRITE, path="other/a", content="")
    assert (verdict.action, verdict.rule) == ("deny", "grant_does_not_cover")


def test_only_a_denying_grant_counts_as_no_grant():
    policy = Policy([Grant(tool="write_file", action="deny")])
    assert decide(policy, RUN, argv=["ls"]).rule == "no_grant"


def test_a_grant_that_denies_takes_no_conditions_that_could_be_worded_around():
    with pytest.raises(UsageError, match="deny the whole tool"):
        Grant(tool="run_command", where={"argv": ArgvPrefix(("rm",))}, action="deny")


def test_a_condition_on_an_argument_that_is_not_there_does_not_hold():
    policy = Policy([Grant(tool="launch", where={"when": Equals(None)})])
    assert decide(policy, FakeTool("launch")).action == "deny"
    assert decide(policy, FakeTool("launch"), when=None).action == "allow"


def test_grants_keep_their_own_ids_and_the_rest_is_numbered():
    policy = Policy(["write", Grant(tool="run_command", id="mine"), "run:ls"])
    assert [grant.id for grant in policy.grants] == ["grant-1", "mine", "grant-3"]


def test_grants_for_unknown_tools_or_parameters_are_typing_mistakes():
    known = {"write_file": frozenset({"path", "content"}), "launch": frozenset[str]()}
    Policy(["write", "launch", "write:a"]).check(known)
    with pytest.raises(UsageError, match=r"'write-file'.*launch, write_file.*write, run"):
        Policy(["write-file"]).check(known)
    with pytest.raises(UsageError, match="unknown parameter; it has: content, path"):
        Policy([Grant(tool="write_file", where={"file": UnderPath("a")})]).check(known)


# --- short forms ----------------------------------------------------------------------


def test_short_forms_are_understood():
    assert Grant.parse("run") == Grant.run() == Grant(tool="run_command")
    assert Grant.parse("write: notes") == Grant.write("notes")
    assert Grant.parse("run:git 'log x'") == Grant.run("git", "log x")
    assert Grant.parse("launch") == Grant(tool="launch")


@pytest.mark.parametrize("text", ["", "  ", ":", "write:", "run:", "launch:x", "run:'", "run:''"])
def test_short_forms_that_mean_nothing_are_refused(text):
    with pytest.raises(UsageError, match="grant"):
        Grant.parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UnderPath("../a"),
        lambda: UnderPath("/a"),
        lambda: UnderPath("a\0"),
        lambda: ArgvPrefix(()),
        lambda: ArgvPrefix(("",)),
        lambda: Grant(tool="a", expires_at=datetime(2030, 1, 1)),  # noqa: DTZ001 - that is the point
    ],
)
def test_grants_that_could_be_misread_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_a_grant_cannot_be_changed_through_what_it_was_made_from():
    where = {"path": UnderPath("notes")}
    grant = Grant(tool="write_file", where=where)
    where.clear()
    assert not grant.covers("write_file", {"path": "other"}, NOW)


# --- matchers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hostile",
    [
        "../notes/a",
        "notes/../../a",
        "notes/../other",
        "/notes/a",
        "notesx/a",
        "Notes/a",
        "n\u043etes/a",  # a Cyrillic o
        "notes\0/a",
        "",
        "./../notes/a",
        None,
        ["notes/a"],
    ],
)
def test_a_path_grant_covers_nothing_outside_its_directory(hostile):
    assert not UnderPath("notes").matches(hostile)


@pytest.mark.parametrize("path", ["notes", "notes/a", "./notes/a/b", "notes//a", "notes/./a"])
def test_a_path_grant_covers_its_directory(path):
    assert UnderPath("notes").matches(path)
    assert UnderPath(".").matches(path)


@pytest.mark.parametrize(
    "hostile",
    [
        ["git", "push"],
        ["git"],
        ["git status"],
        ["git", "statusx"],
        ["/tmp/git", "status"],
        ["sh", "-c", "git status"],
        [],
        "git status",
        None,
    ],
)
def test_a_command_grant_covers_nothing_but_its_words(hostile):
    assert not ArgvPrefix(("git", "status")).matches(hostile)


def test_a_command_grant_covers_what_begins_with_its_words():
    assert ArgvPrefix(("git", "status")).matches(["git", "status", "--short; rm"])


@pytest.mark.parametrize(
    ("value", "other"), [(1, True), (1, "1"), ([1], [True]), (None, False), ({"a": 1}, {"a": "1"})]
)
def test_equal_means_the_same_value_of_the_same_type(value, other):
    assert Equals(value).matches(value)
    assert not Equals(value).matches(other)


def test_equal_objects_may_be_in_another_order():
    assert Equals({"a": 1, "b": 2}).matches({"b": 2, "a": 1})


WORDS = st.lists(st.text(min_size=1, max_size=4).filter(lambda t: "\0" not in t), min_size=1)


@given(WORDS, WORDS)
def test_a_command_grant_covers_exactly_the_commands_it_is_a_prefix_of(words, other):
    assert ArgvPrefix(tuple(words)).matches([*words, *other])
    is_prefix = other[: len(words)] == words
    assert ArgvPrefix(tuple(words)).matches(other) == is_prefix
