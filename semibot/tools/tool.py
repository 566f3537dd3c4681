"""Make a tool from a typed function.

A :class:`Tool` describes a function and cannot be called. The function is reached in one
place only, the gate, so that no call escapes the decision, the record and the deadline.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Final, Literal, NoReturn, ParamSpec, Protocol, TypeAlias, cast, final, overload

import attrs

from semibot.errors import UsageError
from semibot.wire.chat import ToolSpec
from semibot.wire.codec import JsonObject

from .context import ToolContext
from .docstrings import read_docstring
from .permissions import Access
from .schema import Parameters, describe_parameters

P = ParamSpec("P")

ToolKind: TypeAlias = Literal["tool", "skill"]
"""What a call of it is reported as."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ToolFunction(Protocol):
    """A function as the gate calls it."""

    def __call__(self, **arguments: object) -> object:
        """Run it; an async function returns a coroutine."""
        ...


@final
@attrs.frozen(kw_only=True, eq=False)
class Body:
    """What runs when a tool is called. Only the gate has to do with it."""

    function: ToolFunction = attrs.field(repr=False)
    """The function."""
    parameters: Parameters
    """Its parameters."""
    is_async: bool
    """Whether it is an ``async def``; others run in a worker thread."""


@final
@attrs.frozen(kw_only=True, eq=False)
class Tool:
    """A tool: what a model is told about it, and how it may be used. Made by :func:`tool`."""

    name: str
    """Name to call it by."""
    description: str
    """What it does, for the model."""
    parameters: JsonObject = attrs.field(repr=False)
    """JSON schema of its arguments, an object schema."""
    is_parallel_safe: bool = False
    """Whether it may run beside other calls of the same run."""
    limit: float | None = None
    """Longest that a call may take, in seconds; None means ``tool.limit``."""
    kind: ToolKind = "tool"
    """What a call of it is reported as."""
    access: Access = "allowed"
    """``granted`` if it needs a grant; else registering it is the permission."""
    _body: Body = attrs.field(alias="body", repr=False)

    @property
    def spec(self) -> ToolSpec:
        """What a model is told."""
        return ToolSpec(name=self.name, description=self.description, parameters=self.parameters)

    def __call__(self, *args: object, **arguments: object) -> NoReturn:
        """Refuse: only the gate runs tools.

        Raises:
            TypeError: Always.
        """
        message = (
            f"tool {self.name} cannot be called; only a gate runs tools: "
            "await gate.call(CallRequest(...), run_id=..., ledger=...)"
        )
        raise TypeError(message)


@overload
def tool(function: Callable[P, object], /) -> Tool: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    is_parallel_safe: bool = False,
    limit: float | None = None,
    is_allowed: bool = True,
    kind: ToolKind = "tool",
) -> Callable[[Callable[P, object]], Tool]: ...


def tool(
    function: Callable[P, object] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    is_parallel_safe: bool = False,
    limit: float | None = None,
    is_allowed: bool = True,
    kind: ToolKind = "tool",
) -> Tool | Callable[[Callable[P, object]], Tool]:
    """Turn a typed function into a :class:`Tool`.

    The docstring describes it, the ``Args`` section its parameters. An ``async def`` runs
    as a part of the caller's task; any other function runs in a worker thread, which a
    cancellation can only leave behind.

    Args:
        function: The function. Its parameters are annotated with what JSON can say; one
            of type :class:`ToolContext` is filled in by the gate.
        name: Name for the model, of ``A-Z a-z 0-9 _ -``, at most 64 characters; by default
            the function's.
        description: For the model; by default the docstring up to its first section.
        is_parallel_safe: Whether calls may overlap with other calls of the same run.
        limit: Longest that a call may take, in seconds, more than 0.
        is_allowed: Whether registering the tool is the permission to use it; otherwise a
            grant is needed.
        kind: What a call is reported as.

    Raises:
        UsageError: If the function cannot be described to a model; says why.
    """

    def make(function: Callable[P, object]) -> Tool:
        return _make_tool(
            function,
            name=name,
            description=description,
            is_parallel_safe=is_parallel_safe,
            limit=limit,
            access="allowed" if is_allowed else "granted",
            kind=kind,
        )

    return make if function is None else make(function)


def _make_tool(
    function: Callable[P, object],
    *,
    name: str | None,
    description: str | None,
    is_parallel_safe: bool,
    limit: float | None,
    access: Access,
    kind: ToolKind,
) -> Tool:
    label = name or str(getattr(function, "__name__", function))
    if not _NAME.fullmatch(label):
        raise UsageError(f"{label!r} is no name for a tool; pass name=, at most 64 of A-Za-z0-9_-")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UsageError(f"tool {label}: a generator has no result; return a value")
    if limit is not None and not 0 < limit < math.inf:
        raise UsageError(f"tool {label}: limit is a number of seconds, more than 0")
    parameters = describe_parameters(function, ToolContext)
    text = description or read_docstring(function.__doc__).description
    return Tool(
        name=label,
        description=text or label.replace("_", " "),
        parameters=parameters.schema,
        is_parallel_safe=is_parallel_safe,
        limit=limit,
        kind=kind,
        access=access,
        body=Body(
            function=cast("ToolFunction", function),
            parameters=parameters,
            is_async=inspect.iscoroutinefunction(function),
        ),
    )
