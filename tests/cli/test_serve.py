"""``semibot serve`` as a process: what it says, how it stops, and when it does not start."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import trio
from cli_programs import RunHere, open_program, read_rest, read_until, run_program

from semibot.cli.serving import allow_many_connections
from semibot.testing import model_answers as answers
from semibot.testing.model_server import open_model_server

NO_VM = {"VM_BOOTSTRAP_CMD": "no-such-program"}
GOOD = "f1c9b2e07d5a4683a0be17c26d9453ef"


def serve(cwd: Path, *arguments: str, **variables: str):
    return open_program(
        "serve", "--port", "0", "--data-dir", "data", "--workspace", ".", *arguments,
        cwd=cwd, **variables,
    )  # fmt: skip


async def listening(program: trio.Process) -> str:
    assert program.stdout is not None
    line = await read_until(program.stdout, "\n")
    assert line.startswith("semibot listening on http://127.0.0.1:")
    assert line.count("\n") == 1
    return line.split()[-1]


def client(url: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, timeout=10, trust_env=False)


async def test_it_listens_with_the_vm_up_and_stops_in_order(tmp_path: Path) -> None:
    async with serve(tmp_path, "--verbose") as program:
        async with client(await listening(program)) as http:
            assert (await http.get("/readyz")).status_code == 200
            status = (await http.get("/api/v1/vm/status")).json()["data"]
        assert (status["status"], status["mode"], status["lastError"]) == ("ready", "local", None)
        program.terminate()
        assert program.stdout is not None
        assert program.stderr is not None
        assert await read_rest(program.stdout) == ""
        errors = await read_rest(program.stderr)
        assert await program.wait() == 0
    assert "semibot is stopping; once more to stop at once\n" in errors
    assert "warning" not in errors
    pid = int(errors.split("pid=")[1].split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    key = tmp_path / "data" / "host.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "host.key", "lock", "semibot.db", "vms",
    ]  # fmt: skip


async def test_an_answer_that_streams_may_end_before_the_host_does(tmp_path: Path) -> None:
    gate = trio.Event()
    story = answers.Answer(
        steps=(
            answers.Text("Once upon "),
            answers.Gate(gate),
            answers.Text("the end."),
            answers.Finish("stop"),
            answers.Done(),
        )
    )
    async with (
        open_model_server(story) as server,
        serve(tmp_path, OPENAI_BASE_URL=server.base_url, SEMIBOT_MODEL="fake") as program,
    ):
        async with (
            client(await listening(program)) as http,
            http.stream("POST", "/api/v1/chat/start", json={"message": "tell"}) as response,
        ):
            seen = ""
            async for text in response.aiter_text():
                seen += text
                if "Once upon " in seen and not gate.is_set():
                    program.terminate()
                    assert program.stderr is not None
                    await read_until(program.stderr, "semibot is stopping")
                    while (ready := await http.get("/readyz")).status_code == 200:
                        await trio.lowlevel.checkpoint()
                    assert ready.status_code == 503
                    assert "draining" in ready.text
                    again = await http.post("/api/v1/chat/start", json={"message": "more"})
                    assert again.status_code == 503
                    gate.set()
        assert await program.wait() == 0
    assert "event: execution_complete" in seen
    assert "the end." in seen


async def test_a_second_signal_ends_it_within_two_seconds(tmp_path: Path) -> None:
    unending = answers.Answer(steps=(answers.Text("Once upon "), answers.Hang()))
    async with (
        open_model_server(unending) as server,
        serve(tmp_path, OPENAI_BASE_URL=server.base_url, SEMIBOT_MODEL="fake") as program,
    ):
        assert program.stderr is not None
        async with (
            client(await listening(program)) as http,
            http.stream("POST", "/api/v1/chat/start", json={"message": "tell"}) as response,
            trio.open_nursery() as nursery,
        ):
            reading = trio.Event()

            async def read() -> None:
                seen = ""
                with suppress(httpx2.HTTPError):
                    async for text in response.aiter_text():
                        seen += text
                        if "Once upon " in seen:
                            reading.set()

            nursery.start_soon(read)
            await reading.wait()
            program.terminate()
            await read_until(program.stderr, "semibot is stopping")
            began = trio.current_time()
            program.send_signal(signal.SIGINT)
            assert await program.wait() == 130
            assert trio.current_time() - began < 2.5


async def test_a_signal_while_the_vm_is_starting_does_not_wait_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "up")
    up = os.open(tmp_path / "up", os.O_RDWR | os.O_NONBLOCK)
    async with serve(tmp_path, VM_BOOTSTRAP_CMD="sh -c 'echo > up; sleep 60'") as program:
        await trio.lowlevel.wait_readable(up)
        os.close(up)
        began = trio.current_time()
        program.terminate()
        assert await program.wait() == 0
        assert trio.current_time() - began < 5


async def test_a_vm_that_cannot_be_started_keeps_nobody_from_listening(tmp_path: Path) -> None:
    async with serve(tmp_path, **NO_VM) as program:
        async with client(await listening(program)) as http:
            refusal = await http.post("/api/v1/chat/start", json={"message": "hello"})
        assert refusal.status_code == 503
        error = refusal.json()["error"]
        assert error["code"] == "EXECUTION_PLANE_NOT_READY"
        assert "no-such-program" in error["message"]
        assert error["details"]["retryAfterMs"] > 20_000
        program.terminate()
        assert await program.wait() == 0
        assert program.stderr is not None
        errors = await read_rest(program.stderr)
    assert "warning: the VM of the local user is not up yet" in errors


async def test_a_vm_of_the_users_own_takes_over_while_the_host_runs(tmp_path: Path) -> None:
    async with serve(tmp_path, "--verbose") as host:
        assert host.stderr is not None
        url = await listening(host)
        await read_until(host.stderr, "VM connected")
        made = await run_program("admin", "vm-token", "--data-dir", "data", cwd=tmp_path)
        assert (made.code, made.out.count("\n")) == (0, 1)
        (tmp_path / "mine").mkdir()
        for _ in range(2):  # also when it is started again
            async with open_program(
                "vm",
                "--url",
                url,
                "--state-dir",
                "../state",
                cwd=tmp_path / "mine",
                VM_TOKEN=made.out.strip(),
            ) as own:
                await read_until(host.stderr, "VM connected")
                async with client(url) as http:
                    status = (await http.get("/api/v1/vm/status")).json()["data"]
                    assert (status["mode"], status["status"]) == ("external", "ready")
                own.terminate()
                assert await own.wait() == 0
        host.terminate()
        errors = await read_rest(host.stderr)
        assert await host.wait() == 0
    assert "Traceback" not in errors


# --- what has to be set up first ------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--host", "0.0.0.0"], {}, "a host on 0.0.0.0 needs JWT_SECRET"),
        (["--host", "::"], {}, "needs JWT_SECRET"),
        ([], {"SEMIBOT_ENV": "production"}, "in production needs JWT_SECRET"),
        (["--host", "0.0.0.0"], {"JWT_SECRET": "short"}, "too short"),
        ([], {"JWT_SECRET": "short"}, "too short"),
        ([], {"SEMIBOT_ENV": "production", "JWT_SECRET": "change-me" * 5}, "everybody knows"),
        ([], {"SEMIBOT_PORT": "http"}, "SEMIBOT_PORT: expected a whole number"),
        ([], {"SEMIBOT_ENV": "prod"}, "SEMIBOT_ENV: expected production"),
        (["--host", "203.0.113.7"], {"JWT_SECRET": GOOD}, "cannot listen on 203.0.113.7:"),
    ],
)
def test_a_host_that_is_not_safe_or_makes_no_sense_does_not_start(
    run_here: RunHere,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    variables: dict[str, str],
    words: str,
) -> None:
    assert run_here("serve", "--data-dir", "data", *arguments, **variables, **NO_VM) == 78
    captured = capfd.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_port_that_is_taken_is_named(
    run_here: RunHere, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_here("serve", "--data-dir", "data", "--port", str(port), **NO_VM) == 78
    assert f"cannot listen on 127.0.0.1:{port}: " in capfd.readouterr().err


async def test_a_data_directory_of_another_host_is_refused(tmp_path: Path) -> None:
    async with serve(tmp_path, **NO_VM) as first:
        await listening(first)
        second = await run_program(
            "serve", "--port", "0", "--data-dir", "data", cwd=tmp_path, **NO_VM
        )
        assert second.code == 78
        assert f"is in use by process {first.pid}" in second.err
        assert second.out == ""


def test_a_data_directory_that_cannot_be_made_is_named(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("in the way", encoding="utf-8")
    assert run_here("serve", "--data-dir", "data/deep", **NO_VM) == 78
    assert "cannot keep data in " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (GOOD * 2, 0o644, "host.key may be read by others"),
        ("", 0o600, "host.key is not set"),
        ("x" * 64, 0o600, "host.key is a text that everybody knows"),
    ],
)
def test_a_key_file_that_is_no_good_is_refused(
    run_here: RunHere,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: str,
    mode: int,
    words: str,
) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    key = tmp_path / "data" / "host.key"
    key.write_text(content, encoding="ascii")
    key.chmod(mode)
    assert run_here("serve", "--data-dir", "data", **NO_VM) == 78
    errors = capfd.readouterr().err
    assert words in errors
    assert GOOD not in errors


def test_a_key_file_that_is_no_file_is_refused(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "host.key").symlink_to("elsewhere")
    assert run_here("serve", "--data-dir", "data", **NO_VM) == 78
    assert "cannot read or make " in capfd.readouterr().err


# --- tokens ---------------------------------------------------------------------------


def test_a_token_is_made_also_before_the_first_host(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_here("admin", "vm-token", "--data-dir", "data") == 0
    first = capfd.readouterr()
    assert len(first.out.split(".")) == 3
    assert first.err == ""
    assert run_here("admin", "vm-token", SEMIBOT_DATA_DIR="data") == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "host.key", "lock", "semibot.db",
    ]  # fmt: skip


def test_a_token_for_nobody_is_a_mistake(
    run_here: RunHere, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_here("admin", "vm-token", "--user", "eve", "--data-dir", "data") == 2
    assert "knows no user 'eve'" in capfd.readouterr().err


async def test_a_user_who_starts_the_vm_is_not_waited_for(tmp_path: Path) -> None:
    made = await run_program("admin", "vm-token", "--data-dir", "data", cwd=tmp_path)
    assert made.code == 0
    async with serve(tmp_path) as host:
        began = trio.current_time()
        async with client(await listening(host)) as http:
            assert trio.current_time() - began < 4.5
            status = (await http.get("/api/v1/vm/status")).json()["data"]
        assert (status["mode"], status["bootstrapAttempts"]) == ("external", 0)
        host.terminate()
        assert await host.wait() == 0


def test_a_host_may_have_as_many_connections_as_the_system_allows():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        allow_many_connections()
        now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert now == (hard if hard != resource.RLIM_INFINITY and hard < 16384 else 16384)
        allow_many_connections()  # a limit that is high enough stays
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == now
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
