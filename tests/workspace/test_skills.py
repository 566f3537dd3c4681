"""Reading skills, dropping those that lack something, and packing them."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from semibot.wire.codec import JsonValue, dump_json
from semibot.workspace.skills import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_PACKAGE_BYTES,
    MAX_SKILLS,
    Skill,
    read_package,
    read_skills,
    usable_entries,
    usable_skills,
)

SKILL_MD = "---\nname: PDF kit\ndescription: Read PDF files.\n---\nInstructions.\n"


def make_skill(
    root: Path, name: str, text: str = SKILL_MD, manifest: object = None, **files: bytes
) -> Path:
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "SKILL.md").write_text(text, encoding="utf-8")
    if manifest is not None:
        (directory / "manifest.json").write_text(json.dumps(manifest))
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


def warnings(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    assert {record.levelname for record in caplog.records} <= {"WARNING"}
    return [record.semibot for record in caplog.records]


def only(root: Path) -> Skill:
    (skill,) = read_skills(root)
    return skill


# --- reading --------------------------------------------------------------------------


def test_a_missing_directory_has_no_skills(tmp_path: Path) -> None:
    assert read_skills(tmp_path / "none") == ()


def test_a_file_in_place_of_the_directory_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "skills").write_text("")
    assert read_skills(tmp_path / "skills") == ()
    assert [entry["event"] for entry in warnings(caplog)] == ["skills cannot be read"]


def test_a_skill_is_what_its_files_say(tmp_path: Path) -> None:
    manifest = {"version": "2", "requires": {"binaries": ["sh"], "env_vars": ["PDF_KEY"]}}
    files = {"scripts/main.py": b"", "references/a.md": b"", ".hidden": b"", "b/c/d.txt": b""}
    directory = make_skill(tmp_path, "pdf-kit", manifest=manifest, **files)
    skill = only(tmp_path)
    assert skill == Skill(
        id="pdf-kit",
        name="PDF kit",
        description="Read PDF files.",
        directory=directory,
        binaries=("sh",),
        env_vars=("PDF_KEY",),
        version="2",
        files=("SKILL.md", "manifest.json", "references/a.md", "scripts/main.py", "b/c/d.txt"),
    )
    assert skill.index_entry() == {
        "id": "pdf-kit",
        "name": "PDF kit",
        "description": "Read PDF files.",
        "version": "2",
        "source": "workspace",
        "file_inventory": {
            "has_skill_md": True,
            "has_scripts": True,
            "has_references": True,
            "script_files": ["scripts/main.py"],
            "reference_files": ["references/a.md"],
        },
        "requires": {"binaries": ["sh"], "env_vars": ["PDF_KEY"]},
    }


def test_skills_come_sorted_and_other_directories_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b", "a", "c"):
        make_skill(tmp_path, name)
    (tmp_path / "no-skill").mkdir()
    (tmp_path / "file").write_text("")
    assert [skill.id for skill in read_skills(tmp_path)] == ["a", "b", "c"]
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("text", "name", "description"),
    [
        ("no front matter", "kit", ""),
        ("", "kit", ""),
        ("---\n---\n", "kit", ""),
        ("---\nname:\ndescription:\n---\n", "kit", ""),
        ("---\r\nname: A\r\ndescription: B\r\n---\r\n", "A", "B"),
        ("\ufeff---\nname: A\n---\n", "A", ""),
        ("---\nname: \"A: b\"\ndescription: 'c'\n---\n", "A: b", "c"),
        ('---\nname: "\ndescription: "half\n---\n', '"', '"half'),
        ("---\nname: A\ndescription: >-\n  one\n  two\n---\n", "A", "one two"),
        ("---\nname: A\ndescription: one\n  two\nmetadata:\n  name: X\n---\n", "A", "one two"),
        ("---\nname: A\n- junk\n  name: X\n---\nname: Y\n", "A", ""),
        ("---\nname: A\nname: B\n", "B", ""),
        ("---\nname: &a !!python/object B\n---\n", "&a !!python/object B", ""),
    ],
)
def test_front_matter_is_lines_and_never_yaml(
    tmp_path: Path, text: str, name: str, description: str
) -> None:
    make_skill(tmp_path, "kit", text)
    skill = only(tmp_path)
    assert (skill.name, skill.description) == (name, description)


@pytest.mark.parametrize(
    ("manifest", "binaries", "env_vars"),
    [
        ({}, (), ()),
        ({"requires": None}, (), ()),
        ({"requires": "sh"}, (), ()),
        ({"requires": ["sh"]}, (), ()),
        ({"requires": {"binaries": "sh", "env_vars": {"A": 1}}}, (), ()),
        (
            {"requires": {"binaries": ["sh", 5, "", None], "env_vars": [["A"], "B"]}},
            ("sh",),
            ("B",),
        ),
    ],
)
def test_requirements_of_the_wrong_type_are_none(
    tmp_path: Path, manifest: object, binaries: tuple[str, ...], env_vars: tuple[str, ...]
) -> None:
    make_skill(tmp_path, "kit", manifest=manifest)
    skill = only(tmp_path)
    assert (skill.binaries, skill.env_vars) == (binaries, env_vars)


@pytest.mark.parametrize("version", [5, "", None])
def test_a_version_of_the_wrong_type_is_the_current_one(tmp_path: Path, version: object) -> None:
    make_skill(tmp_path, "kit", manifest={"version": version})
    assert only(tmp_path).version == "current"


def test_what_cannot_be_read_is_passed_over_with_one_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_skill(tmp_path, "good")
    make_skill(tmp_path, "bad name")
    (make_skill(tmp_path, "bad-json") / "manifest.json").write_text("{")
    (make_skill(tmp_path, "bad-list") / "manifest.json").write_text("[]")
    (make_skill(tmp_path, "bad-utf8") / "SKILL.md").write_bytes(b"\xff")
    make_skill(tmp_path, "too-long", "x" * (MAX_FILE_BYTES + 1))
    fifo = make_skill(tmp_path, "fifo") / "SKILL.md"
    fifo.unlink()
    os.mkfifo(fifo)
    assert [skill.id for skill in read_skills(tmp_path)] == ["good"]
    assert {entry["skill"] for entry in warnings(caplog)} == {
        *("bad name", "bad-json", "bad-list", "bad-utf8", "too-long", "fifo")
    }
    assert len(warnings(caplog)) == 6


def test_links_are_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = make_skill(tmp_path / "outside", "kit", **{"secret.txt": b"secret"})
    root = tmp_path / "skills"
    linked = make_skill(root, "linked")
    (root / "whole").symlink_to(outside)
    (linked / "secret.txt").symlink_to(outside / "secret.txt")
    (linked / "scripts").symlink_to(outside)
    hidden = make_skill(root, "hidden")
    (hidden / "SKILL.md").unlink()
    (hidden / "SKILL.md").symlink_to(outside / "SKILL.md")
    skill = only(root)
    assert (skill.id, skill.files) == ("linked", ("SKILL.md",))
    assert [entry["skill"] for entry in warnings(caplog)] == ["hidden"]


def test_names_that_json_cannot_say_are_left_out(tmp_path: Path) -> None:
    directory = make_skill(tmp_path, "kit")
    (Path(os.fsdecode(os.fsencode(directory) + b"/\xff.txt"))).write_bytes(b"")
    skill = only(tmp_path)
    assert skill.files == ("SKILL.md",)
    dump_json(skill.index_entry())


def test_the_number_of_skills_and_files_is_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_skill(tmp_path, "many-files", **{f"f{n:03d}": b"" for n in range(MAX_FILES + 10)})
    assert len(only(tmp_path).files) == MAX_FILES
    for number in range(MAX_SKILLS + 5):
        make_skill(tmp_path, f"s{number:04d}")
    assert len(read_skills(tmp_path)) == MAX_SKILLS
    assert [entry["event"] for entry in warnings(caplog)] == ["too many skills"]


# --- requirements ---------------------------------------------------------------------


def skill(**requirements: tuple[str, ...]) -> Skill:
    return Skill(id="kit", name="kit", description="", directory=None, **requirements)


def find(*found: str) -> object:
    def which(cmd: str, *, path: str) -> str | None:
        assert path == "/my/bin"
        return f"{path}/{cmd}" if cmd in found else None

    return which


def test_a_skill_with_all_it_needs_is_usable(caplog: pytest.LogCaptureFixture) -> None:
    kit = skill(binaries=("git",), env_vars=("KEY",))
    environment = {"PATH": "/my/bin", "KEY": "k"}
    assert usable_skills([kit], environment=environment, which=find("git")) == (kit,)
    assert warnings(caplog) == []


def test_a_skill_that_lacks_something_is_dropped_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kit = skill(binaries=("git", "moon"), env_vars=("KEY", "EMPTY", "NONE"))
    environment = {"PATH": "/my/bin", "KEY": "k", "EMPTY": ""}
    assert usable_skills([kit, skill()], environment=environment, which=find("git")) == (skill(),)
    assert warnings(caplog) == [
        {
            "event": "skill dropped",
            "skill": "kit",
            "missing_binaries": ["moon"],
            "missing_env_vars": ["EMPTY", "NONE"],
        }
    ]


def test_programs_are_looked_for_on_the_path_that_was_given(tmp_path: Path) -> None:
    program = tmp_path / "my-program"
    program.write_text("#!/bin/sh\n")
    kit = skill(binaries=("my-program",))
    assert usable_skills([kit], environment={"PATH": str(tmp_path)}) == ()
    program.chmod(0o755)
    assert usable_skills([kit], environment={"PATH": str(tmp_path)}) == (kit,)
    assert usable_skills([kit], environment={}) == ()


def test_entries_of_an_index_are_kept_as_they_are_or_dropped() -> None:
    good = [
        {"id": "a", "extra": {"b": 1}},
        {"id": "b", "requires": "nothing"},
        {"id": "c", "requires": {"binaries": ["git", 7], "env_vars": []}},
        {},
    ]
    bad: list[JsonValue] = ["text", None, ["a"], {"id": "d", "requires": {"env_vars": ["NONE"]}}]
    environment = {"PATH": "/my/bin"}
    assert usable_entries([*good, *bad], environment=environment, which=find("git")) == tuple(good)


@pytest.mark.parametrize("index", [None, "text", {"a": 1}, 5])
def test_what_is_no_index_has_no_entries(index: JsonValue) -> None:
    assert usable_entries(index, environment={}) == ()


# --- packages -------------------------------------------------------------------------


def test_a_package_carries_text_as_text_and_the_rest_as_base64(tmp_path: Path) -> None:
    make_skill(tmp_path, "kit", **{"a.bin": b"\xff\x00", "scripts/main.py": "ü".encode()})
    package = read_package(only(tmp_path))
    assert package == {
        "skill_id": "kit",
        "version": "current",
        "files": [
            {"path": "SKILL.md", "content": SKILL_MD, "encoding": "utf-8"},
            {
                "path": "a.bin",
                "content": base64.b64encode(b"\xff\x00").decode(),
                "encoding": "base64",
            },
            {"path": "scripts/main.py", "content": "ü", "encoding": "utf-8"},
        ],
        "file_inventory": {
            "has_skill_md": True,
            "has_scripts": True,
            "has_references": False,
            "script_files": ["scripts/main.py"],
            "reference_files": [],
        },
    }


def test_a_skill_of_an_index_has_no_package_here() -> None:
    assert read_package(skill()) is None
    assert skill().index_entry()["source"] == "session"


def test_what_is_too_large_gone_or_a_link_by_now_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = {f"large{n}": b"x" * MAX_FILE_BYTES for n in range(3)}
    assert MAX_PACKAGE_BYTES == 2 * MAX_FILE_BYTES
    directory = make_skill(
        tmp_path / "skills",
        "kit",
        **large,
        **{"too-large": b"x" * (MAX_FILE_BYTES + 1), "gone": b"", "s/link": b"", "zz": b"z"},
    )
    kit = only(tmp_path / "skills")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "link").write_text("secret")
    (directory / "gone").unlink()
    (directory / "s" / "link").unlink()
    (directory / "s").rmdir()
    (directory / "s").symlink_to(outside)
    package = read_package(kit)
    assert package is not None
    paths = [file["path"] for file in package["files"]]  # type: ignore[union-attr,index,call-overload]  # a list of objects
    assert paths == ["SKILL.md", "large0", "zz"]
    assert [entry["file"] for entry in warnings(caplog)] == [
        *("gone", "large1", "large2", "too-large", "s/link")
    ]


def test_a_directory_that_became_a_loop_of_links_has_no_files(tmp_path: Path) -> None:
    make_skill(tmp_path, "kit", **{"s/file": b""})
    kit = only(tmp_path)
    (tmp_path / "kit" / "s" / "file").unlink()
    (tmp_path / "kit" / "s").rmdir()
    (tmp_path / "kit" / "s").symlink_to("s")
    package = read_package(kit)
    assert package is not None
    assert [file["path"] for file in package["files"]] == ["SKILL.md"]  # type: ignore[union-attr,index,call-overload]  # a list of objects
