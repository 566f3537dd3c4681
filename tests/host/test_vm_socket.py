"""One socket: who is let in, what ends it and with which code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from host_kit import KEY
from link_kit import DEADLINES, Plane, Vm, open_plane, pass_time
from trio.testing import MockClock

from semibot.errors import LinkFenced, StoreError
from semibot.host.vm_socket import MAX_UNAUTHENTICATED
from semibot.security.envelope import open_keys
from semibot.security.tokens import Tokens


async def refused(plane: Plane, query: str = "user_id=ann", **auth: Any) -> tuple[int, str] | None:
    vm = plane.connect(query)
    vm.say(**{"type": "auth", "token": plane.token(), **auth})
    return await vm.wait_closed()


# --- letting in -----------------------------------------------------------------------


async def test_init_says_what_a_level_2_vm_needs(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = plane.connect()
        token = plane.token()
        vm.say(type="auth", token=token, protocol={"min": 1, "max": 2}, boot_id="b", dial=1)
        data = (await vm.hear("init"))["data"]
        assert data["user_id"] == "ann"
        assert data["org_id"] == "org"
        assert data["protocol"] == 2
        assert data["epoch"] == 1
        assert data["heartbeat_interval_s"] == 10.0
        assert data["dead_after_s"] == 30.0
        assert data["limits"]["max_frame_bytes"] == 10 * 1024 * 1024
        assert data["providers"] == {
            "openai": {"base_url": "http://models", "default_model": "gpt-5"}
        }
        assert open_keys(data["api_keys"], token)["openai"].reveal() == "sk-1"
        assert plane.links.of_user("ann") is None  # before resume_response
        vm.say(type="resume", pending_ids=[], sessions={})
        assert await vm.hear("resume_response") == {
            "type": "resume_response",
            "results": {},
            "sessions": {},
        }
        assert plane.links.of_user("ann") is not None
        assert (await plane.store.newest_vm("ann")).status == "ready"


@pytest.mark.parametrize(
    ("query", "auth", "code"),
    [
        ("user_id=bob", {}, 4001),
        ("", {}, 4001),
        ("user_id=ann", {"token": "no.jwt.atall"}, 4001),
        ("user_id=ann", {"type": "heartbeat", "active_sessions": []}, 4001),
        ("user_id=ann", {"token": 5}, 4001),
        ("user_id=ann&ticket=never-issued", {}, 4001),
        ("user_id=ann", {"protocol": {"min": 3, "max": 4}}, 4400),
        ("user_id=ann", {"protocol": {"min": 2, "max": 2}}, 4400),
    ],
)
async def test_who_is_not_let_in_is_told_nothing_but_the_code(
    tmp_path: Path, query: str, auth: dict[str, Any], code: int, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        closed = await refused(plane, query, **auth)
        assert closed is not None
        assert closed[0] == code
        assert closed[1] in {"refused", "protocol"}


async def test_an_expired_token_and_a_user_token_are_refused(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        short = Tokens(KEY, plane.ports.wall_clock, 5.0).make_vm_token("ann", "org")
        assert await refused(plane, token=plane.tokens.make_user_token("ann", "org")) == (
            4001,
            "refused",
        )
        mock_clock.jump(6)
        assert await refused(plane, token=short) == (4001, "refused")


async def test_an_unknown_user_and_one_without_a_vm_have_codes_of_their_own(
    tmp_path: Path,
    mock_clock: MockClock,
) -> None:
    async with open_plane(tmp_path, is_external=False) as plane:
        assert await refused(plane) == (4004, "unknown_user")
        await plane.store.ensure_user("ann", "org", vm_mode=None)
        assert await refused(plane) == (4003, "no_vm")


async def test_a_binary_first_frame_and_a_big_one_are_refused(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = plane.connect()
        vm.to_host.send_nowait({"type": "websocket.receive", "bytes": b"x", "text": None})
        assert await vm.wait_closed() == (1003, "text frames only")
        vm = plane.connect()
        vm.say(type="auth", token="é" * 9000)
        assert await vm.wait_closed() == (1009, "frame too big")


async def test_silence_before_auth_and_before_resume_is_bounded(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        silent = plane.connect()
        half = plane.connect()
        half.say(
            type="auth",
            token=plane.token(),
            protocol={"min": 1, "max": 2},
            boot_id="b",
            dial=1,
        )
        await half.hear("init")
        await plane.quiet()
        await pass_time(mock_clock, 9)
        half.say(type="heartbeat", active_sessions=[])
        await plane.quiet()
        assert silent.closed is None
        mock_clock.jump(1.1)
        assert await silent.wait_closed() == (4008, "no auth in time")
        assert await half.wait_closed() == (4008, "silence")


async def test_strangers_that_say_nothing_keep_no_vm_out(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        strangers = [plane.connect() for _ in range(MAX_UNAUTHENTICATED)]
        await plane.quiet()
        newer = [plane.connect() for _ in range(3)]
        await plane.quiet()
        told = [vm for vm in strangers if vm.has_ended.is_set()]
        assert [vm.closed for vm in told] == [(1013, "too many connections")] * 3
        assert len(plane.links.strangers) == MAX_UNAUTHENTICATED
        mock_clock.jump(DEADLINES.link_auth + 0.1)
        for vm in [*newer, *(vm for vm in strangers if vm not in told)]:
            assert await vm.wait_closed() == (4008, "no auth in time")
        assert plane.links.strangers == {}


async def test_a_client_that_leaves_during_the_handshake_is_no_error(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = Vm()
        vm.hang_up()
        await plane.links.serve_socket({"query_string": b""}, vm.receive, vm.send)
        vm = plane.connect()
        vm.hang_up()
        assert await vm.wait_closed() is None
        assert plane.links.strangers == {}
        vm = plane.connect()
        vm.accepts = False
        assert await vm.wait_closed() is None


async def test_a_store_that_fails_refuses_nobody_for_good(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        plane.store.error = StoreError("full")
        plane.store.failing = {"accept_link"}
        assert await refused(plane) == (4500, "store failed")
        plane.store.error = RuntimeError("a bug")
        assert await refused(plane) == (1011, "internal")
        plane.store.failing = set()
        await plane.up()


# --- frames ---------------------------------------------------------------------------


async def test_malformed_frames_are_answered_and_five_end_the_link(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        vm.say_text("{bad")
        assert (await vm.hear("error"))["code"] == "BAD_FRAME"
        vm.say(type="request", id="q", session_id="__memory__", method="nope", params={})
        assert (await vm.hear("response"))["error"]["code"] == "UNSUPPORTED_METHOD"
        vm.say(type="start_session", data={})
        vm.say(type="auth", token="again")
        vm.say(type="resume", pending_ids=[], sessions={})
        vm.say(type="sse_event", session_id="s1", data="{}")
        assert await vm.wait_closed() == (4400, "malformed frames")
        assert vm.kinds().count("error") == 3  # after the first; the fifth is answered too late


async def test_malformed_frames_are_forgiven_after_a_minute(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        for _ in range(6):
            vm.say_text("[]")
            await vm.hear("error")
            mock_clock.jump(20)
            await plane.quiet()
        assert vm.closed is None


async def test_a_level_2_vm_says_nothing_of_sessions_before_resume(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = plane.connect()
        vm.say(type="auth", token=plane.token(), protocol={"min": 1, "max": 2}, boot_id="b", dial=1)
        await vm.hear("init")
        vm.event("s1", 1, 1, "r1")
        assert (await vm.hear("error"))["session_id"] == "s1"
        vm.say(type="heartbeat", active_sessions=[], sent_at=4.5)
        assert (await vm.hear("heartbeat"))["echo"] == 4.5


async def test_frames_that_are_too_big_or_binary_end_the_link(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        vm.say_text('"' + "x" * (10 * 1024 * 1024) + '"')
        assert await vm.wait_closed() == (1009, "frame too big")
        vm = await plane.up(dial=2)
        vm.to_host.send_nowait({"type": "websocket.receive", "bytes": b"\0"})
        assert await vm.wait_closed() == (1003, "text frames only")


async def test_a_batch_is_dispatched_in_order_and_counted(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        vm.say(
            type="batch",
            frames=[
                {"type": "heartbeat", "active_sessions": [], "sent_at": 1.0},
                {"type": "heartbeat", "active_sessions": [], "sent_at": 2.0},
            ],
        )
        assert (await vm.hear("heartbeat"))["echo"] == 1.0
        assert (await vm.hear("heartbeat"))["echo"] == 2.0
        received = plane.metrics.ws_messages_received_total
        assert received.value(type="heartbeat") == 2
        assert plane.metrics.ws_messages_sent_total.value(type="heartbeat") == 2


async def test_what_waits_to_be_sent_goes_out_as_one_batch(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        link = plane.links.of_user("ann")
        assert link is not None
        before = len(vm.messages)
        for number in range(600):
            link.outgoing.put(json.dumps({"type": "token", "token": str(number)}))
        link.outgoing.put(json.dumps({"type": "token", "token": "x" * 70_000}))
        link.outgoing.put(json.dumps({"type": "token", "token": "last"}))
        await plane.quiet()
        sizes = [len(json.loads(text).get("frames", [1])) for text in vm.messages[before:]]
        assert sizes == [512, 88, 1, 1]
        assert vm.heard[-1]["token"] == "last"


async def test_heartbeats_keep_a_link_and_silence_ends_it(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        for _ in range(5):
            await plane.quiet()
            mock_clock.jump(20)
            vm.say(
                type="heartbeat", active_sessions=[], blocked={"seconds": 1.5, "where": "tools.py"}
            )
            await vm.hear("heartbeat")
        row = await plane.store.newest_vm("ann")
        assert row.last_heartbeat_at is not None
        await pass_time(mock_clock, 30.1)
        assert await vm.wait_closed() == (4008, "silence")
        assert (await plane.store.newest_vm("ann")).status == "disconnected"
        assert plane.metrics.ws_connections_active.value() == 0


async def test_silence_does_not_count_while_the_host_does_not_read(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        link = plane.links.of_user("ann")
        assert link is not None
        link.hold_reading()
        vm.say(type="heartbeat", active_sessions=[], sent_at=1.0)
        await plane.quiet()
        mock_clock.jump(100)
        await plane.quiet()
        assert vm.closed is None
        link.release_reading()
        await vm.hear("heartbeat")


async def test_a_token_is_renewed_at_half_life_and_at_once_when_late(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(
        tmp_path, deadlines=attrs.evolve(DEADLINES, link_dead_after=1e9)
    ) as plane:
        old = plane.token()
        vm = await plane.up()
        await plane.quiet()
        mock_clock.jump(6 * 3600 + 1)
        token = (await vm.hear("token"))["token"]
        assert plane.tokens.verify_vm_token(token).user_id == "ann"
        vm.hang_up()
        await vm.wait_closed()
        late = plane.connect()
        late.say(type="auth", token=old, protocol={"min": 1, "max": 2}, boot_id="boot-a", dial=2)
        await late.hear("token")
        late.say(type="error", code="X", message="y")
        await plane.quiet()
        assert late.closed is None


async def test_a_vm_that_reads_too_slowly_is_closed(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        link = plane.links.of_user("ann")
        assert link is not None
        vm.is_stuck = True
        link.outgoing.put('{"type":"token"}')
        await plane.quiet()
        link.outgoing.put("x" * (64 * 1024 * 1024 + 1))
        assert link.ending == (1013, "slow reader")
        vm.is_stuck = False
        assert await vm.wait_closed() == (1013, "slow reader")


async def test_a_send_to_nobody_ends_the_link_without_a_close_frame(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        vm.accepts = False
        vm.say(type="heartbeat", active_sessions=[])
        assert await vm.wait_closed() is None
        assert plane.links.of_user("ann") is None


async def test_a_close_frame_that_nobody_takes_does_not_hold_up_the_end(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        vm.is_stuck = True
        link = plane.links.of_user("ann")
        assert link is not None
        link.close(4008, "lost")
        await plane.quiet()
        assert not vm.has_ended.is_set()
        mock_clock.jump(2.1)
        assert await vm.wait_closed() is None


async def test_a_failing_handler_closes_1011_and_a_failing_store_4500(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        for dial, (error, closed) in enumerate(
            [
                (RuntimeError("a bug"), (1011, "internal")),
                (StoreError("full"), (4500, "store failed")),
                (LinkFenced("old"), (4009, "superseded")),
            ],
            1,
        ):
            vm = await plane.up(dial=dial)
            plane.store.error, plane.store.failing = error, {"touch_vm"}
            vm.say(type="heartbeat", active_sessions=[])
            assert await vm.wait_closed() == closed


async def test_a_cancelled_server_ends_its_links_in_order(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = Vm()
        vm.connect()
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await plane.links.serve_socket(
                    {"query_string": b"user_id=ann"}, vm.receive, vm.send
                )
            vm.has_ended.set()

        plane.nursery.start_soon(run)
        vm.say(type="auth", token=plane.token(), protocol={"min": 1, "max": 2}, boot_id="b", dial=1)
        await vm.hear("init")
        scope.cancel()
        assert await vm.wait_closed() == (1012, "restarting")
        assert (await plane.store.newest_vm("ann")).status == "disconnected"
