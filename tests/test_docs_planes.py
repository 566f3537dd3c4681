"""The documentation of host and planes says what the code does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import attrs
import pytest
from documentation import ROOT, read, rows, section, words

from semibot.config.loader import HostFlags, load_host_settings
from semibot.config.settings import HostSettings
from semibot.errors import ConfigError
from semibot.host import bootstrap
from semibot.host.bodies import CancelRun, ContinueChat, StartChat
from semibot.host.metrics import Metrics
from semibot.host.requests import METHODS
from semibot.host.routes import ROUTES
from semibot.security.envelope import open_keys
from semibot.store.base import VmMode, VmStatus
from semibot.wire import frames
from semibot.wire.link import CLOSE_CODES

SOURCE: Final = ROOT / "semibot"
PROTOCOL: Final = "reference/protocol.rst"
HTTP: Final = "reference/http.rst"
RUN_A_HOST: Final = "howto/run-a-host.rst"
START_VMS: Final = "howto/start-vms.rst"

_VARIABLE: Final = re.compile(r"[A-Z]+(_[A-Z]+)+")


def named_in(text: str) -> set[str]:
    """Return every word that stands in code, also as a part of something longer."""
    return {name for code in words(text) for name in re.findall(r"\w+", code)}


def constants_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


# --- the protocol ---------------------------------------------------------------------


def field_names(kind: type) -> Iterator[str]:
    """Return the names of a frame's fields, and of those of what they hold."""
    for field in attrs.fields(attrs.resolve_types(kind)):
        yield field.name
        for inner in (field.type, *get_args(field.type)):
            if isinstance(inner, type) and attrs.has(inner):
                yield from field_names(inner)


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [
        ("3. Frames from a VM", get_args(frames.FromVm)),
        ("4. Frames from a host", get_args(frames.FromHost)),
    ],
    ids=["from a VM", "from a host"],
)
def test_the_protocol_page_has_every_frame_with_its_fields(
    heading: str, kinds: tuple[type[frames.PlaneFrame], ...]
) -> None:
    text = section(PROTOCOL, heading)
    told = {row[0].strip("`"): named_in(" ".join(row[1:])) for row in rows(text)}
    flat = [inner for kind in kinds for inner in get_args(kind) or (kind,)]
    assert {kind.type for kind in flat} | {"batch"} <= set(told)
    for kind in flat:
        assert set(field_names(kind)) <= told[kind.type], kind


def test_the_protocol_page_has_every_close_code_with_what_a_vm_does() -> None:
    told = {
        int(row[0].strip("`")): row[2]
        for row in rows(section(PROTOCOL, "Close codes"))
        if row[0].strip("`").isdigit()
    }
    assert set(told) == {int(code) for code in CLOSE_CODES}
    for code, reaction in CLOSE_CODES.items():
        says_final = told[code].startswith("ends, with an error")
        assert says_final == (reaction.reaction == "final"), code
        if reaction.only_because is not None:
            assert reaction.only_because in told[code]


def test_the_close_codes_that_the_source_uses_are_on_the_page() -> None:
    told = {row[0].strip("`") for row in rows(section(PROTOCOL, "Close codes"))}
    used = {
        str(node.value)
        for path in (SOURCE / "host").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and type(node.value) is int
        and (4000 <= node.value < 4600 or 1000 < node.value < 1014)
    }
    assert used - told <= {"1008"}, "1008 refuses a handshake, and is never seen as a code"


def test_reconnecting_is_one_list_of_eleven_steps() -> None:
    text = section(PROTOCOL, "Reconnecting")
    assert len(re.findall(r"^#\. ", text, re.MULTILINE)) == 11
    order = ("Send ``auth``", "Get ``init``", "Send ``resume``", "Settle requests", "Say again")
    places = [text.index(step) for step in order]
    assert places == sorted(places)


def test_the_test_vector_of_provider_keys_opens() -> None:
    told = {
        row[0].strip("`"): row[1].strip("`") for row in rows(section(PROTOCOL, "Provider keys"))
    }
    sealed = {"alg": "aes-256-gcm", **{name: told[name] for name in ("iv", "tag", "ciphertext")}}
    opened = open_keys({"openai": sealed}, told["token"])
    assert opened["openai"].reveal() == told["plaintext"]


def test_the_protocol_page_has_every_request_and_report() -> None:
    assert words(section(PROTOCOL, "Requests")) >= METHODS
    source = (SOURCE / "store" / "_reports.py").read_text("utf-8")
    reports = set(re.findall(r'case "([a-z_]+)":', source))
    assert len(reports) > 3
    assert reports | {"snapshot_sync"} <= words(section(PROTOCOL, "Reports"))


def test_the_errors_page_has_every_code_that_is_said_on_a_link() -> None:
    said = set()
    for path in (SOURCE / "host").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        said |= set(re.findall(r'^SESSION_LOST: Final = "([A-Z_]+)"$', text, re.MULTILINE))
        said |= set(re.findall(r'(?:_error|_give_up)\(\s*\w+,\s*"([A-Z_]+)"', text))
        said |= set(re.findall(r'ErrorFrame\(\s*code="([A-Z_]+)"', text))
    assert {"SEQ_GAP", "SEQ_CONFLICT", "BAD_FRAME"} <= said
    assert said <= words(section("reference/errors.rst", "Codes on a link"))


# --- HTTP -----------------------------------------------------------------------------


