"""Decide which tool calls may run. No Trio, no I/O, no memory of earlier decisions.

A tool is either ``allowed`` (registering it was the permission) or needs a
:class:`Grant`. A grant says which tool, which values its arguments may have, and until
when. A grant that denies beats every grant that allows. Nothing is cached, so a grant
that has expired or was taken away counts at once.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final, Literal, Protocol, TypeAlias, final

import attrs

from semibot.errors import UsageError
from semibot.wire.codec import JsonObject, JsonValue

Access: TypeAlias = Literal["allowed", "granted"]
"""Whether a tool may simply be used, or needs a grant."""

Action: TypeAlias = Literal["allow", "deny"]
"""What is decided about a call."""

GRANT_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"write": "write_file", "run": "run_command"}
)
"""Short names of grants, and the tools that they stand for."""


class GuardedTool(Protocol):
    """What a policy needs to know of a tool."""

    @property
    def name(self) -> str:
        """The tool's name."""
        ...

    @property
    def access(self) -> Access:
        """Whether it needs a grant."""
        ...


# --- matchers -------------------------------------------------------------------------


def _canonical(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True)  # to Python, True == 1, at any depth


def _plain_parts(text: str) -> tuple[str, ...] | None:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\0" in text:
        return None
    return path.parts


def _check_directory(_: object, __: attrs.Attribute[str], value: str) -> None:
    if _plain_parts(value) is None:
        raise UsageError(f"a grant needs a path below the workspace, not {value!r}")


