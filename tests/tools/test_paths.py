from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest

from semibot.errors import PathRefused, ToolError
from semibot.tools.paths import MAX_PATH, ConfinedDirectory

is_root = os.geteuid() == 0


@pytest.fixture
def outside(tmp_path):
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "secret.txt").write_text("secret")
    return directory


@pytest.fixture
def root(tmp_path):
    directory = tmp_path / "root"
    (directory / "sub" / "deep").mkdir(parents=True)
    (directory / "a.txt").write_text("a")
    (directory / "sub" / "b.txt").write_text("b")
    (directory / ".semibot" / "s1" / "results").mkdir(parents=True)
    (directory / ".semibot" / "s1" / "history.json").write_text("private")
    (directory / ".semibot" / "s1" / "results" / "call.txt").write_text("kept")
    return directory


@pytest.fixture
def files(root):
    return ConfinedDirectory(root, readable=(".semibot/s1/results",))


def read(files, path):
    with files.open_file(path) as file:
        return file.read().decode()


def open_descriptors():
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open():
    before = open_descriptors()
    yield
    assert open_descriptors() == before


# --- inside ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.txt", "a"),
        ("./a.txt", "a"),
        ("sub/b.txt", "b"),
        ("sub/./deep/../b.txt", "b"),
        ("sub/deep/../../a.txt", "a"),
        ("sub//b.txt", "b"),
        (".semibot/s1/results/call.txt", "kept"),
    ],
)
def test_files_inside_are_found_however_they_are_named(files, path, text):
    assert read(files, path) == text


def test_an_absolute_path_inside_is_the_same_file(files, root):
    assert read(files, str(root / "sub" / "b.txt")) == "b"
    assert files.locate(str(root)) == "."


def test_a_root_behind_a_link_is_known_by_both_names(tmp_path, root):
    link = tmp_path / "link"
    link.symlink_to(root)
    files = ConfinedDirectory(link)
    assert read(files, str(link / "a.txt")) == "a"
    assert read(files, str(root / "a.txt")) == "a"


def test_links_that_stay_inside_are_followed(files, root):
    (root / "to_file").symlink_to("sub/b.txt")
    (root / "to_directory").symlink_to("sub/deep/..")
    (root / "absolute").symlink_to(root / "a.txt")
    (root / "sub" / "up").symlink_to("../a.txt")
    (root / "chain").symlink_to("to_directory/up")
    assert read(files, "to_file") == "b"
    assert read(files, "to_directory/b.txt") == "b"
    assert read(files, "to_directory/../a.txt") == "a"  # physical: ".." of where the link leads
    assert read(files, "absolute") == "a"
    assert read(files, "chain") == "a"
    assert files.locate("chain") == "a.txt"
    assert files.locate("to_directory") == "sub"


def test_an_unusual_name_is_only_a_name(files, root):
    for name in ("...", "a b\n", "~", "-rf", "*", "ü" * 100, "\\", "C:"):
        (root / name).write_text(name)
        assert read(files, name) == name


# --- outside --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../outside/secret.txt",
        "sub/../../outside/secret.txt",
        "sub/deep/../../../outside/secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "/",
        "to_outside/secret.txt",
        "to_secret",
        "absolute_secret",
        "sub/chain/secret.txt",
        "sub/out_and_in",
    ],
)
@pytest.mark.parametrize("method", ["open_file", "locate", "describe", "list", "write"])
def test_no_path_leads_out(files, root, outside, path, method):
    (root / "to_outside").symlink_to("../outside")
    (root / "to_secret").symlink_to("../outside/secret.txt")
    (root / "absolute_secret").symlink_to(outside / "secret.txt")
    (root / "sub" / "chain").symlink_to("../to_outside")
    (root / "sub" / "out_and_in").symlink_to("../../root/a.txt")
    call = {
        "open_file": files.open_file,
        "locate": files.locate,
        "describe": files.describe,
        "list": lambda path: files.list_directory(path, 10),
        "write": lambda path: files.write_file(path, b"changed"),
    }[method]
    with pytest.raises(PathRefused):
        call(path)
    assert (outside / "secret.txt").read_text() == "secret"
    assert sorted(each.name for each in outside.iterdir()) == ["secret.txt"]


