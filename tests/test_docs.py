"""The documentation says what the code does: names, defaults, codes, options and examples."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import click
import pytest
from documentation import DOCS, ROOT, read, rows, words

import semibot
from semibot import errors
from semibot.cli.admin import vm_token
from semibot.cli.chat import command as chat
from semibot.cli.doctor import command as doctor
from semibot.cli.group import program
from semibot.cli.serve import command as serve
from semibot.cli.vm import command as vm
from semibot.wire.bridge import START_KEYS, FromBridge, ToBridge
from semibot.wire.events import ProgressEvent, SessionEvent
from semibot.wire.receipts import ActivityRecord, Receipt

PAGES: Final = sorted(
    page for page in DOCS.rglob("*.rst") if not {"_build", "newsfragments"} & {*page.parts}
)

_DIRECTIVE: Final = re.compile(r"( *)\.\. (code-block|literalinclude):: *(\S+)$")
_OPTION: Final = re.compile(r" +:([a-z-]+): *(.*)$")
_CODE: Final = re.compile(r"[A-Z]+(_[A-Z]+)+")


# --- blocks ---------------------------------------------------------------------------


@attrs.frozen
class Block:
    """A directive that shows code."""

    page: Path
    line: int
    kind: str
    argument: str
    options: dict[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(DOCS)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the code blocks and included files of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        directive = _DIRECTIVE.match(line)
        if directive is None:
            continue
        indent = len(directive[1])
        rest = lines[number + 1 :]
        options: dict[str, str] = {}
        while rest and (option := _OPTION.match(rest[0])):
            options[option[1]] = option[2]
            rest.pop(0)
        body: list[str] = []
        for text in rest:
            if text.strip() and len(text) - len(text.lstrip()) <= indent:
                break
            body.append(text[indent + 3 :])
        yield Block(page, number + 1, directive[2], directive[3], options, "\n".join(body))


BLOCKS: Final = [block for page in PAGES for block in blocks_of(page)]
PYTHON: Final = [
    block for block in BLOCKS if (block.kind, block.argument) == ("code-block", "python")
]
RUNNABLE: Final = [block for block in PYTHON if block.options.get("class") == "runnable"]
INCLUDED: Final = [block for block in BLOCKS if block.kind == "literalinclude"]


def test_the_pages_have_blocks_of_every_kind() -> None:
    assert len(PYTHON) > len(RUNNABLE) > 5
    assert {block.page.parent.name for block in INCLUDED} == {"howto", "topics", "tutorial"}


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_on_a_page_compiles(block: Block) -> None:
    # A block may show what stands inside an async function.
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_python_that_is_marked_runnable_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SEMIBOT_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "block.py"
    program.write_text(block.text, encoding="utf-8")
    runpy.run_path(str(program), run_name="__main__")


@pytest.mark.parametrize("block", INCLUDED, ids=str)
def test_what_a_page_includes_is_there(block: Block) -> None:
    text = (block.page.parent / block.argument).read_text(encoding="utf-8")
    if "pyobject" in block.options:
        functions = [
            node.name
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert block.options["pyobject"] in functions
    for option in ("start-at", "end-before"):
        assert block.options.get(option, "") in text


def test_every_example_is_on_a_page() -> None:
    shown = {(block.page.parent / block.argument).resolve() for block in INCLUDED}
    assert {*(ROOT / "examples").glob("*.py")} <= shown


@pytest.mark.parametrize(
    "name", ["bridge_session", "deadline_and_cancel", "own_adapter", "own_tool", "ten_lines"]
)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SEMIBOT_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "README.md").write_text("hello\n")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out


def test_the_readme_shows_the_ten_lines_as_they_are() -> None:
    (shown,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert f"\n\n{shown}\n\n" in (ROOT / "examples" / "ten_lines.py").read_text("utf-8")


def test_the_readme_links_to_files_that_are_there() -> None:
    links = re.findall(r"\]\(([^):]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_programs_under_figures_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    _, _, figures = text.partition("\n## Figures\n")
    programs = re.findall(r"`\.venv/bin/python (\S+\.py)", figures)
    assert len(programs) > 3
    assert [program for program in programs if not (ROOT / program).is_file()] == []


def test_every_page_can_be_reached() -> None:
    for page in PAGES:
        if page.stem == "index":
            continue
        index = (page.parent / "index.rst").read_text(encoding="utf-8")
        assert f"   {page.stem}\n" in index + "\n", page


def test_pages_stand_alone() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/work/|\.\./shared|\bTODO\b", text), page


# --- tables ---------------------------------------------------------------------------


def test_the_deadlines_page_has_every_field_with_its_name_and_default() -> None:
    fields = {
        (f"``{field.name}``", f"``{field.name.replace('_', '.', 1)}``"): field.default
        for field in attrs.fields(semibot.Deadlines)
    }
    told = {
        (row[0], row[1]): float(row[2])
        for row in rows(read("topics/deadlines.rst"))
        if re.fullmatch(r"[\d.]+", row[2])
    }
    assert told == fields


def test_the_bounds_of_exits_are_what_the_defaults_add_up_to() -> None:
    deadlines = semibot.Deadlines()
    text = " ".join(read("topics/lifetimes.rst").split())
    term_and_kill = deadlines.child_term_grace + deadlines.child_kill_grace
    assert f"``Deadlines.leave_bound`` ({deadlines.leave_bound:g} s)" in text
    assert f"``Deadlines.stop_bound`` ({deadlines.stop_bound:g} s)" in text
    assert f"``child_kill_grace`` ({deadlines.child_eof_grace + term_and_kill:g} s)" in text
    assert f"``child_kill_grace`` ({term_and_kill:g} s)" in text


def error_classes(kind: type[semibot.SemibotError]) -> Iterator[type[semibot.SemibotError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from error_classes(child)


def test_the_errors_page_has_every_class_with_its_code() -> None:
    classes = {kind.__name__: kind.code for kind in error_classes(semibot.SemibotError)}
    told = {
        match[1]: row[0].strip("`")
        for row in rows(read("reference/errors.rst"))
        if (match := re.fullmatch(r":exc:`~semibot\.(?:errors\.)?(\w+)`", row[1]))
    }
    assert told == classes


def test_the_errors_page_has_every_code_that_the_source_gives_to_an_error() -> None:
    given: set[str] = set()
    for path in (ROOT / "semibot").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                    given.add(code)
                case ast.Call(func=ast.Name(id="RequestFailed" | "Failed"), args=[first, *_]):
                    if isinstance(first, ast.Constant):
                        given.add(str(first.value))
                case ast.AnnAssign(
                    target=ast.Name(id=name), value=ast.Constant(value=str(code))
                ) if name.endswith(("_ERROR", "_FAILED")) and _CODE.fullmatch(code):
                    given.add(code)
    assert {"DEADLINE_EXCEEDED", "UNSUPPORTED_METHOD", "CP_REQUEST_FAILED"} <= given
    assert given <= words(read("reference/errors.rst"))


# --- protocol -------------------------------------------------------------------------


def test_the_protocol_page_has_every_event_with_its_fields() -> None:
    told: dict[str, str] = {}
    for row in rows(read("reference/protocol.rst")):
        told.setdefault(row[0].strip("`"), " ".join(row[1:]))  # the bridge's tables come later
    for kind in SessionEvent.__args__:
        named = words(told[kind.type])
        named = {name for text in named for name in re.findall(r"\w+", text)}
        missing = {field.name for field in attrs.fields(kind)} - named
        assert not missing, kind


def test_the_protocol_page_has_every_line_between_adapter_and_bridge() -> None:
    text = read("reference/protocol.rst")
    progress = ProgressEvent.__args__
    frames = {kind for union in (ToBridge, FromBridge) for kind in union.__args__}
    tags = {kind.type for kind in frames if hasattr(kind, "type")}
    tags |= {"ready", "cp_request", "cp_fire_and_forget", "snapshot_response"}
    tags |= {kind.type for kind in progress}
    assert tags <= words(text)
    assert {*START_KEYS} <= set(re.findall(r"\w+", text))


@pytest.mark.parametrize("page", ["reference/protocol.rst", "topics/cancellation.rst"])
def test_pages_about_receipts_have_every_field(page: str) -> None:
    named = set(re.findall(r"\w+", " ".join(words(read(page)))))
    for kind in (Receipt, ActivityRecord):
        assert {field.name for field in attrs.fields(kind)} <= named


# --- command line ---------------------------------------------------------------------


COMMANDS: Final = {
    "semibot serve": serve,
    "semibot chat": chat,
    "semibot vm": vm,
    "semibot admin vm-token": vm_token,
    "semibot doctor": doctor,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_page_has_every_option(name: str) -> None:
    _, _, rest = read("reference/cli.rst").partition(f"\n{name}\n---")
    section = re.split(r"\n\n[^\n]+\n---", rest)[0]
    command: click.Command = COMMANDS[name]
    options = [each for option in command.params for each in option.opts if each.startswith("-")]
    assert options
    assert [each for each in options if not re.search(rf"{each}\b", section)] == []


def test_the_command_line_page_has_every_command() -> None:
    top = click.Context(program)
    names = set()
    for name in program.list_commands(top):
        command = program.get_command(top, name)
        inner = command.commands if isinstance(command, click.Group) else ()
        names |= {f"semibot {name} {each}" for each in inner} or {f"semibot {name}"}
    headings = re.findall(r"^(semibot .+)\n---", read("reference/cli.rst"), re.MULTILINE)
    assert sorted(headings) == sorted(names)
