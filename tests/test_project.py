"""What the files around the code promise to a fresh clone."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

import semibot

ROOT: Final = Path(__file__).parent.parent
SESSION_LINES: Final = 8


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def command_under(heading: str) -> str:
    """Return the one line of the one ``sh`` block in a section of the README."""
    _, _, rest = read("README.md").partition(f"\n## {heading}\n")
    section, _, _ = rest.partition("\n## ")
    assert section.count("```") == 2, "one fenced block"
    (block,) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    (line,) = block.splitlines()
    return line


def project() -> dict[str, object]:
    return tomllib.loads(read("pyproject.toml"))["project"]


def package_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9-]+", requirement)
    assert found is not None
    return found.group()


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_a_readme_command_needs_nothing_but_python(heading: str) -> None:
    first, *others = command_under(heading).split(" && ")
    assert first == "python3 -m venv .venv"
    assert others
    assert all(other.startswith(".venv/bin/") for other in others)


def test_the_command_that_runs_it_ends_in_a_host() -> None:
    assert command_under("Run it").endswith("semibot serve --workspace .")


def test_the_readme_names_the_one_prerequisite() -> None:
    assert "python3-venv" in read("README.md")


def test_ci_runs_the_very_command_of_the_readme() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    *_, last = read(".ci/run").splitlines()
    assert shlex.split(last) == ["CI=1", "exec", "sh", "-c", command_under("Test it")]


def test_the_readme_explains_every_dependency() -> None:
    table = re.findall(r"^\| `([^`]+)` \|", read("README.md"), re.MULTILINE)
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    assert sorted(table) == sorted(package_name(each) for each in dependencies)


def test_the_version_is_said_once() -> None:
    assert project()["version"] == semibot.__version__


def test_every_session_of_nox_can_be_read_at_a_glance() -> None:
    functions = [
        node for node in ast.parse(read("noxfile.py")).body if isinstance(node, ast.FunctionDef)
    ]
    sessions = [node for node in functions if node.decorator_list]
    assert len(sessions) > 4
    for node in sessions:
        assert node.end_lineno is not None
        assert node.end_lineno - node.lineno < SESSION_LINES, node.name


def test_a_news_fragment_says_what_it_is() -> None:
    towncrier = tomllib.loads(read("pyproject.toml"))["tool"]["towncrier"]
    kinds = "|".join(kind["directory"] for kind in towncrier["type"])
    names = [path.name for path in (ROOT / towncrier["directory"]).iterdir()]
    assert "README.rst" in names
    wrong = [name for name in names if not re.fullmatch(rf"[0-9+][\w-]*\.({kinds})\.rst", name)]
    assert wrong == ["README.rst"]


def test_every_public_name_can_be_loaded() -> None:
    for name in semibot.__all__:
        assert getattr(semibot, name) is not None
    assert set(semibot.__all__) <= set(dir(semibot))


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        semibot.nonsense  # noqa: B018


def test_importing_semibot_loads_neither_trio_nor_a_model_sdk() -> None:
    code = "import sys, semibot; print({'trio', 'openai', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "set()\n"