def test_the_http_page_has_every_route() -> None:
    told = [row[0].strip("`") for row in rows(section(HTTP, "Routes"))]
    assert sorted(told[1:]) == sorted(f"{route.method} {route.path}" for route in ROUTES)


def test_the_http_page_has_every_parameter_and_header_of_a_route() -> None:
    named = named_in(read(HTTP))
    for route in ROUTES:
        assert set(route.query) <= named, route.name
        assert set(route.headers) <= words(read(HTTP)), route.name


def test_the_http_page_has_every_field_of_a_body() -> None:
    told = {row[0].strip("`") for row in rows(section(HTTP, "Requests"))}
    for kind in (StartChat, ContinueChat, CancelRun):
        assert {field.name for field in attrs.fields(kind)} <= told


def test_the_http_page_has_every_error_with_its_status() -> None:
    told = {
        (row[0], code)
        for row in rows(section(HTTP, "Errors"))
        for code in re.findall(r"``([A-Z_]+)``", row[1])
    }
    given = set()
    for path in (SOURCE / "host").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name(id="HttpError"),
                    args=[ast.Constant(value=int(status)), ast.Constant(value=str(code)), *_],
                ):
                    given.add((str(status), code))
    assert len(given) > 10
    assert given <= told


def test_the_http_page_has_every_metric() -> None:
    told = {row[0].strip("`"): row[1] for row in rows(section(HTTP, "Metrics"))}
    metrics = Metrics().all
    assert {name.partition("{")[0]: kind for name, kind in told.items() if name != "name"} == {
        name: metric.kind for name, metric in metrics.items()
    }
    exposed = Metrics()
    exposed.http_requests_total.inc(method="GET", status="200")
    assert 'http_requests_total{method="GET",status="200"} 1' in exposed.exposition()
    assert "http_requests_total{method,status}" in told


# --- settings -------------------------------------------------------------------------


def test_the_page_about_hosts_has_every_setting_with_its_variable(tmp_path: Path) -> None:
    told = {
        row[0].strip("`"): row[1].strip("`")
        for row in rows(section(RUN_A_HOST, "Settings"))
        if row[0].startswith("``") and row[1].startswith("``")
    }
    # What a file may say is in the message that refuses anything else.
    (tmp_path / "semibot.toml").write_text("nonsense = 1")
    with pytest.raises(ConfigError, match="no setting") as caught:
        load_host_settings({}, HostFlags(), default_data_dir=tmp_path)
    _, _, known = str(caught.value).rpartition("those are ")
    assert sorted(told) == sorted(known.split(", "))
    assert set(told) <= {field.name for field in attrs.fields(HostSettings)}
    loader = set(constants_of(SOURCE / "config" / "loader.py"))
    assert set(told.values()) <= loader


def test_every_variable_that_a_host_or_vm_reads_or_gets_is_on_a_page() -> None:
    told = words(read(RUN_A_HOST)) | words(read(START_VMS)) | words(read("reference/cli.rst"))
    files = ("config/loader.py", "host/bootstrap.py", "vm/settings.py")
    read_or_set = {
        name for each in files for name in constants_of(SOURCE / each) if _VARIABLE.fullmatch(name)
    }
    assert {"JWT_SECRET", "VM_TICKET", "CONTROL_PLANE_WS"} <= read_or_set
    inherited = {name.upper() for name in bootstrap.INHERITED}
    inherited |= {f"{prefix}*" for prefix in bootstrap.INHERITED_PREFIXES}
    assert (read_or_set | inherited) - {"LC_", "OPENCLAW_"} <= told


def test_every_variable_of_the_command_line_is_on_its_page() -> None:
    found = set()
    for path in (SOURCE / "cli").glob("*.py"):
        found |= set(
            re.findall(r'environment(?:\.get\(|\[)"([A-Z_]+)"', path.read_text(encoding="utf-8"))
        )
    assert {"SEMIBOT_URL", "SEMIBOT_TOKEN"} <= found
    assert found <= words(read("reference/cli.rst"))


def test_the_page_about_vms_has_every_mode_and_status() -> None:
    told = {row[0].strip("`") for row in rows(read(START_VMS))}
    assert {*get_args(VmMode), *get_args(VmStatus), "missing"} <= told


def test_the_page_about_vms_has_every_variable_that_they_get() -> None:
    told = words(section(START_VMS, "Variables of a VM"))
    given = {
        name
        for name in constants_of(SOURCE / "host" / "bootstrap.py")
        if name.startswith(("VM_", "SEMIBOT_", "CONTROL_", "FORCE_"))
    }
    assert len(given) > 10
    assert given <= told


# --- examples -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ("host_in_your_service.py", "completed"),
        ("plane_in_your_service.py", '"content":"hello! "'),
    ],
)
def test_an_example_with_a_host_runs_and_ends(example: str, says: str, tmp_path: Path) -> None:
    done = run_example(example, tmp_path)
    assert says in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


def test_the_example_on_asyncio_talks_to_a_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semibot", "serve", "--port", "0", "--data-dir"]
    host = subprocess.Popen(
        [*command, str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    with host:
        try:
            assert host.stdout is not None
            url = host.stdout.readline().split()[-1]
            done = run_example("call_a_host_from_asyncio.py", tmp_path, url)
        finally:
            host.terminate()
    assert "This is a demonstration" in done.stdout
    assert "[completed; session " in done.stdout
    assert (done.returncode, done.stderr, host.returncode) == (0, "", 0)


def environment(home: Path) -> dict[str, str]:
    return {"PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin", "HOME": str(home)}


def run_example(name: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=directory,
        env=environment(directory),
    )
