from __future__ import annotations

import os
import threading

import pytest
import trio
from gate_kit import make_kit, wait_until

from semibot.config import Deadlines
from semibot.tools.builtin import builtin_tools
from semibot.tools.builtin.files import MAX_ENTRIES, MAX_READ_BYTES, MAX_READ_CHARACTERS


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "notes.txt").write_text("first line\nsecond line ü\n")
    (tmp_path / ".semibot").mkdir()
    (tmp_path / ".semibot" / "state").write_text("private")
    return tmp_path


@pytest.fixture
def kit(root):
    return make_kit(*builtin_tools(), workspace=root, grants=["write", "run"])


def test_every_built_in_tool_is_described_and_the_dangerous_ones_need_a_grant():
    tools = {tool.name: tool for tool in builtin_tools()}
    assert {name: tool.access for name, tool in tools.items()} == {
        "read_file": "allowed",
        "list_directory": "allowed",
        "search_text": "allowed",
        "write_file": "granted",
        "run_command": "granted",
    }
    for tool in tools.values():
        properties = tool.parameters["properties"]
        assert len(tool.description) > 20
        assert all(each["description"] for each in properties.values())
    assert not tools["write_file"].is_parallel_safe
    assert not tools["run_command"].is_parallel_safe
    assert "not confined" in tools["run_command"].description


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("read_file", {"path": "a"}),
        ("list_directory", {}),
        ("search_text", {"pattern": "a"}),
        ("write_file", {"path": "a", "content": ""}),
        ("run_command", {"argv": ["true"]}),
    ],
)
async def test_without_a_workspace_no_built_in_tool_works(name, arguments):
    kit = make_kit(*builtin_tools(), grants=["write", "run"])
    assert (await kit.call(name, **arguments)).error == "there is no workspace"


# --- read_file ------------------------------------------------------------------------


async def test_a_small_file_is_read_as_it_is(kit):
    result = await kit.call("read_file", path="notes.txt")
    assert result.content == "first line\nsecond line ü\n"


async def test_an_empty_file_is_empty(kit, root):
    (root / "empty").touch()
    assert (await kit.call("read_file", path="empty")).content == ""


@pytest.mark.parametrize("character", ["x", "ü", "漢", "\U0001f600"])
async def test_a_long_file_comes_in_parts_that_make_the_whole(kit, root, character):
    text = ("0" + character * 7) * 60_000
    (root / "long.txt").write_text(text)
    offset, parts = 0, []
    for _ in range(20):
        result = await kit.call("read_file", path="long.txt", offset=offset)
        assert result.outcome == "ok"
        assert "cut here" not in result.content
        part, _, note = result.content.rpartition("\n[")
        parts.append(part)
        assert len(part) <= MAX_READ_CHARACTERS
        assert len(part.encode()) <= MAX_READ_BYTES
        if "go on" not in note:
            break
        offset = int(note.partition("offset=")[2].removesuffix("]"))
    assert "".join(parts) == text
    assert 1 < len(parts) < 20


async def test_an_offset_in_the_middle_of_a_character_begins_with_the_next(kit, root):
    (root / "a.txt").write_text("漢字")
    for offset, content in [
        (1, "字\n[bytes 3 to 6 of 6]"),
        (5, "\n[bytes 6 to 6 of 6]"),
        (6, "\n[bytes 6 to 6 of 6]"),
    ]:
        result = await kit.call("read_file", path="a.txt", offset=offset)
        assert result.content == content


@pytest.mark.parametrize("offset", [-1, 100])
async def test_an_offset_outside_the_file_is_an_error(kit, offset):
    result = await kit.call("read_file", path="notes.txt", offset=offset)
    assert result.error == f"offset {offset} is not in the file, which has 26 bytes"


@pytest.mark.parametrize("data", [b"\xff\xfe\x00a", b"abc\0def", b"abc\xc3", b"\x80abc"])
async def test_a_binary_file_is_an_error_that_says_so(kit, root, data):
    (root / "binary").write_bytes(data)
    result = await kit.call("read_file", path="binary")
    assert result.outcome == "error"
    assert result.error.startswith("this is not a text file")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.txt", "missing.txt does not exist"),
        ("sub", "sub is a directory"),
        ("../x", "'../x' is refused: it leads out of the workspace"),
        ("/etc/passwd", "'/etc/passwd' is refused: it lies outside the workspace"),
        (".semibot/state", "'.semibot/state' is refused: '.semibot' is reserved"),
        ("x" * 5000, "is refused: a path has 1 to 4096 characters"),
    ],
)
async def test_reading_tells_the_model_what_does_not_work(kit, path, message):
    result = await kit.call("read_file", path=path)
    assert result.outcome == "error"
    assert message in result.error


