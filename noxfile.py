"""Every check, one session a concern, in the environment that nox itself runs in.

``nox`` runs all of them, cheap ones first, and goes on after a failure; ``nox -s tests``
runs one, and ``nox -s tests -- -k name`` hands arguments to pytest.
"""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import nox

nox.options.default_venv_backend = "none"

PROCESSORS: Final = os.cpu_count() or 1
PYTHON: Final = Path(sys.executable)
ROOT: Final = Path(__file__).parent
COVERED: Final = ("wire", "session", "tools", "channel", "host", "store", "security", "vm")


def run(session: nox.Session, tool: str, *arguments: str) -> None:
    """Run a program of this environment, which comes first on its path as if it was activated."""
    path = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
    session.run(str(PYTHON.parent / tool), *arguments, env={"PATH": path})


@nox.session
def install(session: nox.Session) -> None:
    """Install semibot from this directory, the tools of the ``dev`` group, and a browser."""
    project = nox.project.load_toml("pyproject.toml")
    tools = nox.project.dependency_groups(project, "dev")
    session.run(str(PYTHON), "-m", "pip", "install", "--quiet", "--editable", ".", *tools)
    install_chromium(session)


def install_chromium(session: nox.Session) -> None:
    """Install Chromium, which the tests of the page need, where it is missing and may be."""
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        session.warn("tests/browser need Chromium; as root: apt-get install chromium")
        return
    for command in (
        ("update",),
        ("install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"),
    ):
        asks_nothing = {"DEBIAN_FRONTEND": "noninteractive"}
        session.run("apt-get", "-q", *command, env=asks_nothing, silent=True, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, spelling, dependencies and the obvious mistakes."""
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    run(session, "codespell")
    run(session, "bandit", "--quiet", "--configfile=pyproject.toml", "--recursive", "semibot")
    run(session, "deptry", ".")


# Named codes switch on the whole family, so what is not wanted of it is named too: home rules
# check what 102 and 120 cannot see through `lifetimes.grace`, 910 and 911 ask for a checkpoint
# in every function, and 300 is about asyncio. Tests misbehave on purpose, read small files, and
# their fakes await nothing. Each rule that goes over the syntax with layout costs a pass.
ASYNC_ON: Final = "--enable=ASYNC,ASYNC900,ASYNC912,ASYNC913"
ASYNC_OFF: Final = "--disable=ASYNC102,ASYNC120,ASYNC300,ASYNC910,ASYNC911"
ASYNC_OFF_IN_TESTS: Final = (
    f"{ASYNC_OFF},ASYNC100,ASYNC101,ASYNC103,ASYNC104,ASYNC11,ASYNC124,ASYNC2,ASYNC9"
)


@nox.session
def cancellation(session: nox.Session) -> None:
    """Check what is easily done wrong with tasks and scopes."""
    off_in = {"semibot": ASYNC_OFF, "examples": ASYNC_OFF, "tests": ASYNC_OFF_IN_TESTS}
    parts = [(ASYNC_ON, off, *part) for room, off in off_in.items() for part in parts_of(room)]
    with ThreadPoolExecutor(PROCESSORS) as pool:
        list(pool.map(lambda part: run(session, "flake8-async", *part), parts))


def parts_of(folder: str) -> list[list[str]]:
    """Deal files out to processes: flake8-async uses one processor, and takes no folders."""
    files = [str(path) for path in sorted((ROOT / folder).rglob("*.py"))]
    return [files[first::PROCESSORS] for first in range(PROCESSORS)]


@nox.session
def layers(session: nox.Session) -> None:
    """Check which room imports which."""
    run(session, "lint-imports", "--no-logo")


@nox.session
def types(session: nox.Session) -> None:
    """Check types twice, and that users of the library see every one of them."""
    run(session, "mypy")
    run(session, "pyright")
    run(session, "pyright", "--verifytypes=semibot", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, run its examples, and read the news fragments."""
    for builder in ("html", "doctest"):
        where = ("-d", "docs/_build/doctrees", "docs", f"docs/_build/{builder}")
        run(session, "sphinx-build", "-q", "-W", "-n", "-b", builder, *where)
    run(session, "towncrier", "build", "--draft", "--version=next")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, the examples among them, and measure what they reach."""
    run(session, "coverage", "erase")
    run_tests(session)
    run(session, "coverage", "combine", "--quiet")
    run(session, "coverage", "report")
    for room in COVERED:
        run(session, "coverage", "report", f"--include=semibot/{room}/*", "--fail-under=95")


# Parts run side by side, the longest first. Programs, sockets and browsers mostly wait for each
# other; the rest is on a mock clock and keeps a processor busy. What runs the product in
# processes of its own, or thousands of times, is not measured: it would take half as long again.
PROGRAMS: Final = ("adapters", "bench", "browser", "cli", "outcomes", "tools", "vm")
PLANES: Final = ("planes",)
SEEDS: Final = ("mutants", "simulation")
PROOFS: Final = ("cancelled", "fairness", "hostile", "storm")
APART: Final = (*PROGRAMS, *PLANES, *SEEDS, *PROOFS)
MEASURED: Final = ("coverage", "run", "--parallel-mode", "-m", "pytest")
PARTS: Final = (
    ("pytest", *(f"tests/{room}" for room in PLANES)),
    (*MEASURED, *(f"tests/{room}" for room in PROGRAMS)),
    (*MEASURED, "tests", *(f"--ignore=tests/{room}" for room in APART)),
    ("pytest", *(f"tests/{room}" for room in SEEDS)),
    ("pytest", *(f"tests/{room}" for room in PROOFS)),
)


def run_tests(session: nox.Session) -> None:
    """Run all parts of the tests, or what the user names."""
    parts = [(*MEASURED, *session.posargs)] if session.posargs else PARTS
    with ThreadPoolExecutor(PROCESSORS + 1) as pool:  # some mostly wait
        list(pool.map(lambda part: run(session, *part), parts))


@nox.session(default=False)
def endurance(session: nox.Session) -> None:
    """Prove the promises at full size, which takes hours; CONTRIBUTING.md says what each shows."""
    for arguments in ENDURANCE:
        session.run(str(PYTHON), *arguments)


ENDURANCE: Final = (
    ("-m", "semibot.testing", "simulate", "--seeds", "500", "--jobs", str(PROCESSORS)),
    ("tests/mutants/run.py", "--ablation", "--seeds", "100"),
    ("tests/cancelled/run.py", "--seeds", "3", "--errors"),
    ("tests/planes/endurance.py", "--kills", "200"),
    ("tests/planes/liveness.py",),
    ("tests/fairness/run.py", "--megabytes", "50"),
    ("tests/fairness/readers.py", "--megabytes", "1000", "--rate", "2"),
    ("tests/storm/run.py", "--vms", "1000"),
    ("tests/storm/run.py", "--vms", "1000", "--how", "unanswered"),
    ("tests/storm/run.py", "--real", "200"),
    ("tests/hostile/run.py", "--examples", "20000"),
)


@nox.session(default=False, venv_backend="venv")
def bench(session: nox.Session) -> None:
    """Compare semibot's host with plain relays; ``-- --quick`` takes a minute, not ten."""
    project = nox.project.load_toml("pyproject.toml")
    session.install("--editable", ".", *nox.project.dependency_groups(project, "bench"))
    session.run("python", "tests/bench/bench.py", *session.posargs)