def test_an_absolute_path_outside_is_refused_even_if_it_comes_back(files, root, outside):
    (outside / "back").symlink_to(root)
    with pytest.raises(PathRefused, match="outside"):
        files.open_file(str(outside / "back" / "a.txt"))
    with pytest.raises(PathRefused):
        files.open_file(str(root) + "/../root/a.txt")
    with pytest.raises(PathRefused):
        files.open_file(str(root) + "x/a.txt")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\0.txt", "NUL"),
        ("", "1 to"),
        ("a/" * MAX_PATH, "1 to"),
        ("\ud800", "not valid text"),
    ],
)
def test_paths_that_are_none_are_refused(files, path, message):
    with pytest.raises(PathRefused, match=message):
        files.open_file(path)
    with pytest.raises(PathRefused, match=message):
        files.write_file(path, b"")


def test_links_in_a_circle_end(files, root):
    (root / "x").symlink_to("y")
    (root / "y").symlink_to("x")
    with pytest.raises(ToolError, match="symbolic links"):
        files.open_file("x")


def test_a_name_that_becomes_a_link_after_the_look_is_not_followed(
    files, root, outside, monkeypatch
):
    # What somebody could do between looking at a name and opening it.
    real_open = os.open

    def swap(name, flags, *args, **kwargs):
        if name == "a.txt":
            (root / "a.txt").unlink()
            (root / "a.txt").symlink_to(outside / "secret.txt")
        elif name == "sub":
            (root / "sub").rename(root / "moved")
            (root / "sub").symlink_to(outside)
        return real_open(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(ToolError, match=r"a\.txt"):
        files.open_file("a.txt")
    with pytest.raises(ToolError, match="sub"):
        files.open_file("sub/secret.txt")


def test_readers_never_see_outside_while_links_are_swapped(files, root, outside):
    (root / "flip").mkdir()
    (root / "flip" / "secret.txt").write_text("inside")
    stop = threading.Event()

    def flip():
        while not stop.is_set():
            (root / "flip").rename(root / "away")
            (root / "flip").symlink_to(outside)
            (root / "flip").unlink()
            (root / "away").rename(root / "flip")

    thread = threading.Thread(target=flip)
    thread.start()
    seen = set()
    try:
        for _ in range(3000):
            try:
                seen.add(read(files, "flip/secret.txt"))
            except (ToolError, PathRefused):
                seen.add("refused")
    finally:
        stop.set()
        thread.join()
    assert seen <= {"inside", "refused"}


# --- reserved -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        ".semibot",
        ".semibot/s1",
        ".semibot/s1/history.json",
        ".semibot/s1/results/../history.json",
        ".semibot/s1/resultsx",
        ".semibot/s2",
        ".SemiBot/s1/history.json",
        ".\u017femibot",
        ".semi\u200bbot",
        ".semibot\u200d",
        "\uff0esemibot",
        "sub/../.semibot/s1/history.json",
        "private",
    ],
)
def test_reserved_names_are_refused_in_every_spelling(files, root, path):
    (root / "private").symlink_to(".semibot/s1/history.json")
    with pytest.raises(PathRefused, match=r"reserved"):
        files.open_file(path)
    with pytest.raises(PathRefused):
        files.write_file(path, b"changed")
    assert (root / ".semibot" / "s1" / "history.json").read_text() == "private"


def test_what_may_be_read_below_a_reserved_name_may_not_be_written(files):
    assert files.list_directory(".semibot/s1/results", 10).total == 1
    for path in (".semibot/s1/results/call.txt", ".semibot/s1/results/new/x", ".semibot/new/x"):
        with pytest.raises(PathRefused, match="reserved"):
            files.write_file(path, b"changed")


