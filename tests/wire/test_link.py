"""The order of frames on a link, for both ends and both levels; levels, close codes, limits."""

from __future__ import annotations

import typing
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.wire.frames import FromHost, FromVm, ProtocolRange
from semibot.wire.link import (
    CLOSE_CODES,
    HOST_TRANSITIONS,
    VM_TRANSITIONS,
    CloseCode,
    HostEnd,
    LinkState,
    MalformedCounter,
    Transitions,
    VmEnd,
    negotiate,
    reaction_to,
)

VM_TYPES: Final = {kind.type for kind in typing.get_args(FromVm)} | {"batch"}
HOST_TYPES: Final = {kind.type for kind in typing.get_args(FromHost)} | {"batch"}
COMMANDS: Final = {"start_session", "stop_session", "user_message", "cancel", "config_update"}
LEVEL_2_ONLY: Final = {"request_cancel", "ack", "cancelled", "batch"}


def host_at(state: LinkState) -> HostEnd:
    host = HostEnd()
    steps = {
        "connecting": 0,
        "authenticating": 1,
        "introduced": 2,
        "level1": 2,
        "resuming": 3,
        "level1_resuming": 3,
        "live": 4,
    }[state]
    level = 1 if state.startswith("level1") else 2
    for number in range(steps):
        match number:
            case 0:
                host.received("auth")
            case 1:
                host.sent("init", level=level)
            case 2:
                host.received("resume")
            case _:
                host.sent("resume_response")
    assert host.state == state
    return host


def vm_at(state: LinkState) -> VmEnd:
    vm = VmEnd()
    if state == "connecting":
        return vm
    vm.sent("auth")
    if state == "authenticating":
        return vm
    vm.received("init", level=1 if state.startswith("level1") else 2)
    if state in {"introduced", "level1"}:
        return vm
    vm.sent("resume")
    if state == "live":
        vm.received("resume_response")
    assert vm.state == state
    return vm


def may_be_received(host: HostEnd) -> set[str]:
    """Return what this end accepts now, by trying everything on ends in the same state."""
    found: set[str] = set()
    for each in VM_TYPES:
        other = host_at(host.state)
        try:
            other.received(each)
        except RemoteProtocolError:
            continue
        found.add(each)
    return found


def may_be_sent_by_host(state: LinkState) -> set[str]:
    found: set[str] = set()
    for each in HOST_TYPES:
        try:
            host_at(state).sent(each)
        except LocalProtocolError:
            continue
        found.add(each)
    return found


def may_be_sent_by_vm(state: LinkState) -> set[str]:
    found: set[str] = set()
    for each in VM_TYPES:
        try:
            vm_at(state).sent(each)
        except LocalProtocolError:
            continue
        found.add(each)
    return found


# --- the order ------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2])
def test_two_ends_agree_on_the_whole_handshake(level: int) -> None:
    host, vm = HostEnd(), VmEnd()
    assert host.level is vm.level is None
    vm.sent("auth")
    host.received("auth")
    host.sent("init", level=level)
    vm.received("init", level=level)
    assert host.level == vm.level == level
    vm.sent("resume")
    host.received("resume")
    host.sent("resume_response")
    vm.received("resume_response")
    assert host.state == vm.state == ("live" if level == 2 else "level1")
    host.sent("user_message")
    vm.received("user_message")
    vm.sent("sse_event")
    host.received("sse_event")


def test_nothing_comes_before_auth() -> None:
    assert may_be_received(HostEnd()) == {"auth"}
    assert may_be_sent_by_vm("connecting") == {"auth"}
    assert may_be_sent_by_host("connecting") == {"error"}


def test_a_level_1_host_may_command_at_once_and_a_level_1_vm_need_not_resume() -> None:
    assert may_be_sent_by_host("level1") >= COMMANDS
    assert {"sse_event", "request", "resume"} <= may_be_received(host_at("level1"))
    assert may_be_sent_by_vm("level1") >= {"sse_event", "request", "resume"}


@pytest.mark.parametrize("state", ["introduced", "resuming"])
def test_no_command_goes_to_a_level_2_vm_before_resume_response(state: LinkState) -> None:
    assert not COMMANDS & may_be_sent_by_host(state)
    for command in COMMANDS:
        with pytest.raises(RemoteProtocolError):
            vm_at(state).received(command)
    assert may_be_sent_by_host("live") >= COMMANDS


@pytest.mark.parametrize("state", ["introduced", "resuming"])
def test_no_event_comes_from_a_level_2_vm_before_resume_response(state: LinkState) -> None:
    of_sessions = {"sse_event", "ack", "cancelled"}
    assert not of_sessions & may_be_received(host_at(state))
    assert not of_sessions & may_be_sent_by_vm(state)
    assert may_be_received(host_at("live")) >= of_sessions


def test_a_vm_resumes_once_on_a_link() -> None:
    assert "resume" not in may_be_received(host_at("live"))
    assert "resume" not in may_be_received(host_at("level1_resuming"))


def test_a_host_answers_only_a_resume_that_came() -> None:
    for state in ("connecting", "authenticating", "introduced", "live", "level1"):
        assert "resume_response" not in may_be_sent_by_host(typing.cast("LinkState", state))


@pytest.mark.parametrize("state", ["level1", "level1_resuming"])
def test_frames_of_level_2_are_refused_from_a_level_1_peer(state: LinkState) -> None:
    assert not LEVEL_2_ONLY & may_be_received(host_at(state))
    assert not LEVEL_2_ONLY & may_be_sent_by_vm(state)
    assert not {"ack", "token", "heartbeat", "batch"} & may_be_sent_by_host(state)


