from __future__ import annotations

import json
import sys
from contextlib import suppress

import trio
import trio_websocket
from following import Follower
from harness import open_plane, seconds_until
from scripted_vm import open_link

from semibot.live import LiveWallClock
from semibot.secret import Secret
from semibot.security.tokens import Tokens

SECRET = "correct-length-and-quite-random-8f2a61c0"
START = "/api/v1/chat/start"
MIB = 1024 * 1024


async def raw(port: int, data: bytes) -> tuple[int, dict]:
    """Send bytes, and return status and JSON of what comes back before the host closes."""
    with trio.fail_after(10):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream, trio.open_nursery() as nursery:

            async def send() -> None:
                # It may be refused before the host has read everything.
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await stream.send_all(data)

            nursery.start_soon(send)
            seen = b""
            while b"\r\n\r\n" not in seen or not _is_whole(seen):
                try:
                    piece = await stream.receive_some(65536)
                except trio.BrokenResourceError:
                    break
                if not piece:
                    break
                seen += piece
            nursery.cancel_scope.cancel()
    head, _, body = seen.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), seen[:200]
    return int(head.split()[1]), json.loads(body)


def _is_whole(seen: bytes) -> bool:
    head, _, body = seen.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return len(body) >= int(value)
    return False


def post(body: bytes, path: str = START, kind: str = "application/json", more: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str, more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


HELLO = b'{"message": "stream 1 0"}'
DEEP = b'{"message": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BOTH = (
    f"POST {START} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
).encode()

REFUSED = {
    "a session that nobody has": (get("/api/v1/sessions/nobody"), 404, "SESSION_NOT_FOUND"),
    "a stream that nobody has": (get("/api/v1/sessions/nobody/stream"), 404, "SESSION_NOT_FOUND"),
    "a message to nobody": (
        post(HELLO, "/api/v1/chat/sessions/nobody"),
        404,
        "SESSION_NOT_FOUND",
    ),
    "no JSON": (post(b'{"message": '), 400, "MALFORMED_JSON"),
    "JSON of 100 000 levels": (post(DEEP), 400, "MALFORMED_JSON"),
    "over a MiB": (post(b" " * (MIB + 1)), 413, "BODY_TOO_LARGE"),
    "another type": (post(HELLO, kind="text/plain"), 415, "UNSUPPORTED_MEDIA_TYPE"),
    "an unknown runtime": (
        post(b'{"message": "hi", "runtime_type": "cobol"}'),
        400,
        "UNKNOWN_RUNTIME",
    ),
    "two lengths": (BOTH, 400, "HTTP_400"),
    "a head of 100 kB": (get("/livez", f"X-Filler: {'x' * 100_000}\r\n"), 431, "HTTP_431"),
    "a head that drips": (b"GET /livez HTTP/1.1\r\nHost: loc", 408, "HTTP_408"),
    "half a body": (post(HELLO)[:-5], 408, None),
    "a foreign host": (b"GET /api/v1/sessions HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, None),
    "a foreign origin": (get("/api/v1/sessions", "Origin: https://evil.example\r\n"), 403, None),
}


async def test_what_cannot_be_answered_is_refused_and_changes_nothing(tmp_path):
    bounds = {"http_request_head": 2.0, "http_request_body": 2.0}
    async with open_plane(tmp_path / "plane", deadlines=bounds) as plane:
        for name, (request, status, code) in REFUSED.items():
            answered, body = await raw(plane.port, request)
            assert answered == status, (name, answered, body)
            assert body["success"] is False
            assert code in (None, body["error"]["code"]), (name, body)
        assert plane.rows("SELECT * FROM sessions") == []
        follower = Follower()
        await plane.start(follower, "stream 1 0")
        path = f"/api/v1/sessions/{follower.session_id}/stream"
        for wrong in ("1", "1-", "-1", "1-1-1", "1-\xb2", "1234567890-1", "x"):
            answer = await plane.ask("GET", path, **{"Last-Event-ID": wrong.encode()})
            assert (answer.status, answer.code) == (400, "BAD_EVENT_ID"), wrong
        # Who ends only the sending half is taken for gone: perhaps answered, never kept.
        with trio.fail_after(10):
            async with await trio.open_tcp_stream("127.0.0.1", plane.port) as stream:
                await stream.send_all(get("/livez"))
                await stream.send_eof()
                while await stream.receive_some(65536):
                    pass
        assert (await plane.ask("GET", "/readyz")).status == 200


async def test_another_users_session_looks_like_none(tmp_path):
    tokens = Tokens(Secret(SECRET), LiveWallClock(), 3600.0)
    ann = {"Authorization": "Bearer " + tokens.make_user_token("ann", "org")}
    bob = {"Authorization": "Bearer " + tokens.make_user_token("bob", "org")}
    bounds = {"vm_start_wait": 0.1}
    keys = {"JWT_SECRET": SECRET, "SEMIBOT_ENV": "production"}
    async with open_plane(tmp_path / "plane", deadlines=bounds, **keys) as plane:
        answer = await plane.ask("POST", START, {"message": "hi"}, **ann)
        assert (answer.status, answer.code) == (503, "EXECUTION_PLANE_NOT_READY")
        token = await plane.run(
            "admin", "vm-token", "--user", "ann", "--data-dir", str(plane.data_dir)
        )
        async with open_link(plane.port, token, user_id="ann") as vm:
            await vm.hear("init")
            await vm.resume()
            follower = Follower(headers=ann)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plane.start, follower, "hi")
                await vm.hear("user_message")
                sid = follower.session_id
                for method, path, body in (
                    ("GET", f"/api/v1/sessions/{sid}", None),
                    ("GET", f"/api/v1/sessions/{sid}/messages", None),
                    ("GET", f"/api/v1/sessions/{sid}/stream", None),
                    ("POST", f"/api/v1/chat/sessions/{sid}", {"message": "hi"}),
                    ("POST", f"/api/v1/chat/sessions/{sid}/cancel", {}),
                    ("DELETE", f"/api/v1/sessions/{sid}", {}),
                ):
                    foreign = await plane.ask(method, path, body, **bob)
                    none = await plane.ask(method, path.replace(sid, "0" * 32), body, **bob)
                    assert (foreign.status, foreign.body) == (none.status, none.body), path
                    assert foreign.status == 404, path
                    assert (await plane.ask(method, path, body)).status == 401
                own = await plane.ask("GET", f"/api/v1/sessions/{sid}", **ann)
                assert own.status == 200
                nursery.cancel_scope.cancel()


