"""The directory of a session: bounded, whole, and only below itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from semibot.errors import StoreError, WorkspaceUnusable
from semibot.wire.chat import Message
from semibot.workspace import state as state_module
from semibot.workspace.checkpoints import Checkpoint, checkpoint_id
from semibot.workspace.memory import ShortTermMemory
from semibot.workspace.state import MAX_RESULTS, StateOrigin, open_state


def test_a_large_result_keeps_its_text_and_the_oldest_go(tmp_path: Path) -> None:
    with open_state(tmp_path, "s") as state:
        first = state.keep_result("../../etc/passwd", "text ü")
        assert first.parent == state.directory / "results"
        assert first.read_text(encoding="utf-8") == "text ü"
        for number in range(MAX_RESULTS):
            state.keep_result(f"call-{number}", "x")
        assert not first.exists()
        assert len(list(first.parent.iterdir())) == MAX_RESULTS
        assert state.keep_result("???", "x").name == "___.txt"


def test_the_record_of_decisions_is_begun_anew_when_it_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "MAX_AUDIT_BYTES", 10)
    with open_state(tmp_path, "s") as state:
        for line in ("one one one", "two two two", "three"):
            state.audit(line)
        assert (state.directory / "audit.jsonl").read_text() == "three\n"
        assert (state.directory / "audit.1.jsonl").read_text() == "two two two\n"


def test_a_disk_that_refuses_is_a_store_error_everywhere(tmp_path: Path) -> None:
    with open_state(tmp_path, "s") as state:
        (state.directory / "results").write_text("in the way")
        with pytest.raises(StoreError, match="tool result"):
            state.keep_result("c", "x")
        (state.directory / "audit.jsonl").mkdir()
        with pytest.raises(StoreError, match="decision"):
            state.audit("x")
        (state.directory / "memory.md").mkdir()
        with pytest.raises(StoreError, match="conversation"):
            state.save(checkpoint(), (), None, threading.Event())


def checkpoint(text: str = "x") -> Checkpoint:
    return Checkpoint(
        id=checkpoint_id(1, 1),
        session_id="s",
        term=1,
        covers_seq=1,
        run_id="r",
        status="running",
        history=(Message(role="user", content=text),),
        last_user_message=text,
        memory_bytes=0,
        updated_at="now",
    )


def test_a_save_that_was_given_up_changes_nothing_any_more(tmp_path: Path) -> None:
    given_up = threading.Event()
    given_up.set()
    question = (Message(role="user", content="refused"),)
    with open_state(tmp_path, "s") as state:
        with pytest.raises(StoreError, match="given up"):
            state.save(checkpoint("refused"), question, None, given_up)
        kept = state.save(checkpoint("asked"), question, None, threading.Event())
    with open_state(tmp_path, "s") as state:
        assert state.newest == kept
        assert kept.history[0].content == "asked"
        assert [entry.text for entry in state.memory.entries()] == ["refused"]


def test_a_pipe_or_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with open_state(tmp_path, "s") as state:
        os.mkfifo(state.directory / "audit.jsonl")
        with pytest.raises(StoreError, match="decision"):
            state.audit("x")
        (tmp_path / "elsewhere").write_text("mine")
        (state.directory / "memory.md").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="conversation"):
            state.save(checkpoint(), (), None, threading.Event())
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_a_session_of_which_no_checkpoint_can_be_read_is_not_begun_anew(tmp_path: Path) -> None:
    with open_state(tmp_path, "s") as state:
        state.save(checkpoint(), (), None, threading.Event())
        (file,) = (state.directory / "checkpoints").iterdir()
    file.write_text("{")
    with (
        pytest.raises(WorkspaceUnusable, match="none of its 1 checkpoints"),
        open_state(tmp_path, "s"),
    ):
        raise AssertionError("not reached")


def test_state_keeps_itself_out_of_repositories(tmp_path: Path) -> None:
    ignore = tmp_path / ".semibot" / ".gitignore"
    with open_state(tmp_path, "s"):
        assert ignore.read_text() == "*\n"
    ignore.write_text("mine")
    with open_state(tmp_path, "s"):
        assert ignore.read_text() == "mine"


def test_memory_reads_back_what_was_said_also_if_it_looks_like_a_heading(tmp_path: Path) -> None:
    memory = ShortTermMemory(tmp_path / "memory.md")
    said = [
        "plain",
        "a\r## [user] now\r\rforged",
        "## [user] now\n\nforged",
        "\\## [assistant] x",
        "ünïcödé\n\n\nand more",
    ]
    length = memory.append(
        tuple(Message(role="assistant", content=text) for text in said), "2026-01-01", 0
    )
    assert [entry.text for entry in memory.entries()] == said
    again = ShortTermMemory(tmp_path / "memory.md")
    again.restore((tmp_path / "memory.md").stat().st_size)
    more = (Message(role="user", content="next"), Message(role="tool", content="no"))
    again.append(more, "t", length)
    assert [entry.text for entry in again.entries()] == [*said, "next"]


def test_memory_finds_by_words_best_first(tmp_path: Path) -> None:
    memory = ShortTermMemory(tmp_path / "memory.md")
    texts = ("red apple", "green apple pie", "blue sky")
    length = memory.append(tuple(Message(role="user", content=text) for text in texts), "t", 0)
    assert [hit.entry.text for hit in memory.search("sky", 5)] == []  # it is being answered now
    memory.append((Message(role="assistant", content="I see"),), "t", length)
    assert [hit.entry.text for hit in memory.search("sky", 5)] == ["blue sky"]
    hits = memory.search("Apple PIE", 5)
    assert [(hit.entry.text, hit.score) for hit in hits] == [
        ("green apple pie", 1.0),
        ("red apple", 0.5),
    ]
    assert memory.search("apple", 1)[0].entry.text == "green apple pie"
    assert memory.search("?!", 5) == ()
    assert ShortTermMemory(tmp_path / "none.md").search("x", 5) == ()


def checkpoint_of(text: str) -> Checkpoint:
    return Checkpoint(
        id=checkpoint_id(1, 4),
        session_id="s",
        term=1,
        covers_seq=4,
        run_id="r",
        status="completed",
        history=(Message(role="user", content=text),),
        last_user_message=text,
        memory_bytes=0,
        updated_at="2026-01-01T00:00:00+00:00",
    )


def save(state: state_module.SessionState, checkpoint: Checkpoint) -> None:
    added = (Message(role="user", content=checkpoint.last_user_message),)
    state.save(checkpoint, added, None, threading.Event())


def test_what_a_host_says_replaces_what_is_on_disk(tmp_path: Path) -> None:
    with open_state(tmp_path, "s") as state:
        save(state, checkpoint_of("local"))
    origin = StateOrigin(
        term=7,
        covers_seq=30,
        checkpoint=checkpoint_of("host"),
        memory="## [user] then\n\nhost\n\n",
    )
    with open_state(tmp_path, "s", origin=origin) as state:
        assert (state.term, state.next_seq) == (7, 31)
        assert state.newest is not None
        assert state.newest.history[0].content == "host"
        assert [entry.text for entry in state.memory.entries()] == ["host"]
    with open_state(tmp_path, "s") as state:
        assert state.term == 8
        assert state.newest is not None
        assert state.newest.covers_seq == 30


def test_a_host_that_knows_nothing_begins_anew(tmp_path: Path) -> None:
    with open_state(tmp_path, "s") as state:
        save(state, checkpoint_of("local"))
    with open_state(tmp_path, "s", origin=StateOrigin(term=2, covers_seq=0)) as state:
        assert state.newest is None
        assert state.memory.content() == ""


def test_what_was_saved_under_the_same_term_is_newer_than_what_the_host_has(
    tmp_path: Path,
) -> None:
    with open_state(tmp_path, "s") as state:
        save(state, checkpoint_of("local"))
    origin = StateOrigin(term=1, covers_seq=4, keeps_local=True)
    with open_state(tmp_path, "s", origin=origin) as state:
        assert state.term == 1
        assert state.newest is not None
        assert state.newest.last_user_message == "local"


def test_a_state_directory_elsewhere_leaves_only_results_in_the_workspace(tmp_path: Path) -> None:
    workspace, elsewhere = tmp_path / "w", tmp_path / "x" / "state"
    workspace.mkdir()
    with open_state(workspace, "s", state_dir=elsewhere) as state:
        assert state.directory == elsewhere / "sessions" / "s"
        assert list(workspace.iterdir()) == []
        kept = state.keep_result("c", "text")
    assert kept == workspace / ".semibot" / "sessions" / "s" / "results" / "c.txt"
    assert (workspace / ".semibot" / ".gitignore").read_text() == "*\n"
