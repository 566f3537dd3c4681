"""The rules of this house that no linter knows, checked on the syntax tree of every module.

Each rule is a function from a module to the lines that break it, and stands beside snippets
that it must find and snippets that it must let pass.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Final

import attrs
import pytest

PACKAGE: Final = Path(__file__).parent.parent / "semibot"
LONGEST_FILE: Final = 500


@attrs.define(slots=False)
class Module:
    """One file of semibot, or a snippet that pretends to be one."""

    path: str
    text: str
    cleaners: frozenset[str] = frozenset()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def imported(self) -> dict[str, str]:
        """Full names by the names that imports give them here."""
        found: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    found[name] = alias.name if alias.asname else name
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        return found

    def name_of(self, node: ast.AST) -> str:
        """Return the dotted name that *node* says, with imports spelled out."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self.name_of(node.value)}.{node.attr}"
        return "?"

    def calls(self) -> Iterator[tuple[ast.Call, str]]:
        """Return every call with the dotted name of what is called."""
        for node in self.nodes:
            if isinstance(node, ast.Call):
                yield node, self.name_of(node.func)

    def names(self) -> Iterator[tuple[int, str]]:
        """Return every name and attribute that is used or imported, with its line."""
        for node in self.nodes:
            if isinstance(node, ast.Name | ast.Attribute):
                yield node.lineno, self.name_of(node)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                for alias in node.names:
                    yield node.lineno, start + alias.name

    def is_in(self, *places: str) -> bool:
        """Return whether the file is one of *places* or lies below one."""
        return any(self.path == place or self.path.startswith(place + "/") for place in places)


def _uses(module: Module, *names: str) -> Iterator[int]:
    """Return the lines that use one of *names*, or something below it."""
    for line, found in module.names():
        if any(found == name or found.startswith(name + ".") for name in names):
            yield line


def _last(name: str) -> str:
    return name.rpartition(".")[2]


# --- rules ----------------------------------------------------------------------------


def a_shield_is_written_only_in_lifetimes(module: Module) -> Iterator[int]:
    if module.is_in("lifetimes.py"):
        return
    for node, _ in module.calls():
        yield from (word.value.lineno for word in node.keywords if word.arg == "shield")
    for node in module.nodes:
        match node:
            case ast.Attribute(attr="shield", ctx=ast.Store()):
                yield node.lineno


def trio_is_the_only_event_loop(module: Module) -> Iterator[int]:
    yield from _uses(module, "asyncio", "anyio")


def nothing_runs_outside_the_task_tree(module: Module) -> Iterator[int]:
    yield from _uses(module, "atexit")
    for line, name in module.names():
        if _last(name) in {"spawn_system_task", "add_background_task"}:
            yield line


def no_command_goes_through_a_shell(module: Module) -> Iterator[int]:
    yield from _uses(module, "os.system", "os.popen", "subprocess.getoutput")
    for node, _ in module.calls():
        yield from (word.value.lineno for word in node.keywords if word.arg == "shell")


def programs_start_only_through_the_port(module: Module) -> Iterator[int]:
    if module.is_in("live.py"):
        return
    yield from _uses(module, "trio.run_process", "trio.open_process", "trio.lowlevel.open_process")
    yield from _uses(module, "subprocess.Popen", "subprocess.run", "subprocess.call")
    yield from _uses(module, "subprocess.check_call", "subprocess.check_output", "os.posix_spawn")


def no_archive_is_unpacked(module: Module) -> Iterator[int]:
    yield from _uses(module, "tarfile", "zipfile", "shutil.unpack_archive")


def nothing_sleeps_on_the_loop(module: Module) -> Iterator[int]:
    yield from _uses(module, "time.sleep")


def the_outside_comes_through_the_ports(module: Module) -> Iterator[int]:
    if module.is_in("live.py", "testing"):
        return
    yield from _uses(module, "os.environ", "os.environb", "os.getenv", "os.urandom")
    yield from _uses(module, "time.time", "time.time_ns", "uuid", "secrets")
    yield from _uses(module, "datetime.datetime.now", "datetime.datetime.utcnow")
    for node, name in module.calls():
        if name.startswith("random.") and name.count(".") == 1:
            yield node.lineno


def a_loop_starts_only_in_cli_and_testing(module: Module) -> Iterator[int]:
    if not module.is_in("cli", "testing"):
        yield from _uses(module, "trio.run", "trio.lowlevel.start_guest_run")


def printing_is_for_cli_and_testing(module: Module) -> Iterator[int]:
    if not module.is_in("cli", "testing"):
        yield from (node.lineno for node, name in module.calls() if name == "print")