def test_init_says_the_level_and_nothing_else_does() -> None:
    host = host_at("authenticating")
    with pytest.raises(LocalProtocolError):
        host.sent("init", level=3)
    assert (host.state, host.level) == ("authenticating", None)
    host.sent("init")
    assert host.level == 1
    with pytest.raises(RemoteProtocolError):
        vm_at("authenticating").received("init", level=3)
    with pytest.raises(LocalProtocolError):
        host.sent("init")


def test_nothing_comes_after_close() -> None:
    host, vm = host_at("live"), vm_at("live")
    host.close()
    vm.close()
    assert host.state == vm.state == "closed"
    for end in (host, vm):
        with pytest.raises(LocalProtocolError, match="that is closed; nothing may be sent"):
            end.sent("error")
        with pytest.raises(RemoteProtocolError, match="that is closed; nothing is expected"):
            end.received("heartbeat")


def test_a_complaint_says_what_is_allowed_and_repeats_nothing_unknown() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        HostEnd().received("sse_event")
    assert str(caught.value) == (
        "sse_event is out of order on a link that is connecting; auth is expected @ $.type"
    )
    with pytest.raises(RemoteProtocolError, match="this frame is out of order") as caught:
        HostEnd().received("<script>")
    assert "script" not in str(caught.value)
    with pytest.raises(LocalProtocolError, match="resume or heartbeat or error may be sent"):
        vm_at("introduced").sent("sse_event")


@pytest.mark.parametrize(
    ("table", "sent", "received"),
    [(HOST_TRANSITIONS, HOST_TYPES, VM_TYPES), (VM_TRANSITIONS, VM_TYPES, HOST_TYPES)],
    ids=["host", "vm"],
)
def test_a_table_knows_every_frame_and_no_other(
    table: Transitions, sent: set[str], received: set[str]
) -> None:
    def names(direction: str) -> set[str]:
        found = {name for _, name in table if name.startswith(direction)}
        return {name.removeprefix(direction + " ").partition("(")[0] for name in found}

    assert names("sent") == sent
    assert names("received") == received


def test_every_state_can_be_reached_and_none_is_a_trap() -> None:
    for table in (HOST_TRANSITIONS, VM_TRANSITIONS):
        states = {state for state, _ in table}
        assert set(table.values()) == states
        assert states == set(typing.get_args(LinkState)) - {"closed"}


def test_what_one_end_may_send_the_other_expects() -> None:
    """Whatever either end sends in whatever order, the other never calls it out of order."""
    seen: set[tuple[LinkState, LinkState]] = set()
    todo: list[tuple[LinkState, LinkState]] = [("connecting", "connecting")]
    while todo:
        host, vm = todo.pop()
        if (host, vm) in seen:
            continue
        seen.add((host, vm))
        for mine, theirs, is_host in (
            (HOST_TRANSITIONS, VM_TRANSITIONS, True),
            (VM_TRANSITIONS, HOST_TRANSITIONS, False),
        ):
            here, there = (host, vm) if is_host else (vm, host)
            for (state, name), then in mine.items():
                if state != here or not name.startswith("sent "):
                    continue
                heard = theirs.get((there, "received" + name.removeprefix("sent")))
                assert heard is not None, (host, vm, name)
                todo.append((then, heard) if is_host else (heard, then))
    assert {("live", "live"), ("level1", "level1")} <= seen


# --- levels, close codes, limits ------------------------------------------------------


@pytest.mark.parametrize(
    ("spoken", "level"),
    [(None, 1), ((1, 1), 1), ((1, 2), 2), ((2, 2), 2), ((2, 9), 2), ((1, 9), 2)],
)
def test_a_link_uses_the_highest_common_level(spoken: tuple[int, int] | None, level: int) -> None:
    told = None if spoken is None else ProtocolRange(min=spoken[0], max=spoken[1])
    assert negotiate(told) == level


def test_a_vm_without_a_common_level_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="this side speaks 1 to 2"):
        negotiate(ProtocolRange(min=3, max=4))


@pytest.mark.parametrize(
    ("code", "reason", "reaction"),
    [
        *((code, "", "reconnect") for code in (1000, 1001, 1003, 1006, 1009, 1011, 1012, 1013)),
        *((code, "", "reconnect") for code in (4008, 4029, 4400, 4500, 4999)),
        *((code, "", "final") for code in (4001, 4003, 4004)),
        (4009, "other_instance", "final"),
        (4009, "newer_dial", "reconnect"),
        (4009, "", "reconnect"),
    ],
)
def test_a_vm_reacts_to_a_close_as_the_protocol_says(code: int, reason: str, reaction: str) -> None:
    assert reaction_to(code, reason) == reaction


def test_every_close_code_has_a_reaction() -> None:
    assert set(CLOSE_CODES) == set(CloseCode)
    assert all(each.meaning for each in CLOSE_CODES.values())


def test_the_fifth_malformed_frame_in_a_minute_is_one_too_many() -> None:
    counter = MalformedCounter()
    assert [counter.count(now) for now in (0.0, 1.0, 2.0, 3.0, 59.9)] == [False] * 4 + [True]
    counter = MalformedCounter()
    assert [counter.count(now) for now in (0.0, 1.0, 2.0, 3.0, 60.0)] == [False] * 5
    assert counter.count(60.5)


@given(st.lists(st.floats(0, 1000), max_size=30).map(sorted))
def test_the_counter_looks_at_the_last_minute_only(times: list[float]) -> None:
    counter = MalformedCounter()
    for index, now in enumerate(times):
        recent = sum(1 for each in times[: index + 1] if now - each < 60.0)
        assert counter.count(now) == (recent >= 5)
