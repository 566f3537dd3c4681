from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.cli.clean import clean, clean_json
from semibot.cli.describe import (
    describe_arguments,
    describe_duration,
    describe_receipt,
    shorten,
)
from semibot.cli.failures import OutputClosed, explain, is_configuration_code
from semibot.cli.logs import configure_logs, hush_logs
from semibot.errors import (
    AdapterError,
    ModelNotConfigured,
    SessionInUse,
    UsageError,
    WorkspaceUnusable,
)
from semibot.logs import get_logger
from semibot.wire.codec import dump_json
from semibot.wire.events import Usage
from semibot.wire.receipts import ActivityRecord, Receipt


@given(st.text())
def test_clean_text_has_no_control_character_but_newline_and_tab(text: str) -> None:
    cleaned = clean(text)
    assert not any(
        (ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0) and char not in "\n\t" for char in cleaned
    )
    assert clean(cleaned) == cleaned


def test_clean_text_keeps_what_people_write() -> None:
    assert (
        clean("Grüße,\n\tä 你好 🙂\x1b]0;title\x07\r\x9b31m\x7f")
        == "Grüße,\n\tä 你好 🙂]0;title31m"
    )


@given(st.text())
def test_clean_json_means_the_same_and_cannot_steer_a_terminal(text: str) -> None:
    line = clean_json(dump_json({"text": text}))
    assert json.loads(line) == {"text": text}
    assert clean(line) == line


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, ""),
        ({"path": "README.md"}, "path=README.md"),
        ({"argv": ["ls", "-l"], "n": 3}, 'argv=["ls", "-l"] n=3'),
        ({"pattern": "two words"}, 'pattern="two words"'),
        ({"path": ""}, 'path=""'),
        ({"path": "a\nb"}, r'path="a\nb"'),
        ({"path": "a\u202eb"}, r'path="a\u202eb"'),
        ({"path": "ä b"}, 'path="ä b"'),
    ],
)
def test_arguments_are_shown_on_one_line_without_what_cannot_be_printed(
    arguments: dict[str, object], shown: str
) -> None:
    assert describe_arguments(arguments) == shown  # type: ignore[arg-type]


def test_long_arguments_are_cut() -> None:
    shown = describe_arguments({"content": "x" * 1000, **{f"n{i}": "y" * 50 for i in range(9)}})
    assert len(shown) == 160
    assert shown.startswith("content=" + "x" * 57 + "... n0=")
    assert shown.endswith("...")
    assert shorten("abcdef", 5) == "ab..."


def test_durations_are_shown_in_the_unit_that_reads_best() -> None:
    assert describe_duration(999) == "999 ms"
    assert describe_duration(61_250) == "61.2 s"


def test_a_receipt_lists_what_was_stopped_and_what_was_abandoned() -> None:
    receipt = Receipt(
        run_id="r",
        outcome="cancelled",
        reason="user_cancelled",
        stopped=(
            ActivityRecord(kind="tool_call", id="1", name="run_command", seconds=3.21),
            ActivityRecord(kind="child", id="2", name="sleep", pid=4711, seconds=3.2),
        ),
        abandoned=(
            ActivityRecord(kind="thread", id="3", name="slow", seconds=0.5, effect="wrote a.txt"),
        ),
        usage=Usage(tokens_in=5, tokens_out=2),
        seconds=0.123,
    )
    assert describe_receipt(receipt) == [
        "cancelled by you, in 0.12 s; 5 tokens in, 2 out",
        "  stopped    tool call run_command, after 3.2 s",
        "  stopped    child sleep, pid 4711, after 3.2 s",
        "  abandoned  thread slow, after 0.5 s, wrote a.txt",
    ]


def test_a_receipt_with_nothing_to_stop_says_so() -> None:
    idle = Receipt(run_id="r", outcome="cancelled", reason="why")
    assert describe_receipt(idle)[0].startswith("cancelled: why, in ")
    assert describe_receipt(idle)[1:] == ["  nothing was under way"]
    late = Receipt(run_id="r", outcome="completed", already=True)
    assert describe_receipt(late) == ["nothing to stop: the run had ended already (completed)"]


def test_errors_are_explained_in_one_line_each_with_the_gravest_exit_code() -> None:
    assert explain(UsageError("no")) == (["semibot: no"], 2)
    assert explain(SessionInUse("dir", 12)) == (
        ["semibot: dir is in use by process 12; stop it or use another session id"],
        78,
    )
    group = ExceptionGroup(
        "both", [AdapterError("broken"), ExceptionGroup("", [WorkspaceUnusable("p", "r")])]
    )
    assert explain(group) == (
        ["semibot: broken", "semibot: cannot keep session state in p: r"],
        78,
    )
    assert explain(KeyboardInterrupt()) == ([], 130)
    assert explain(OutputClosed()) == ([], 1)


def test_a_bug_is_not_explained_away() -> None:
    assert explain(ValueError("bug")) is None
    assert explain(ExceptionGroup("", [UsageError("no"), ValueError("bug")])) is None


def test_failures_of_a_run_that_the_operator_can_mend_are_known_by_their_code() -> None:
    assert is_configuration_code(ModelNotConfigured.code)
    assert is_configuration_code(WorkspaceUnusable.code)
    assert is_configuration_code("OPENCLAW_BRIDGE_NOT_CONFIGURED")
    assert not is_configuration_code(AdapterError.code)
    assert not is_configuration_code("DEADLINE_EXCEEDED")


def test_logs_fall_silent_for_who_does_not_want_to_wait(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = get_logger("semibot.test")
    configure_logs(is_verbose=False)
    log.info("not of interest")
    log.warning("odd \x1b", size=1)
    hush_logs()
    log.error("cut short")
    assert capsys.readouterr().err == "warning: odd  size=1\n"
    configure_logs(is_verbose=True)
    hush_logs()
    log.info("of interest")
    assert capsys.readouterr().err == "info: of interest\n"


def test_what_a_runs_events_say_as_well_is_logged_only_if_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for is_verbose in (False, True):
        configure_logs(is_verbose=is_verbose)
        get_logger("semibot.adapters.bridge_child").warning("bridge ended")
        get_logger("semibot.adapters.bridge_child").error("a bug")
        get_logger("semibot.observe.watchdog").warning("event loop was blocked")
        get_logger("semibot.workspace.skills").warning("skill dropped")
    news = "error: a bug\nwarning: event loop was blocked\nwarning: skill dropped\n"
    assert capsys.readouterr().err == f"{news}warning: bridge ended\n{news}"