def a_nursery_is_not_kept(module: Module) -> Iterator[int]:
    # lifetimes.py owns the tasks of others; a context hands an adapter the nursery that it is
    # given for the length of its scope.
    if module.is_in("lifetimes.py", "session/adapter.py"):
        return
    nurseries = set(_nursery_names(module))
    for node in module.nodes:
        match node:
            case ast.AsyncWith():
                for item in node.items:
                    if isinstance(item.optional_vars, ast.Attribute) and _opens(module, item):
                        yield node.lineno
            case ast.Assign(targets=targets, value=ast.Name(id=name)) if name in nurseries:
                yield from (each.lineno for each in targets if isinstance(each, ast.Attribute))
            case ast.Return(value=ast.Name(id=name)) if name in nurseries:
                yield node.lineno
            case ast.ClassDef():
                for each in node.body:
                    if isinstance(each, ast.AnnAssign) and _is_nursery(each.annotation):
                        yield each.lineno


def _opens(module: Module, item: ast.withitem) -> bool:
    call = item.context_expr
    return isinstance(call, ast.Call) and _last(module.name_of(call.func)) == "open_nursery"


def _is_nursery(annotation: ast.expr) -> bool:
    return "Nursery" in ast.unparse(annotation)


def _nursery_names(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.arg) and node.annotation and _is_nursery(node.annotation):
            yield node.arg
        elif isinstance(node, ast.AsyncWith):
            for item in node.items:
                if isinstance(item.optional_vars, ast.Name) and _opens(module, item):
                    yield item.optional_vars.id


def clean_up_awaits_inside_a_grace(module: Module) -> Iterator[int]:
    harmless = SHIELDED_BY_ITSELF | module.cleaners
    yield from _unguarded(module, module.tree.body, harmless, is_clean_up=False)


SHIELDED_BY_ITSELF: Final = frozenset({"aclose_forcefully", "cancel_shielded_checkpoint"})


def _unguarded(
    module: Module, nodes: Iterable[ast.AST], harmless: frozenset[str], *, is_clean_up: bool
) -> Iterator[int]:
    """Return the awaits in clean-up that no grace stands around.

    A grace ends the search, and so does a function, which runs when it is called.
    """

    def search(inner: Iterable[ast.AST], *, is_clean_up: bool) -> Iterator[int]:
        return _unguarded(module, inner, harmless, is_clean_up=is_clean_up)

    for node in nodes:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from search(node.body, is_clean_up=False)
                continue
            case ast.With() if any(_is_grace(module, item) for item in node.items):
                continue
            case ast.Try() | ast.TryStar():
                inside = [*node.body, *node.orelse]
                for handler in node.handlers:
                    if _catches_cancellation(module, handler):
                        yield from search(handler.body, is_clean_up=True)
                    else:
                        inside += handler.body
                yield from search(inside, is_clean_up=is_clean_up)
                yield from search(node.finalbody, is_clean_up=True)
                continue
            case ast.Await(value=ast.Call(func=called)):
                if is_clean_up and _last(module.name_of(called)) not in harmless:
                    yield node.lineno
            case ast.Await() | ast.AsyncWith() | ast.AsyncFor() if is_clean_up:
                yield node.lineno
        yield from search(ast.iter_child_nodes(node), is_clean_up=is_clean_up)


def with_cleaners(modules: list[Module]) -> list[Module]:
    """Tell every module which functions put all their awaits inside graces of their own.

    A function that only awaits such functions is one itself. A name means the function of that
    name in the same module, and if there is none, every function of that name.
    """
    while True:
        verdicts = [(module.path, *verdict) for module in modules for verdict in _verdicts(module)]
        found = [
            attrs.evolve(module, cleaners=_cleaners_seen_from(module.path, verdicts))
            for module in modules
        ]
        if [module.cleaners for module in found] == [module.cleaners for module in modules]:
            return found
        modules = found


def _verdicts(module: Module) -> Iterator[tuple[str, bool]]:
    harmless = SHIELDED_BY_ITSELF | module.cleaners
    for node in module.nodes:
        if isinstance(node, ast.AsyncFunctionDef):
            has_await = any(isinstance(each, ast.Await) for each in ast.walk(node))
            is_bare = any(_unguarded(module, node.body, harmless, is_clean_up=True))
            yield node.name, has_await and not is_bare


def _cleaners_seen_from(path: str, verdicts: list[tuple[str, str, bool]]) -> frozenset[str]:
    here = {name for where, name, _ in verdicts if where == path}
    seen = [verdict for verdict in verdicts if verdict[0] == path or verdict[1] not in here]
    return frozenset({name for _, name, _ in seen} - {name for _, name, good in seen if not good})