def _check_words(_: object, __: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if not value or not value[0]:
        raise UsageError("a grant for commands needs at least the program's name")


@attrs.frozen
class Equals:
    """Matches one value exactly; ``1`` is not ``True`` and not ``"1"``."""

    value: JsonValue = attrs.field(hash=False)
    """The value."""

    def matches(self, value: JsonValue) -> bool:
        """Return whether *value* is the value."""
        return _canonical(value) == _canonical(self.value)


@attrs.frozen
class UnderPath:
    """Matches a path below a directory of the workspace, and the directory itself.

    Only the text is looked at. That is enough for tools that refuse to follow symbolic
    links, as ``write_file`` does: what the path says is then where the file lies.
    """

    directory: str = attrs.field(validator=_check_directory)
    """Directory, relative to the workspace, without ``..``."""

    def matches(self, value: JsonValue) -> bool:
        """Return whether *value* is a relative path, without ``..``, below the directory."""
        parts = _plain_parts(value) if isinstance(value, str) else None
        prefix = _plain_parts(self.directory)
        return parts is not None and prefix is not None and parts[: len(prefix)] == prefix


@attrs.frozen
class ArgvPrefix:
    """Matches a command whose first words are exactly these."""

    words: tuple[str, ...] = attrs.field(validator=_check_words)
    """The words, at least one."""

    def matches(self, value: JsonValue) -> bool:
        """Return whether *value* is a list that begins with the words."""
        return isinstance(value, list) and tuple(value[: len(self.words)]) == self.words


Matcher: TypeAlias = Equals | UnderPath | ArgvPrefix
"""A condition on the value of one argument."""


# --- grants ---------------------------------------------------------------------------


def _check_expiry(_: object, __: attrs.Attribute[datetime | None], value: datetime | None) -> None:
    if value is not None and value.utcoffset() is None:
        raise UsageError("the expiry of a grant needs a time zone")


def _frozen_mapping(value: Mapping[str, Matcher]) -> Mapping[str, Matcher]:
    return MappingProxyType(dict(value))


@final
@attrs.frozen(kw_only=True)
class Grant:
    """A structured permission, or its opposite."""

    tool: str
    """Name of the tool."""
    where: Mapping[str, Matcher] = attrs.field(default={}, converter=_frozen_mapping, hash=False)
    """Conditions on arguments, by name; all must hold. Empty covers every call."""
    action: Action = "allow"
    """What the grant says about the calls that it covers; one that denies has no conditions."""
    expires_at: datetime | None = attrs.field(default=None, validator=_check_expiry)
    """When it ends, an aware time; None means never."""
    id: str | None = None
    """Identifier for records; the policy numbers those that have none."""

    def __attrs_post_init__(self) -> None:
        if self.action == "deny" and self.where:
            raise UsageError(
                f"a grant that denies {self.tool} takes no conditions: the same path or "
                "command can be written in many ways; deny the whole tool, or allow less"
            )

    @classmethod
    def write(cls, under: str | None = None) -> Grant:
        """Return a grant for ``write_file``.

        Args:
            under: Directory below the workspace that it is limited to; None is all of it.
        """
        where = {} if under is None else {"path": UnderPath(under)}
        return cls(tool=GRANT_NAMES["write"], where=where)

    @classmethod
    def run(cls, *words: str) -> Grant:
        """Return a grant for ``run_command``.

        Many programs run other programs: a grant for ``git`` is one for whatever its
        options can start.

        Args:
            *words: What the command must begin with; none covers every command.
        """
        where = {"argv": ArgvPrefix(words)} if words else {}
        return cls(tool=GRANT_NAMES["run"], where=where)

    @classmethod
    def parse(cls, text: str) -> Grant:
        """Return the grant that a short text means.

        ``write`` and ``run`` stand for their tools, ``write:notes`` is limited to a
        directory, ``run:git status`` to commands that begin so; any other text is the
        name of a tool.

        Args:
            text: The short text.

        Raises:
            UsageError: If it is empty, or limits a tool that has no short form.
        """
        name, colon, rest = text.strip().partition(":")
        if not colon:
            if not name:
                raise UsageError(f"an empty grant means nothing; use {_SHORT_FORMS}")
            return cls(tool=GRANT_NAMES.get(name, name))
        rest = rest.strip()
        if name == "write" and rest:
            return cls.write(rest)
        if name == "run" and rest:
            return cls.run(*_split(rest))
        raise UsageError(f"grant {text!r} is not understood; use {_SHORT_FORMS}")

    def covers(self, tool: str, arguments: JsonObject, now: datetime) -> bool:
        """Return whether the grant speaks about this call at this time."""
        return (
            self.tool == tool
            and not self.has_expired(now)
            and all(
                name in arguments and matcher.matches(arguments[name])
                for name, matcher in self.where.items()
            )
        )

    def has_expired(self, now: datetime) -> bool:
        """Return whether the grant has ended."""
        return self.expires_at is not None and self.expires_at <= now


_SHORT_FORMS: Final = "'write', 'run', 'write:DIRECTORY', 'run:PROGRAM ARGUMENT' or a tool's name"


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as exc:
        raise UsageError(f"grant {text!r} is not understood: {exc}") from exc


# --- policy ---------------------------------------------------------------------------

Rule: TypeAlias = Literal[
    "tool_allowed", "grant", "denied_by_grant", "no_grant", "grant_expired", "grant_does_not_cover"
]
"""Why a call may run, or may not."""


@attrs.frozen(kw_only=True)
class Verdict:
    """What a policy says about one call."""

    action: Action
    """Whether it may run."""
    rule: Rule
    """The rule that decided."""
    grant_id: str | None = None
    """The grant that decided, if one did."""
    reason: str
    """Why, in words; for a denial also how to allow it."""


def _numbered(grants: Iterable[Grant | str]) -> tuple[Grant, ...]:
    parsed = (Grant.parse(grant) if isinstance(grant, str) else grant for grant in grants)
    return tuple(
        attrs.evolve(grant, id=f"grant-{number}") if grant.id is None else grant
        for number, grant in enumerate(parsed, start=1)
    )


@final
@attrs.frozen
class Policy:
    """The grants of one agent. Without any, only allowed tools run."""

    grants: tuple[Grant, ...] = attrs.field(default=(), converter=_numbered)
    """The grants; short texts such as ``"write"`` are turned into grants."""

    def check(self, parameters: Mapping[str, frozenset[str]]) -> None:
        """Refuse grants that can never mean anything, which are typing mistakes.

        Args:
            parameters: The names of each tool's parameters, by the tool's name.

        Raises:
            UsageError: If a grant names an unknown tool or parameter; says which exist.
        """
        for grant in self.grants:
            known = parameters.get(grant.tool)
            if known is None:
                raise UsageError(
                    f"there is no tool {grant.tool!r} to grant; there are: "
                    f"{', '.join(sorted(parameters))} (and, for short, {', '.join(GRANT_NAMES)})"
                )
            if not grant.where.keys() <= known:
                raise UsageError(
                    f"a grant for {grant.tool!r} sets a condition on an unknown parameter; "
                    f"it has: {', '.join(sorted(known))}"
                )

    def decide(self, tool: GuardedTool, arguments: JsonObject, now: datetime) -> Verdict:
        """Return whether a call may run.

        Args:
            tool: The tool.
            arguments: The very arguments that it would run with.
            now: The current time, aware.
        """
        covering = [grant for grant in self.grants if grant.covers(tool.name, arguments, now)]
        for grant in covering:
            if grant.action == "deny":
                return Verdict(
                    action="deny",
                    rule="denied_by_grant",
                    grant_id=grant.id,
                    reason=f"{tool.name} is denied by {grant.id}.",
                )
        if tool.access == "allowed":
            return Verdict(
                action="allow", rule="tool_allowed", reason=f"{tool.name} needs no grant."
            )
        return self._decide_granted(tool.name, covering, now)

    def _decide_granted(self, name: str, covering: list[Grant], now: datetime) -> Verdict:
        if covering:
            grant_id = covering[0].id
            return Verdict(
                action="allow",
                rule="grant",
                grant_id=grant_id,
                reason=f"{name} is allowed by {grant_id}.",
            )
        about = [grant for grant in self.grants if (grant.tool, grant.action) == (name, "allow")]
        rule: Rule = "no_grant"
        why = f"{name} is not allowed: nobody has granted it."
        if about and all(grant.has_expired(now) for grant in about):
            rule, why = "grant_expired", f"{name} is not allowed any more: its grant has expired."
        elif about:
            rule = "grant_does_not_cover"
            why = f"{name} is not allowed with these arguments: no grant covers them."
        return Verdict(action="deny", rule=rule, reason=f"{why} {_how_to_allow(name)}")


def _how_to_allow(tool: str) -> str:
    short = next((short for short, name in GRANT_NAMES.items() if name == tool), tool)
    return f'The user can allow it with GraphAgent(grants=["{short}"]) or `--allow {short}`.'
