from __future__ import annotations

import io
import json
import os
import runpy
import signal
import sys
from types import SimpleNamespace

import pytest
import trio
from gate_kit import make_kit, wait_until

from semibot.tools.builtin import search_text, searcher


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("one apple\ntwo pears\r\nan apple ü\n")
    (tmp_path / "sub" / "b.py").write_text("def apple():\n    return 'pear'\n")
    (tmp_path / "sub" / "deep" / "c.md").write_text("no fruit")
    (tmp_path / "binary").write_bytes(b"apple\0apple")
    (tmp_path / ".semibot").mkdir()
    (tmp_path / ".semibot" / "state").write_text("apple")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "objects").write_text("apple")
    return tmp_path


@pytest.fixture
def kit(root):
    return make_kit(search_text, workspace=root)


def places(result):
    return [(match["path"], match["line"]) for match in result["matches"]]


# --- through the gate, in a child process ---------------------------------------------


async def test_a_search_finds_lines_in_order_and_says_where(kit):
    result = await kit.call("search_text", pattern="apple")
    assert result.result == {
        "matches": [
            {"path": "a.txt", "line": 1, "text": "one apple"},
            {"path": "a.txt", "line": 3, "text": "an apple ü"},
            {"path": "sub/b.py", "line": 1, "text": "def apple():"},
        ],
        "files_searched": 3,
    }
    assert kit.ledger.under_way() == ()


async def test_a_search_can_be_limited_to_a_directory_or_a_file(kit, root):
    (root / "link").symlink_to("sub")
    for path, found in [
        ("sub", [("sub/b.py", 1)]),
        ("link", [("sub/b.py", 1)]),
        ("sub/../a.txt", [("a.txt", 1), ("a.txt", 3)]),
        (".git", [(".git/objects", 1)]),
        ("sub/deep", []),
    ]:
        assert places((await kit.call("search_text", pattern="apple", path=path)).result) == found


@pytest.mark.parametrize(
    ("pattern", "path", "message"),
    [
        ("(", ".", "the pattern is not a regular expression: missing )"),
        ("a{99999999999}", ".", "the pattern is not a regular expression"),
        ("", ".", "a pattern has 1 to 1000 characters"),
        ("a" * 1001, ".", "a pattern has 1 to 1000 characters"),
        ("a", "missing", "missing does not exist"),
        ("a", "..", "leads out"),
        ("a", ".semibot", "reserved"),
    ],
)
async def test_searches_that_make_no_sense_are_an_error(kit, pattern, path, message):
    result = await kit.call("search_text", pattern=pattern, path=path)
    assert result.outcome == "error"
    assert message in result.error


async def test_a_pattern_that_takes_for_ever_ends_with_its_deadline_and_stops_nobody(kit, root):
    (root / "trap.txt").write_text("a" * 40 + "b")
    worst = 0.0

    async def watch():
        nonlocal worst
        while True:
            before = trio.current_time()
            await trio.sleep(0.01)
            worst = max(worst, trio.current_time() - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        with trio.fail_after(10):
            result = await kit.call("search_text", pattern="(a+)+$", path="trap.txt", limit=0.7)
        nursery.cancel_scope.cancel()
    assert result.outcome == "timeout"
    assert worst < 0.4  # the search would have held everything up for minutes
    assert kit.ledger.under_way() == ()


async def test_a_search_that_dies_is_an_error(kit, root):
    (root / "trap.txt").write_text("a" * 40 + "b")
    results = []

    async def call():
        results.append(await kit.call("search_text", pattern="(a+)+$", path="trap.txt"))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await wait_until(lambda: any(each.pid for each in kit.ledger.under_way()))
            [pid] = [each.pid for each in kit.ledger.under_way() if each.pid]
            os.kill(pid, signal.SIGKILL)
    assert results[0].error == "the search failed: killed by SIGKILL"


# --- the program itself ---------------------------------------------------------------


@pytest.fixture
def search(root, monkeypatch):
    monkeypatch.chdir(root)

    def search(pattern, path=".", seconds=30.0):
        order = {
            "pattern": pattern,
            "path": path,
            "reserved": [".semibot"],
            "seconds": seconds,
        }
        return searcher.answer(order)

    return search


def test_the_program_reads_an_order_and_writes_an_answer(root, monkeypatch):
    monkeypatch.chdir(root)
    order = {"pattern": "pears", "path": ".", "reserved": [], "seconds": 5}
    stdout = io.BytesIO()
    stdin = io.BytesIO(json.dumps(order).encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stdout))
    runpy.run_path(searcher.__file__, run_name="__main__")
    assert places(json.loads(stdout.getvalue())) == [("a.txt", 2)]


