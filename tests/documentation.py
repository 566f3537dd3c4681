"""Read the pages: where they are, the cells of their tables, and what they set in code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
DOCS: Final = ROOT / "docs"


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one that is underlined alike."""
    _, found, rest = read(page).partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    mark = rest[0]
    return re.split(rf"\n[^\n]+\n{re.escape(mark) * 4}", rest)[0]


def rows(text: str) -> Iterator[list[str]]:
    """Yield the rows of all list tables, as the text of their cells."""
    row: list[str] = []
    for line in text.splitlines():
        if line.startswith("   * - "):
            if row:
                yield row
            row = [line[7:]]
        elif row and line.startswith("     -"):
            row.append(line[7:])
        elif row and line.startswith("       "):
            row[-1] += " " + line.strip()
        elif row and not line.strip():
            yield row
            row = []
    if row:
        yield row


def words(text: str) -> set[str]:
    """Return what stands in double backquotes."""
    return set(re.findall(r"``([^`]+)``", text))