def test_a_reserved_name_is_only_reserved_at_the_top(files):
    assert files.write_file("sub/.semibot", b"x") == "sub/.semibot"


def test_a_reserved_name_is_not_listed(files):
    assert [each.name for each in files.list_directory(".", 10).entries] == ["a.txt", "sub"]


# --- what is no regular file ----------------------------------------------------------


def test_a_fifo_is_refused_and_does_not_hang(files, root):
    os.mkfifo(root / "fifo")
    with pytest.raises(PathRefused, match="not a regular file"):
        files.open_file("fifo")
    with pytest.raises(PathRefused, match="not a regular file"):
        files.write_file("fifo", b"x")


def test_a_fifo_that_appears_after_the_look_is_refused_and_does_not_hang(files, root, monkeypatch):
    real_open = os.open

    def swap(name, flags, *args, **kwargs):
        if name == "a.txt":
            (root / "a.txt").unlink()
            os.mkfifo(root / "a.txt")
        return real_open(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(PathRefused, match="not a regular file"):
        files.open_file("a.txt")


def test_a_socket_is_refused(files, root, monkeypatch):
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(PathRefused, match="not a regular file"):
            files.open_file("socket")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "missing does not exist"),
        ("missing/deeper", "missing/deeper does not exist"),
        ("sub", "sub is a directory"),
        (".", "is a directory"),
        ("a.txt/b", "a.txt/b is not a directory, or a part of it is not"),
        ("x" * 300, r"xxx\.\.\.: File name too long"),
    ],
)
def test_reading_says_in_words_what_does_not_work(files, path, message):
    with pytest.raises(ToolError, match=message):
        files.open_file(path)


def test_a_missing_workspace_is_said_in_words(tmp_path):
    with pytest.raises(ToolError, match="does not exist"):
        ConfinedDirectory(tmp_path / "gone").open_file("a")


def test_permission_is_said_in_words(files, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ToolError, match=r"a\.txt: permission denied"):
        files.open_file("a.txt")


def test_an_error_without_words_is_named(files, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ToolError, match=r"a\.txt: OSError"):
        files.open_file("a.txt")


def test_a_file_that_cannot_be_wrapped_is_closed(files, monkeypatch):
    def fail(*args):
        raise MemoryError

    monkeypatch.setattr(os, "fdopen", fail)
    with pytest.raises(MemoryError):
        files.open_file("a.txt")


# --- listing and facts ----------------------------------------------------------------


def test_a_listing_is_sorted_and_says_what_things_are(files, root):
    (root / "link").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    listing = files.list_directory(".", 10)
    assert [(each.name, each.kind) for each in listing.entries] == [
        ("a.txt", "file"),
        ("link", "link"),
        ("pipe", "other"),
        ("sub", "directory"),
    ]
    assert listing.entries[0].size == 1
    assert listing.total == 4


def test_a_listing_is_bounded_and_says_how_much_there_is(files):
    listing = files.list_directory(".", 1)
    assert [each.name for each in listing.entries] == ["a.txt"]
    assert listing.total == 2