def test_reserved_names_are_left_out_at_the_top_only(search, root):
    (root / "sub" / ".semibot").write_text("apple")
    assert ("sub/.semibot", 1) in places(search("apple"))
    assert not any(path.startswith(".semibot") for path, _ in places(search("apple")))


def test_lines_are_as_editors_count_them(search, root):
    (root / "odd.txt").write_text("a\u2028b\x0bc\nlast$\r\n")
    assert places(search(r"last\$$")) == [("odd.txt", 2)]


def test_long_lines_are_shown_around_the_match(search, root):
    (root / "long.txt").write_text("x" * 5000 + "needle" + "y" * 5000)
    [match] = search("needle")["matches"]
    assert len(match["text"]) == searcher.MAX_LINE
    assert "needle" in match["text"]


def test_links_are_not_followed(search, root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("apple secret")
    (root / "out").symlink_to(outside)
    (root / "sub" / "file").symlink_to(outside / "secret.txt")
    assert not search("secret")["matches"]
    for path in ("out", "out/secret.txt", "sub/file"):
        answer = search("secret", path)
        assert "error" in answer or answer["files_searched"] == 0


def test_what_cannot_be_searched_is_left_out(search, root):
    os.mkfifo(root / "fifo")
    (root / "large").write_bytes(b"apple\n" * 200_000)
    (root / "latin.txt").write_bytes(b"apple \xff\n")
    found = search("apple")
    assert ("latin.txt", 1) in places(found)
    assert not any(path in {"fifo", "large"} for path, _ in places(found))
    assert search("apple", "fifo")["files_searched"] == 0


def test_what_goes_away_meanwhile_is_left_out(search, root, monkeypatch):
    real_stat, real_open = os.stat, os.open

    def stat_then_gone(name, **options):
        if name == "binary":
            raise FileNotFoundError
        return real_stat(name, **options)

    def open_then_gone(name, flags, **options):
        if name in {"deep", "a.txt"}:
            raise PermissionError
        return real_open(name, flags, **options)

    monkeypatch.setattr(os, "stat", stat_then_gone)
    monkeypatch.setattr(os, "open", open_then_gone)
    found = search("apple|fruit")
    monkeypatch.undo()
    assert places(found) == [("sub/b.py", 1)]


def test_a_pattern_that_is_none_is_an_error(search):
    assert search("(")["error"].startswith("the pattern is not a regular expression: missing )")


def test_a_path_that_is_gone_is_an_error(search):
    assert search("a", "gone/deeper") == {"error": "gone/deeper: No such file or directory"}


def test_deep_directories_end_somewhere(search, root):
    deepest = root.joinpath(*["d"] * searcher.MAX_DEPTH)
    (deepest / "d").mkdir(parents=True)
    (deepest / "seen.txt").write_text("needle")
    (deepest / "d" / "unseen.txt").write_text("needle")
    assert [path.rpartition("/")[2] for path, _ in places(search("needle"))] == ["seen.txt"]


def test_a_search_with_too_many_matches_stops_and_says_so(search, root):
    (root / "many.txt").write_text("needle\n" * (searcher.MAX_MATCHES + 1))
    found = search("needle")
    assert len(found["matches"]) == searcher.MAX_MATCHES
    assert found["note"] == "stopped after 200 matches; use a narrower pattern"
    (root / "many.txt").write_text("needle\n" * searcher.MAX_MATCHES)
    assert "note" not in search("needle")


def test_a_search_of_too_many_files_stops_and_says_so(search, monkeypatch):
    monkeypatch.setattr(os, "listdir", lambda fd: ["binary"] * (searcher.MAX_FILES + 1))
    assert search("x")["note"] == "stopped after 20000 files; search a smaller directory"


def test_a_search_that_takes_too_long_returns_what_it_has(search):
    found = search("apple", seconds=-1.0)
    assert found == {
        "matches": [],
        "files_searched": 0,
        "note": "stopped because time ran out; search a smaller directory",
    }
