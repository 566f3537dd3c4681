"""Read what a docstring in Google form says about a function and its parameters."""

from __future__ import annotations

import inspect
import itertools
import re
from typing import Final

import attrs

_SECTION: Final = re.compile(
    r"^(Args|Arguments|Parameters|Returns|Return|Yields|Raises|Attributes|Examples?|Notes?"
    r"|Warnings?|See Also|Todo):\s*$"
)
_ARGUMENT_SECTIONS: Final = frozenset({"Args", "Arguments", "Parameters"})
_ARGUMENT: Final = re.compile(r"^\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


@attrs.frozen(kw_only=True)
class Docstring:
    """What a docstring says."""

    description: str
    """Everything before the first section, one paragraph a line; may be empty."""
    parameters: dict[str, str]
    """Descriptions from the ``Args`` section, by the parameter's name."""


def read_docstring(text: str | None) -> Docstring:
    """Return what *text* says.

    Args:
        text: A docstring in Google form, or None.
    """
    lines = inspect.cleandoc(text or "").splitlines()
    sections = [number for number, line in enumerate(lines) if _SECTION.match(line)]
    head = lines[: sections[0]] if sections else lines
    parameters: dict[str, str] = {}
    for start, end in itertools.pairwise([*sections, len(lines)]):
        if lines[start].rstrip().rstrip(":") in _ARGUMENT_SECTIONS:
            parameters |= _read_arguments(lines[start + 1 : end])
    return Docstring(description=_paragraphs(head), parameters=parameters)


def _paragraphs(lines: list[str]) -> str:
    text = "\n".join(line.strip() for line in lines).strip()
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text).replace("\n\n", "\n")


def _read_arguments(lines: list[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    indents = [_indent(line) for line in lines if line.strip()]
    current: list[str] | None = None
    for line in lines:
        if not line.strip():
            continue
        match = _ARGUMENT.match(line.strip()) if _indent(line) == min(indents) else None
        if match is not None:
            current = found[match[1]] = [match[2]]
        elif current is not None:
            current.append(line.strip())
    return {name: " ".join(words).strip() for name, words in found.items()}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