def test_a_name_that_is_gone_by_the_time_of_the_look_is_left_out(files, root, monkeypatch):
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda fd: [*real(fd), "zz-gone"])
    assert [each.name for each in files.list_directory(".", 9).entries] == ["a.txt", "sub"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text_can_be_listed(files, root):
    (root / "sub" / os.fsdecode(b"\xff.txt")).touch()
    assert [each.name for each in files.list_directory("sub", 9).entries][-1] == "\ufffd.txt"


def test_listing_a_file_says_in_words_what_does_not_work(files):
    with pytest.raises(ToolError, match=r"a\.txt is not a directory"):
        files.list_directory("a.txt", 10)
    with pytest.raises(ToolError, match="missing does not exist"):
        files.list_directory("missing", 10)


def test_locating_nothing_is_an_error(files):
    with pytest.raises(ToolError, match="does not exist"):
        files.locate("sub/missing")


def test_facts_tell_place_size_and_kind(files):
    facts = files.describe("sub/../a.txt")
    assert (facts.path, facts.size, facts.mime_type) == ("a.txt", 1, "text/plain")
    files.write_file("data.zzz", b"12")
    assert files.describe("data.zzz").mime_type == "application/octet-stream"


# --- writing --------------------------------------------------------------------------


def test_writing_makes_missing_directories_and_the_file(files, root):
    assert files.write_file("new/deep/./c.txt", b"c") == "new/deep/c.txt"
    assert (root / "new" / "deep" / "c.txt").read_bytes() == b"c"
    assert [each.name for each in (root / "new" / "deep").iterdir()] == ["c.txt"]


def test_writing_replaces_the_file_and_keeps_its_mode(files, root):
    (root / "a.txt").chmod(0o640)
    before = (root / "a.txt").stat().st_ino
    files.write_file("a.txt", b"new")
    assert (root / "a.txt").read_bytes() == b"new"
    assert stat.S_IMODE((root / "a.txt").stat().st_mode) == 0o640
    assert (root / "a.txt").stat().st_ino != before


def test_a_file_shared_by_a_hard_link_is_not_changed_for_the_other(files, root, outside):
    os.link(outside / "secret.txt", root / "hard.txt")
    files.write_file("hard.txt", b"changed")
    assert (outside / "secret.txt").read_text() == "secret"


def test_writing_follows_no_link_and_takes_no_detour(files, root):
    (root / "inside").symlink_to("sub")
    (root / "alias.txt").symlink_to("a.txt")
    for path in ("inside/b.txt", "alias.txt"):
        with pytest.raises(PathRefused, match="symbolic link"):
            files.write_file(path, b"x")
    with pytest.raises(PathRefused, match=r"contains '\.\.'"):
        files.write_file("sub/../a.txt", b"x")
    assert (root / "a.txt").read_text() == "a"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sub", "sub is a directory"),
        (".", "is a directory"),
        ("a.txt/b", "not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_writing_says_in_words_what_does_not_work(files, path, message):
    with pytest.raises(ToolError, match=message):
        files.write_file(path, b"x")


def test_a_read_only_file_is_not_replaced(files, root):
    (root / "a.txt").chmod(0o444)
    with pytest.raises(ToolError, match="permission denied"):
        files.write_file("a.txt", b"x")
    assert (root / "a.txt").read_text() == "a"


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(files, root, monkeypatch):
    def fail(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ToolError, match=r"a\.txt: No space left on device"):
        files.write_file("a.txt", b"new")
    assert (root / "a.txt").read_text() == "a"
    assert sorted(each.name for each in root.iterdir()) == [".semibot", "a.txt", "sub"]


def test_what_a_crash_left_behind_is_stepped_over(files, root):
    left = root / f".semibot-{os.getpid()}-{threading.get_ident()}-0.tmp"
    left.write_text("left over")
    files.write_file("a.txt", b"new")
    assert (root / "a.txt").read_text() == "new"
    assert left.read_text() == "left over"


def test_a_directory_that_somebody_else_makes_first_is_used(files, root, monkeypatch):
    real_mkdir = os.mkdir

    def race(name, *args, **kwargs):
        real_mkdir(name, *args, **kwargs)
        real_mkdir(name, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", race)
    files.write_file("both/c.txt", b"c")
    assert (root / "both" / "c.txt").read_text() == "c"


def test_a_deep_path_holds_few_descriptors(files, root):
    path = "d/" * 200 + "../" * 150 + "x.txt"
    with pytest.raises(PathRefused):  # going up is for readers
        files.write_file(path, b"x")
    files.write_file("d/" * 200 + "x.txt", b"x")
    assert files.locate("d/" * 200 + "../" * 200 + "a.txt") == "a.txt"
