"""Packages that a host hands out: what of them is taken."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import RemoteProtocolError, ToolError
from semibot.wire.codec import JsonValue
from semibot.workspace.packages import MAX_PATH, SkillPackage, unpack
from semibot.workspace.skills import MAX_FILE_BYTES, MAX_FILES, MAX_PACKAGE_BYTES


def unpacked(*files: JsonValue) -> SkillPackage:
    package = unpack({"package": {"skill_id": "kit", "files": list(files)}}, "kit")
    assert package is not None
    return package


def text(path: JsonValue, content: JsonValue = "x", **more: JsonValue) -> JsonValue:
    return {"path": path, "content": content, **more}


def test_text_and_bytes_are_taken() -> None:
    data = base64.b64encode(b"\xff\x00").decode()
    package = unpacked(
        text("SKILL.md", "hällo", encoding="utf-8"),
        text("scripts/a.sh", "echo"),
        text("logo.png", data, encoding="base64"),
    )
    assert package.read("SKILL.md") == "hällo"
    assert package.read("scripts/a.sh") == "echo"
    assert package.files["logo.png"] == b"\xff\x00"
    with pytest.raises(ToolError, match="cannot be read as text"):
        package.read("logo.png")
    with pytest.raises(ToolError, match=r"no file 'b'; it has: SKILL.md, scripts/a.sh"):
        package.read("b")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/./b",
        "./a",
        "a//b",
        "a/",
        "..",
        "a\\b",
        "a\x00b",
        "a\nb",
        "x" * (MAX_PATH + 1),
        5,
        None,
    ],
)
def test_a_path_that_leads_elsewhere_is_left_out(path: JsonValue) -> None:
    assert list(unpacked(text(path), text("SKILL.md")).files) == ["SKILL.md"]


@pytest.mark.parametrize(
    "file",
    [
        None,
        "SKILL.md",
        [],
        text("a", None),
        text("a", 5),
        text("a", "!", encoding="base64"),
        text("a", "\u00e4", encoding="base64"),
        text("a", "\ud800"),
        text("a", "x", encoding="rot13"),
        text("a", "x", encoding=None),
        text("a", "x" * (MAX_FILE_BYTES + 1)),
        text("a", "x" * (3 * MAX_FILE_BYTES)),
        text("a", "\u00e4" * (MAX_FILE_BYTES - 1)),
        text("SKILL.md", "again"),
    ],
)
def test_a_file_that_makes_no_sense_is_left_out(file: JsonValue) -> None:
    package = unpacked(text("SKILL.md", "first"), file, text("z"))
    assert list(package.files) == ["SKILL.md", "z"]
    assert package.read("SKILL.md") == "first"


def test_a_package_is_of_bearable_length() -> None:
    full = [text(f"f{n}", "x" * MAX_FILE_BYTES) for n in range(5)]
    package = unpacked(*full, text("small"))
    assert list(package.files) == ["f0", "f1"]
    assert sum(map(len, package.files.values())) == MAX_PACKAGE_BYTES
    many = unpacked(*(text(f"f{n}") for n in range(MAX_FILES + 5)))
    assert len(many.files) == MAX_FILES


def test_no_package_is_none() -> None:
    assert unpack({"package": None}, "kit") is None
    assert unpack({}, "kit") is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        "x",
        [],
        {"package": 5},
        {"package": {"skill_id": "other", "files": []}},
        {"package": {"skill_id": "kit"}},
        {"package": {"files": "SKILL.md"}},
    ],
)
def test_what_is_no_package_is_refused(value: JsonValue) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(value, "kit")


json_values: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["package", "files", "path", "content", "encoding", "skill_id"]), inner
        )
    ),
)


@given(json_values)
def test_nothing_else_is_ever_raised(value: JsonValue) -> None:
    try:
        package = unpack({"package": {"files": value}}, "kit")
    except RemoteProtocolError:
        return
    assert package is not None
    assert all(".." not in path.split("/") for path in package.files)
