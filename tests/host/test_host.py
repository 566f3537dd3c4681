"""A whole host in this process, with real VMs where that is the point."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import httpx2
import pytest
import trio

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.errors import ConfigError, DataDirectoryInUse, StoreError
from semibot.host.host import open_host
from semibot.host.safety import has_local_user, is_loopback
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.secret import Secret
from semibot.testing import capture_logs

GOOD = Secret("f1c9b2e07d5a4683a0be17c26d9453ef")


def settings(path: Path, **changes: Any) -> HostSettings:
    return HostSettings(
        data_dir=path / "data", environment=dict(os.environ), workspace=path, **changes
    )


async def test_a_host_that_is_only_opened_leaves_nothing_but_its_data(tmp_path: Path) -> None:
    ports = live_ports()
    async with open_host(settings(tmp_path), ports=ports) as host:
        assert (host.status.is_ready, host.status.is_draining) == (False, False)
        with pytest.raises(DataDirectoryInUse):
            async with open_host(settings(tmp_path)):
                raise AssertionError
    assert host.status.is_draining
    with trio.fail_after(1):  # a read that was given up has ended; its thread is handed back
        while any(ports.threads.in_use().values()):  # noqa: ASYNC110 - a thread tells nobody
            await trio.sleep(0.001)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "host.key", "lock", "semibot.db",
    ]  # fmt: skip
    key = (tmp_path / "data" / "host.key").read_text()
    async with open_host(settings(tmp_path)):
        pass
    assert (tmp_path / "data" / "host.key").read_text() == key


async def test_a_host_with_users_makes_no_key_and_starts_no_vm(tmp_path: Path) -> None:
    async with open_host(settings(tmp_path, host="0.0.0.0", jwt_secret=GOOD)) as host:
        await host.announce("http://127.0.0.1:1")
        assert host.status.is_ready
        await host.drain()
    assert not (tmp_path / "data" / "host.key").exists()


async def test_a_vm_runs_from_announce_to_drain(tmp_path: Path) -> None:
    ports = live_ports()
    with capture_logs() as logs, trio.fail_after(30):
        async with (
            open_host(settings(tmp_path), ports=ports) as host,
            open_server(host.asgi, "127.0.0.1", 0, deadlines=Deadlines(), ports=ports) as server,
        ):
            url = f"http://127.0.0.1:{server.port}"
            await host.announce(url)
            async with httpx2.AsyncClient(base_url=url, trust_env=False) as http:
                answer = await http.post("/api/v1/chat/start", json={"message": "hello"})
                assert "execution_complete" in answer.text
                await host.drain()
                status = (await http.get("/api/v1/vm/status")).json()["data"]
        assert (status["status"], status["lastError"]) == ("disconnected", None)
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == []


async def test_leaving_without_a_drain_stops_the_vm_too(tmp_path: Path) -> None:
    ports = live_ports()
    with capture_logs() as logs, trio.fail_after(30):
        async with (
            open_host(settings(tmp_path), ports=ports) as host,
            open_server(host.asgi, "127.0.0.1", 0, deadlines=Deadlines(), ports=ports) as server,
        ):
            await host.announce(f"http://127.0.0.1:{server.port}")
    (started,) = (entry for entry in logs if entry["event"] == "child started")
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(started["pid"])), 0)
    # Its row was ready until then; the next host does not wait for that process.
    async with open_host(settings(tmp_path)) as host:
        assert (await host._core.scheduler.status("local"))["status"] == "disconnected"


async def test_a_store_that_fails_does_not_keep_a_host_from_draining(tmp_path: Path) -> None:
    class Failing:
        """A part of the host whose store has failed."""

        def __init__(self, inner: Any, **failing: Any) -> None:
            self.inner, self.failing = inner, failing

        def __getattr__(self, name: str) -> Any:
            return self.failing.get(name) or getattr(self.inner, name)

    async def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    with capture_logs() as logs:
        async with open_host(settings(tmp_path)) as host:
            core = host._core
            host._core = attrs.evolve(  # type: ignore[misc]
                core,
                dispatcher=Failing(core.dispatcher, wait_idle=fail),
                scheduler=Failing(
                    core.scheduler, own_users=lambda: ("local",), is_started_here=fail
                ),
            )
            await host.announce("http://127.0.0.1:1")
            await host.drain()
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "the VM of the local user is not up yet",
        "cannot tell what is under way",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "192.0.2.1"},
        {"host": "host.example"},
        {"run_mode": "production"},
        {"jwt_secret": Secret("short")},
    ],
)
async def test_a_host_that_strangers_could_use_is_not_opened(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="JWT_SECRET"):
        async with open_host(settings(tmp_path, **changes)):
            raise AssertionError
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
    ],
)
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_who_sets_a_key_has_users_and_no_local_one(tmp_path: Path) -> None:
    # A proxy on the same machine brings everybody to a loopback address.
    assert has_local_user(settings(tmp_path))
    assert not has_local_user(settings(tmp_path, jwt_secret=GOOD))
