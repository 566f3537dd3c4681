"""Read a host's settings: flags over environment over file over defaults.

The file is TOML and holds plain values only: no code, no substitution and no secrets, which
come from the environment alone.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar, cast

import attrs

from semibot.errors import ConfigError
from semibot.secret import Secret

from .deadlines import Deadlines
from .settings import DEFAULT_PORT, HostSettings, Provider, RunMode

FILE_NAME: Final = "semibot.toml"
"""The file that is read from the data directory if no other is named."""

MAX_FILE_BYTES: Final = 8 * 1024
"""Largest file that is read."""

T = TypeVar("T")

_DURATION: Final = re.compile(r"(\d{1,9})\s*(ms|s|m|h|d|)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_VARIABLES: Final[Mapping[str, str]] = {
    "host": "SEMIBOT_HOST",
    "port": "SEMIBOT_PORT",
    "workspace": "SEMIBOT_WORKSPACE",
    "allow": "SEMIBOT_ALLOW",
    "model": "SEMIBOT_MODEL",
    "run_mode": "SEMIBOT_ENV",
    "skills_dir": "SEMIBOT_SKILLS_DIR",
    "vm_bootstrap_cmd": "VM_BOOTSTRAP_CMD",
    "vm_bootstrap_max_attempts": "VM_BOOTSTRAP_MAX_ATTEMPTS",
    "vm_bootstrap_cooldown_ms": "VM_BOOTSTRAP_COOLDOWN_MS",
    "vm_token_ttl": "VM_TOKEN_TTL",
}
"""Every setting that file and environment share, and its variable."""

DATA_DIR_VARIABLE: Final = "SEMIBOT_DATA_DIR"
"""Names the data directory."""

FILE_VARIABLE: Final = "SEMIBOT_CONFIG"
"""Names the file."""


@attrs.frozen(kw_only=True)
class HostFlags:
    """What the command line says; None means nothing."""

    host: str | None = None
    port: int | None = None
    data_dir: Path | None = None
    workspace: Path | None = None
    allow: tuple[str, ...] = ()


@attrs.frozen
class _Source:
    """Values by setting, and how each is called where it comes from."""

    values: Mapping[str, object]
    names: Mapping[str, str]

    def name(self, key: str) -> str:
        return self.names.get(key, key)


def load_host_settings(
    environment: Mapping[str, str],
    flags: HostFlags,
    *,
    default_data_dir: Path,
    deadlines: Deadlines | None = None,
) -> HostSettings:
    """Return the settings of a host; blocking, because it reads a file.

    Args:
        environment: The environment variables.
        flags: What the command line says.
        default_data_dir: The data directory if nobody names one.
        deadlines: The bounds.

    Raises:
        ConfigError: If a value makes no sense, or the file is not TOML or says something
            unknown. The message names the setting where it was set.
    """
    named = environment.get(DATA_DIR_VARIABLE)
    data_dir = flags.data_dir or (Path(named) if named else default_data_dir)
    values = _merge(environment, flags, data_dir)
    return HostSettings(
        data_dir=data_dir.absolute(),
        host=_take(values, "host", _text, "127.0.0.1"),
        port=_take(values, "port", _port, DEFAULT_PORT),
        run_mode=_take(values, "run_mode", _run_mode, "development"),
        jwt_secret=_secret(environment, "JWT_SECRET"),
        workspace=_take(values, "workspace", _path, None),
        allow=_take(values, "allow", _words, ()),
        model=_take(values, "model", _text, None),
        providers=_providers(environment),
        skills_dir=_take(values, "skills_dir", _path, None),
        vm_bootstrap_cmd=_take(values, "vm_bootstrap_cmd", _command, None),
        vm_bootstrap_max_attempts=_take(values, "vm_bootstrap_max_attempts", _positive, 5),
        vm_bootstrap_cooldown_ms=_take(values, "vm_bootstrap_cooldown_ms", _count, 30_000),
        vm_token_ttl=_take(values, "vm_token_ttl", _duration, 12 * 3600.0),
        environment=dict(environment),
        deadlines=deadlines or Deadlines(),
    )


def _merge(environment: Mapping[str, str], flags: HostFlags, data_dir: Path) -> list[_Source]:
    """Return the sources, the strongest first."""
    given: dict[str, object] = {
        "host": flags.host,
        "port": flags.port,
        "workspace": flags.workspace,
        "allow": flags.allow or None,
    }
    variables = {
        key: environment[name] for key, name in _VARIABLES.items() if environment.get(name)
    }
    return [
        _Source(given, {key: f"--{key}" for key in given}),
        _Source(variables, _VARIABLES),
        _Source(*_read_file(environment, data_dir)),
    ]


def _read_file(
    environment: Mapping[str, str], data_dir: Path
) -> tuple[Mapping[str, object], Mapping[str, str]]:
    named = environment.get(FILE_VARIABLE)
    path = Path(named) if named else data_dir / FILE_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} has more than {MAX_FILE_BYTES} bytes")
        text = data.decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if named:
            raise ConfigError(f"{FILE_VARIABLE} names {path}, which does not exist") from None
        return {}, {}
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read {path}: {exc}") from exc
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # a number may be too long for Python
        raise ConfigError(f"{path} is not TOML: {exc}") from exc
    unknown = sorted(set(values) - set(_VARIABLES))
    if unknown:
        known = ", ".join(sorted(_VARIABLES))
        raise ConfigError(
            f"{path} says {unknown[0][:80]!r}, which is no setting that a file may have; "
            f"those are {known}"
        )
    return values, {key: f"{key} in {path}" for key in values}


def _take(sources: list[_Source], key: str, read: Callable[[object], T], default: T) -> T:
    for source in sources:
        value = source.values.get(key)
        if value is not None:
            try:
                return read(value)
            except (TypeError, ValueError, RuntimeError) as exc:  # there may be no home directory
                raise ConfigError(f"{source.name(key)}: {exc}") from None
    return default


# --- values ---------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError("expected a text that is not blank")
    if "\0" in value:
        raise ValueError("expected a text without a NUL")
    return value.strip()


def _path(value: object) -> Path:
    if isinstance(value, Path):
        return value.absolute()
    return Path(_text(value)).expanduser().absolute()


def _count(value: object) -> int:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("expected a whole number, at least 0")
    return value


def _positive(value: object) -> int:
    number = _count(value)
    if number < 1:
        raise ValueError("expected a whole number, at least 1")
    return number


def _port(value: object) -> int:
    number = _count(value)
    if number > 65535:
        raise ValueError("expected a port, 0 to 65535")
    return number


def _run_mode(value: object) -> RunMode:
    match _text(value).lower():
        case "production":
            return "production"
        case "development":
            return "development"
        case _:
            raise ValueError("expected production or development")


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        raise TypeError("expected a list of texts")
    return tuple(_text(word) for word in cast("Sequence[object]", value))


def _command(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = shlex.split(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("expected a program and its arguments")
    return tuple(_text(word) for word in cast("Sequence[object]", value))


def _duration(value: object) -> float:
    match = _DURATION.fullmatch(str(value).strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if seconds < 60:
        raise ValueError("expected a duration of at least 60 s, such as 12h, 30m or 3600")
    return seconds


def _secret(environment: Mapping[str, str], name: str) -> Secret | None:
    value = environment.get(name)
    return Secret(value) if value else None


def _providers(environment: Mapping[str, str]) -> Mapping[str, Provider]:
    found = {
        "openai": Provider(
            api_key=_secret(environment, "OPENAI_API_KEY"),
            base_url=environment.get("OPENAI_BASE_URL") or None,
        ),
        "anthropic": Provider(api_key=_secret(environment, "ANTHROPIC_API_KEY")),
    }
    return {
        name: provider
        for name, provider in found.items()
        if provider.api_key is not None or provider.base_url is not None
    }