async def test_the_later_link_of_a_process_wins_in_either_order(tmp_path):
    async with open_plane(tmp_path / "plane", is_external=True) as plane:
        token = plane.token
        async with open_link(plane.port, token, dial=1) as first:
            await first.hear("init")
            async with open_link(plane.port, token, dial=3) as second:
                await second.hear("init")
                assert (await first.close_code())[0] == 4009
                async with open_link(plane.port, token, dial=2) as third:
                    assert (await third.close_code())[0] == 4009
                await second.resume()  # which still is the link
        for wrong, user, code in ((token + "x", "local", 4001), (token, "other", 4001)):
            async with open_link(plane.port, wrong, user_id=user) as vm:
                assert (await vm.close_code())[0] == code


TICKET_VM = """
import json, os, sys, time
with open(sys.argv[1] + ".new", "w") as file:
    json.dump({key: os.environ[key] for key in ("VM_TOKEN", "VM_TICKET")}, file)
os.replace(sys.argv[1] + ".new", sys.argv[1])
time.sleep(1000)
"""


async def test_a_ticket_is_good_once_and_for_a_while(tmp_path):
    program, told = tmp_path / "vm.py", tmp_path / "told.json"
    program.write_text(TICKET_VM)
    bounds = {"vm_ready": 2.5, "vm_stop": 0.5}
    variables = {
        "VM_BOOTSTRAP_CMD": f"{sys.executable} {program} {told}",
        "VM_BOOTSTRAP_COOLDOWN_MS": "0",
    }
    async with open_plane(tmp_path / "plane", deadlines=bounds, **variables) as plane:
        expired = json.loads(told.read_text())
        told.unlink()
        async with trio.open_nursery() as nursery:

            async def need_a_vm() -> None:
                while True:
                    await plane.ask("POST", START, {"message": "hi"})

            nursery.start_soon(need_a_vm)
            assert await seconds_until(told.exists) is not None
            fresh = json.loads(told.read_text())
            token, ticket = fresh["VM_TOKEN"], fresh["VM_TICKET"]
            for wrong in (expired["VM_TICKET"], "made-up", None):
                async with open_link(plane.port, token, ticket=wrong) as vm:
                    assert (await vm.close_code())[0] == 4001, wrong
            results: dict[str, str] = {}

            async def race(boot_id: str) -> None:
                async with open_link(plane.port, token, ticket=ticket, boot_id=boot_id) as vm:
                    try:
                        await vm.hear("init")
                        results[boot_id] = "in"
                    except trio_websocket.ConnectionClosed:
                        results[boot_id] = "out"
                        assert (await vm.close_code())[0] == 4001

            async with trio.open_nursery() as racing:
                for name in ("a", "b", "c", "d"):
                    racing.start_soon(race, name * 32)
            assert sorted(results.values()) == ["in", "out", "out", "out"]
            winner = next(boot_id for boot_id, how in results.items() if how == "in")
            loser = next(boot_id for boot_id, how in results.items() if how == "out")
            async with open_link(plane.port, token, ticket=ticket, boot_id=loser, dial=9) as vm:
                assert (await vm.close_code())[0] == 4001
            async with open_link(plane.port, token, ticket=ticket, boot_id=winner, dial=2) as vm:
                await vm.hear("init")
            nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken_and_data_that_is_in_use_are_said_so(tmp_path):
    async with open_plane(tmp_path / "plane") as plane:
        done = await plane.serve_again("--port", "0", "--data-dir", str(plane.data_dir))
        assert done.returncode == 78, done
        assert b"Traceback" not in done.stderr
        assert str(plane.data_dir).encode() in done.stderr
        other = tmp_path / "plane" / "other"
        done = await plane.serve_again("--port", str(plane.port), "--data-dir", str(other))
        assert done.returncode == 78, done
        assert b"Traceback" not in done.stderr
        assert b"--port" in done.stderr
        assert (await plane.ask("GET", "/readyz")).status == 200


async def test_a_full_disk_is_said_and_nothing_is_acknowledged(tmp_path):
    async with open_plane(tmp_path / "plane") as plane:
        before = Follower()
        await plane.start(before, "stream 3 0")
        count = plane.rows("SELECT count(*) FROM messages")
        plane.limit_files(2048)
        for _ in range(3):
            answer = await plane.ask("POST", START, {"message": "hi"})
            assert (answer.status, answer.code) == (503, "STORE_FAILED")
        assert plane.rows("SELECT count(*) FROM messages") == count
        ready = await plane.ask("GET", "/readyz")
        assert ready.status == 503
        assert "store" in ready.json["error"]["details"]["reasons"]
        assert (await plane.ask("GET", "/livez")).status == 200
        assert len(await plane.messages(before.session_id)) == 2
        plane.limit_files(None)
        with trio.fail_after(10):  # asking is what tries the disk
            while (await plane.ask("GET", "/readyz")).status != 200:
                pass
        after = Follower()
        await plane.start(after, "stream 3 0")
        assert after.types[-1] == "execution_complete"