async def test_a_fifo_does_not_hang_a_reader(kit, root):
    os.mkfifo(root / "fifo")
    with trio.fail_after(5):
        result = await kit.call("read_file", path="fifo")
    assert "not a regular file" in result.error


# --- list_directory -------------------------------------------------------------------


async def test_a_directory_is_listed_with_kinds_and_sizes(kit, root):
    (root / "link").symlink_to("notes.txt")
    result = await kit.call("list_directory")
    assert result.result == {
        "entries": [
            {"name": "link", "kind": "link"},
            {"name": "notes.txt", "kind": "file", "size": 26},
            {"name": "sub", "kind": "directory"},
        ]
    }
    assert (await kit.call("list_directory", path="sub")).result == {"entries": []}


async def test_a_large_directory_is_listed_in_part(kit, root):
    for number in range(MAX_ENTRIES + 2):
        (root / "sub" / f"{number:04}").touch()
    result = await kit.call("list_directory", path="sub")
    assert result.outcome == "ok"
    assert '"0999"' in result.content
    assert '"1000"' not in result.content
    assert "these are the first 1000 of 1002 names" in result.content


# --- write_file -----------------------------------------------------------------------


async def test_a_file_is_written_with_its_directories_and_reported(kit, root):
    result = await kit.call("write_file", path="new/a.md", content="grün")
    assert result.result == {"path": "new/a.md", "bytes": 5}
    assert (root / "new" / "a.md").read_text() == "grün"
    [file] = result.files
    assert (file.path, file.size, file.mime_type) == ("new/a.md", 5, "text/markdown")
    assert kit.ends[0].effect == "wrote new/a.md (5 bytes)"


async def test_writing_is_denied_without_a_grant(root):
    kit = make_kit(*builtin_tools(), workspace=root)
    result = await kit.call("write_file", path="a.txt", content="x")
    assert result.outcome == "denied"
    assert not (root / "a.txt").exists()


async def test_a_write_that_is_refused_has_no_effect(kit, root):
    result = await kit.call("write_file", path="../a.txt", content="x")
    assert result.outcome == "error"
    assert kit.ends[0].effect is None
    assert not (root.parent / "a.txt").exists()


async def test_a_limited_grant_cannot_be_stretched_by_a_link(root):
    (root / "notes").mkdir()
    (root / "notes" / "elsewhere").symlink_to("../sub")
    kit = make_kit(*builtin_tools(), workspace=root, grants=["write:notes"])
    assert (await kit.call("write_file", path="notes/a", content="x")).outcome == "ok"
    for path in ("notes/elsewhere/a", "notes/../sub/a", "sub/a", str(root / "sub" / "a")):
        assert (await kit.call("write_file", path=path, content="x")).outcome in {"error", "denied"}
    assert list((root / "sub").iterdir()) == []


async def test_a_write_that_has_begun_is_carried_through_a_cancel(kit, root, monkeypatch):
    begun, release = threading.Event(), threading.Event()
    real_fsync = os.fsync

    def slow(fd):
        begun.set()
        release.wait(10)
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: kit.call("write_file", path="a.txt", content="x"))
        await trio.to_thread.run_sync(begun.wait, 10)
        nursery.cancel_scope.cancel()
        release.set()
    assert (root / "a.txt").read_text() == "x"
    assert (kit.ends[0].outcome, kit.ends[0].effect) == ("cancelled", "wrote a.txt (1 bytes)")
    assert kit.ledger.under_way() == ()


async def test_a_disk_that_hangs_is_left_behind_and_said_to_be(root, monkeypatch):
    kit = make_kit(
        *builtin_tools(), workspace=root, grants=["write"], deadlines=Deadlines(session_save=0.05)
    )
    release = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda fd: release.wait(10))
    result = await kit.call("write_file", path="a.txt", content="x")
    assert result.outcome == "error"
    assert "may still be written" in result.error
    [thread] = kit.ledger.under_way()
    assert (thread.kind, thread.effect) == ("thread", "writing a.txt")
    release.set()
    await wait_until(lambda: not kit.ledger.under_way())
