"""A VM's settings come from flags, then from its environment, then from the token."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from semibot.errors import UsageError
from semibot.secret import Secret
from semibot.vm import make_vm_settings
from semibot.vm.settings import link_url, user_of_token


def token_of(claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.signature"


TOKEN = token_of({"userId": "u-1", "orgId": "o"})


def test_the_environment_of_a_bootstrap_is_enough() -> None:
    settings = make_vm_settings(
        {
            "CONTROL_PLANE_WS": "ws://127.0.0.1:8080/ws/vm",
            "VM_USER_ID": "u2",
            "VM_TOKEN": "t",
            "VM_TICKET": "once",
            "VM_INSTANCE_ID": "vm-7",
            "SEMIBOT_WORKSPACE": "/work",
            "SEMIBOT_ALLOW": "write, run:git",
            "SEMIBOT_MODEL": "gpt-x",
            "XDG_STATE_HOME": "/ignored",
        }
    )
    assert settings.url == "ws://127.0.0.1:8080/ws/vm"
    assert settings.user_id == "u2"
    assert settings.token == Secret("t")
    assert settings.ticket == Secret("once")
    assert settings.workspace == Path("/work")
    assert settings.allow == ("write", "run:git")
    assert settings.model == "gpt-x"
    assert settings.state_dir.parts[-3:] == ("semibot", "vms", "vm-7")
    assert settings.state_dir.is_absolute()


def test_flags_come_first(tmp_path: Path) -> None:
    settings = make_vm_settings(
        dict.fromkeys(("VM_TOKEN", "VM_USER_ID", "SEMIBOT_ALLOW", "SEMIBOT_MODEL"), "other"),
        url="https://host.example",
        token=TOKEN,
        user_id="u3",
        workspace=tmp_path / "w",
        state_dir=tmp_path / "s",
        allow=("write,run", "x"),
        model="m",
    )
    assert settings.url == "wss://host.example/ws/vm"
    assert (settings.user_id, settings.model) == ("u3", "m")
    assert settings.allow == ("write", "run", "x")
    assert (settings.workspace, settings.state_dir) == (tmp_path / "w", tmp_path / "s")
    assert settings.ticket is None


def test_the_token_says_whose_vm_it_is() -> None:
    settings = make_vm_settings({}, url="ws://h", token=TOKEN)
    assert settings.user_id == "u-1"
    assert settings.workspace == Path()
    assert settings.state_dir.name == "u-1"
    state = make_vm_settings({"SEMIBOT_STATE_DIR": "/x"}, url="ws://h", token=TOKEN).state_dir
    assert state == Path("/x")


@pytest.mark.parametrize("user", ["../../etc", "a b", "x" * 200, ".hidden"])
def test_a_user_with_an_odd_name_has_a_directory_too(user: str) -> None:
    state = make_vm_settings({}, url="ws://h", token="t", user_id=user).state_dir
    assert len(state.name) == 64
    assert state.parent.name == "vms"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"token": TOKEN}, "CONTROL_PLANE_WS"),
        ({"url": "ws://h"}, "VM_TOKEN"),
        ({"url": "ws://h", "token": "no-jwt"}, "VM_USER_ID"),
        ({"url": "h:80", "token": TOKEN}, "https://"),
        (
            {"url": "ws://h", "token": TOKEN, "workspace": Path("/a"), "state_dir": Path("/a")},
            "state",
        ),
    ],
)
def test_what_is_missing_is_said(given: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        make_vm_settings({}, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/ws/vm"),
        ("http://127.0.0.1:8080/", "ws://127.0.0.1:8080/ws/vm"),
        ("https://h/base", "wss://h/base/ws/vm"),
        ("https://h/base/ws/vm", "wss://h/base/ws/vm"),
        ("ws://h", "ws://h/ws/vm"),
        ("ws://h/elsewhere", "ws://h/elsewhere"),
        ("wss://[::1]:8/ws/vm?x=1", "wss://[::1]:8/ws/vm?x=1"),
    ],
)
def test_addresses_become_links(address: str, url: str) -> None:
    assert link_url(address) == url


@pytest.mark.parametrize("address", ["", "host", "ftp://h", "http://", "http://[::1", "ws:///x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError):
        link_url(address)


@pytest.mark.parametrize(
    "token",
    ["", "a", "a.b", "a.!.c", "a.e30.c", token_of([1]), token_of({"userId": 7}), "a.\u00e9.c"],
)
def test_a_token_that_names_nobody(token: str) -> None:
    assert user_of_token(token) is None
