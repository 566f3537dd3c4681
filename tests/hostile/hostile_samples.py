"""Valid inputs of everything that reads what strangers say."""

from __future__ import annotations

import json

from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.testing.ports import EPOCH


class FixedClock:
    """Stands still, so that tokens last as long as a test does."""

    def now(self):
        return EPOCH


KEY = Secret("correct-length-and-quite-random-8f2a61c0")
TOKENS = Tokens(KEY, FixedClock(), 3600.0)


def _texts(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def _event(seq: int, kind: str = "text_chunk", **data: object) -> dict[str, object]:
    return {
        "type": "sse_event",
        "session_id": "s1",
        "term": 1,
        "seq": seq,
        "run_id": "r1",
        "data": json.dumps({"type": kind, **data}),
    }


FROM_VM = _texts(
    {
        "type": "auth",
        "token": "a.b.c",
        "protocol": {"min": 1, "max": 2},
        "boot_id": "b",
        "dial": 1,
        "features": ["x"],
    },
    {
        "type": "heartbeat",
        "active_sessions": ["s1"],
        "lag_ms": 1.5,
        "rss_bytes": 1,
        "sent_at": 2.5,
        "blocked": {"seconds": 2.0, "where": "a.py:1 in f", "stack": ["a.py:1 in f"]},
    },
    {
        "type": "request",
        "id": "q1",
        "session_id": "s1",
        "method": "memory_search",
        "params": {"query": "x", "top_k": 3},
        "deadline_ms": 1000,
    },
    {"type": "request_cancel", "id": "q1"},
    _event(2, content="hello"),
    _event(1, "run_started", run_id="r1", message_id="m", message="hi"),
    _event(3, "execution_complete", run_id="r1", final_response="x"),
    {
        "type": "fire_and_forget",
        "session_id": "s1",
        "id": "f1",
        "method": "usage_report",
        "params": {"model": "m", "tokens_in": 1, "tokens_out": 2},
    },
    {
        "type": "fire_and_forget",
        "session_id": "s1",
        "id": "f2",
        "method": "snapshot_sync",
        "params": {"checkpoint": {}, "short_term_memory": {}, "term": 1, "covers_seq": 1},
    },
    {
        "type": "resume",
        "pending_ids": ["q1"],
        "sessions": {"s1": {"term": 1, "first_seq": 1, "last_seq": 3}},
    },
    {"type": "ack", "commands": ["c1"]},
    {
        "type": "cancelled",
        "session_id": "s1",
        "command_id": "c2",
        "run_id": "r1",
        "receipt": {"run_id": "r1"},
    },
    {"type": "error", "code": "BAD", "message": "no", "id": "q1", "session_id": "s1"},
    {"type": "batch", "frames": [_event(2, content="a"), {"type": "ack", "commands": ["c1"]}]},
)

FROM_HOST = _texts(
    {
        "type": "init",
        "data": {
            "user_id": "u1",
            "org_id": "o1",
            "api_keys": {
                "openai": {"alg": "aes-256-gcm", "iv": "eA==", "tag": "eA==", "ciphertext": "eA=="}
            },
            "protocol": 2,
            "epoch": 7,
            "limits": {"max_frame_bytes": 1},
            "heartbeat_interval_s": 10,
            "dead_after_s": 30.0,
            "providers": {"openai": {"base_url": "http://m", "default_model": "x"}},
        },
    },
    {"type": "heartbeat", "echo": 1.5},
    {
        "type": "start_session",
        "command_id": "c1",
        "term": 1,
        "next_seq": 1,
        "data": {
            "session_id": "s1",
            "runtime_type": "semigraph",
            "agent_id": "a",
            "agent_config": {"model": "m"},
            "mcp_servers": [],
            "skill_index": [],
            "sub_agents": [],
        },
        "snapshot": {"covers_seq": 0, "checkpoint": {}, "short_term_memory": {}},
    },
    {"type": "stop_session", "command_id": "c9", "data": {"session_id": "s1", "reason": "admin"}},
    {
        "type": "user_message",
        "session_id": "s1",
        "command_id": "c2",
        "run_id": "r1",
        "data": {
            "message": "hi",
            "message_id": "m1",
            "history": [{"role": "user", "content": "hi"}],
            "metadata": {"request_id": "x"},
            "deadline_ms": 1000,
        },
    },
    {"type": "cancel", "session_id": "s1", "command_id": "c3", "run_id": "r1", "reason": "user"},
    {"type": "config_update", "session_id": "s1", "command_id": "c4", "data": {"model": "x"}},
    {"type": "response", "id": "q1", "result": {"x": 1}, "error": None},
    {"type": "response", "id": "q1", "result": None, "error": {"code": "X", "message": "y"}},
    {
        "type": "resume_response",
        "results": {"q1": {"status": "completed", "data": 1}},
        "sessions": {"s1": {"acked_seq": 0}, "s2": {"fenced": True}, "s3": {"gone": True}},
    },
    {"type": "ack", "sessions": {"s1": 3}, "ids": ["f1"]},
    {"type": "token", "token": "a.b.c"},
    {"type": "error", "code": "SEQ_GAP", "message": "no", "session_id": "s1", "expected": 1},
    {"type": "batch", "frames": [{"type": "heartbeat"}, {"type": "ack", "sessions": {}}]},
)

FROM_BRIDGE = _texts(
    {"type": "ready", "features": ["run_id"]},
    {"type": "text_chunk", "content": "x", "run_id": "r1"},
    {"type": "tool_call", "name": "t", "arguments": {}},
    {"type": "execution_complete", "final_response": "x"},
    {"type": "execution_error", "code": "X", "error": "y"},
    {"type": "cp_request", "id": "q", "session_id": "s", "method": "get_config", "params": {}},
    {"type": "cp_fire_and_forget", "session_id": "s", "method": "audit_log", "params": {"x": 1}},
    {"type": "snapshot_response", "id": "x", "session_id": "s", "snapshot": {"checkpoint": {}}},
    {"type": "event", "session_id": "s", "data": {"type": "text", "content": "x"}},
)

SSE = [
    b"id: 1-1\nevent: message\ndata: {}\n\n",
    b"retry: 1500\n\n: keepalive\n\n",
    b'id: 2-17\r\nevent: execution_complete\r\ndata: {"a":\r\ndata: 1}\r\n\r\n',
    b"\xef\xbb\xbfdata\r\rdata: x\r\r",
]

EVENT_IDS = [b"1-0", b"1-1", b"2-17", b"999999999-999999999999999999", b"0-0"]

SETTINGS = [
    b'host = "127.0.0.1"\nport = 8080\nallow = ["run"]\nmodel = "openai:x"\n',
    b'run_mode = "production"\nvm_token_ttl = "12h"\nvm_bootstrap_cmd = ["a", "b"]\n',
    b'vm_bootstrap_max_attempts = 5\nvm_bootstrap_cooldown_ms = 30000\nskills_dir = "x"\n',
    b'workspace = "w"\n# words\nallow = "a, b"\n',
]

JWT = [
    TOKENS.make_vm_token("u1", "o1").encode(),
    TOKENS.make_user_token("u1", "o1").encode(),
]

KEYS = _texts(
    {"openai": {"alg": "aes-256-gcm", "iv": "AAECAwQFBgcICQoL", "tag": "eA==", "ciphertext": ""}},
    {
        "openai": {
            "alg": "aes-256-gcm",
            "iv": "AAECAwQFBgcICQoL",
            "tag": "Wo4BC+80fVJPrvqE/qoXRw==",
            "ciphertext": "iE/ZjF9HiqEnjog=",
        },
        "plain": "sk-x",
    },
)

HEADS = [
    (
        b"GET /ws/vm?user_id=u HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    ),
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
]