def _is_grace(module: Module, item: ast.withitem) -> bool:
    call = item.context_expr
    return isinstance(call, ast.Call) and _last(module.name_of(call.func)) == "grace"


def _catches_cancellation(module: Module, handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {module.name_of(kind) for kind in kinds}
    return not names.isdisjoint({"BaseException", "BaseExceptionGroup", "trio.Cancelled"})


def a_private_name_stays_in_its_module(module: Module) -> Iterator[int]:
    defined = set(_defined_names(module))
    for node in module.nodes:
        match node:
            case ast.ImportFrom():
                yield from (node.lineno for alias in node.names if _is_private(alias.name))
            case ast.Attribute(attr=attr, value=owner) if _is_private(attr):
                is_own = isinstance(owner, ast.Name) and owner.id in {"self", "cls"}
                is_documented = module.name_of(node) in PUBLIC_IN_SPITE_OF_ITS_NAME
                if not (is_own or is_documented or attr in defined):
                    yield node.lineno


PUBLIC_IN_SPITE_OF_ITS_NAME: Final = {"os._exit", "sys._current_frames"}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _defined_names(module: Module) -> Iterator[str]:
    for node in module.nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(attr=name, value=ast.Name(id="self"), ctx=ast.Store()):
                yield name


def a_file_is_named_for_what_it_holds(module: Module) -> Iterator[int]:
    if Path(module.path).stem in {"utils", "helpers", "common", "misc", "types"}:
        yield 1


def a_file_can_be_read_in_one_sitting(module: Module) -> Iterator[int]:
    length = len(module.text.splitlines())
    if length > LONGEST_FILE:
        yield length


# --- the rules on semibot, and on snippets --------------------------------------------

Rule = Callable[[Module], Iterable[int]]

BROKEN: Final[list[tuple[Rule, str, str]]] = [
    (a_shield_is_written_only_in_lifetimes, "a.py", "trio.CancelScope(shield=True)"),
    (a_shield_is_written_only_in_lifetimes, "a.py", "trio.move_on_after(5, shield=True)"),
    (a_shield_is_written_only_in_lifetimes, "a.py", "scope.shield = True"),
    (trio_is_the_only_event_loop, "a.py", "import asyncio"),
    (trio_is_the_only_event_loop, "a.py", "from anyio import to_thread"),
    (nothing_runs_outside_the_task_tree, "a.py", "import atexit"),
    (nothing_runs_outside_the_task_tree, "a.py", "trio.lowlevel.spawn_system_task(f)"),
    (nothing_runs_outside_the_task_tree, "a.py", "app.add_background_task(f)"),
    (no_command_goes_through_a_shell, "a.py", "open_process('ls', shell=True)"),
    (no_command_goes_through_a_shell, "a.py", "import os\nos.system('ls')"),
    (no_command_goes_through_a_shell, "a.py", "from os import system"),
    (programs_start_only_through_the_port, "a.py", "import trio\ntrio.lowlevel.open_process([])"),
    (programs_start_only_through_the_port, "a.py", "from subprocess import Popen as P\nP([])"),
    (no_archive_is_unpacked, "a.py", "import tarfile"),
    (no_archive_is_unpacked, "a.py", "from zipfile import ZipFile"),
    (nothing_sleeps_on_the_loop, "a.py", "import time as clock\nclock.sleep(1)"),
    (nothing_sleeps_on_the_loop, "a.py", "from time import sleep"),
    (the_outside_comes_through_the_ports, "a.py", "import os\nos.environ['HOME']"),
    (the_outside_comes_through_the_ports, "a.py", "from datetime import datetime\ndatetime.now()"),
    (the_outside_comes_through_the_ports, "a.py", "import random\nrandom.random()"),
    (a_loop_starts_only_in_cli_and_testing, "session/a.py", "import trio\ntrio.run(main)"),
    (printing_is_for_cli_and_testing, "clips.py", "print('hello')"),
    (
        a_nursery_is_not_kept,
        "a.py",
        "async def f(self):\n async with trio.open_nursery() as self.nursery:\n  pass",
    ),
    (
        a_nursery_is_not_kept,
        "a.py",
        "async def f(self):\n async with trio.open_nursery() as n:\n  self.n = n",
    ),
    (a_nursery_is_not_kept, "a.py", "def f(self, n: trio.Nursery):\n self.n = n"),
    (a_nursery_is_not_kept, "a.py", "def f(n: trio.Nursery):\n return n"),
    (a_nursery_is_not_kept, "a.py", "class A:\n n: trio.Nursery | None = None"),
    (
        clean_up_awaits_inside_a_grace,
        "a.py",
        "async def f():\n try:\n  pass\n finally:\n  await g()",
    ),
    (
        clean_up_awaits_inside_a_grace,
        "a.py",
        "async def f():\n try:\n  pass\n except BaseException:\n  async with g():\n   pass",
    ),
    (
        clean_up_awaits_inside_a_grace,
        "a.py",
        "import trio\nasync def f():\n try:\n  pass\n except trio.Cancelled:\n  await g()",
    ),
    (
        clean_up_awaits_inside_a_grace,
        "a.py",
        "async def f():\n try:\n  pass\n except (OSError, BaseException):\n  if g:\n   await g()",
    ),
    (
        clean_up_awaits_inside_a_grace,
        "a.py",
        "async def f():\n try:\n  pass\n finally:\n  try:\n   await g()\n  finally:\n   pass",
    ),
    (a_private_name_stays_in_its_module, "a.py", "from semibot.tools.gate import _run"),
    (a_private_name_stays_in_its_module, "a.py", "def f(run):\n return run._stop"),
    (a_file_is_named_for_what_it_holds, "tools/utils.py", ""),
    (a_file_can_be_read_in_one_sitting, "a.py", "\n" * 501),
]

KEPT: Final[list[tuple[Rule, str, str]]] = [
    (a_shield_is_written_only_in_lifetimes, "lifetimes.py", "trio.CancelScope(shield=True)"),
    (
        programs_start_only_through_the_port,
        "live.py",
        "import trio\ntrio.lowlevel.open_process([])",
    ),
    (the_outside_comes_through_the_ports, "live.py", "import os\nos.environ['HOME']"),
    (the_outside_comes_through_the_ports, "a.py", "def f(ports):\n ports.random.random()"),
    (a_loop_starts_only_in_cli_and_testing, "cli/chat.py", "import trio\ntrio.run(main)"),
    (printing_is_for_cli_and_testing, "cli/chat.py", "print('hello')"),
    (
        a_nursery_is_not_kept,
        "a.py",
        "async def f():\n async with trio.open_nursery() as n:\n  await g(n)",
    ),
    (
        clean_up_awaits_inside_a_grace,
        "a.py",
        "async def f():\n try:\n  pass\n finally:\n  with grace('x', 1):\n   await g()",
    ),
    (
        clean_up_awaits_inside_a_grace,
        "a.py",
        "async def f():\n try:\n  await g()\n except OSError:\n  await g()\n finally:\n  h()",
    ),
    (
        clean_up_awaits_inside_a_grace,
        "a.py",
        "async def f():\n try:\n  pass\n finally:\n  await trio.aclose_forcefully(g)",
    ),
    (
        a_private_name_stays_in_its_module,
        "a.py",
        "class A:\n _stop = 1\ndef f(run):\n return run._stop",
    ),
    (a_file_can_be_read_in_one_sitting, "a.py", "\n" * 500),
]

RULES: Final = list(dict.fromkeys(rule for rule, _, _ in BROKEN))


def _name(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.fixture(scope="module")
def semibot() -> list[Module]:
    modules = [
        Module(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    assert "lifetimes.py" in {module.path for module in modules}
    return with_cleaners(modules)


@pytest.mark.parametrize("rule", RULES, ids=_name)
def test_semibot_keeps_the_rule(rule: Rule, semibot: list[Module]) -> None:
    found = [f"semibot/{module.path}:{line}" for module in semibot for line in rule(module)]
    assert found == []


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN, ids=_name)
def test_the_rule_finds_what_breaks_it(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Module(path, text))) != []


@pytest.mark.parametrize(("rule", "path", "text"), KEPT, ids=_name)
def test_the_rule_lets_good_code_pass(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Module(path, text))) == []


def test_a_function_that_opens_its_own_graces_may_be_awaited_in_clean_up() -> None:
    text = (
        "async def good():\n with grace('x', 1):\n  await g()\n"
        "async def better():\n await good()\n"
        "async def bad():\n await g()\n"
        "async def idle():\n pass\n"
        "async def f():\n try:\n  pass\n finally:\n  await better()\n  await bad()\n"
    )
    other = "async def good():\n await g()\nasync def bad():\n with grace('x', 1):\n  await g()\n"
    module, _ = with_cleaners([Module("a.py", text), Module("b.py", other)])
    assert module.cleaners == {"good", "better"}
    assert list(clean_up_awaits_inside_a_grace(module)) == [text.count("\n")]
