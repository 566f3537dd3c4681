"""Keep what models, tools and files say from steering the user's terminal.

A terminal obeys control characters: a title, the clipboard, even what seems to be typed
can be set by printing them. Text from outside therefore never reaches one as it is.
"""

from __future__ import annotations

from typing import Final

_CONTROLS: Final = frozenset((*range(0x20), *range(0x7F, 0xA0))) - {ord("\n"), ord("\t")}
_DROP: Final = dict.fromkeys(_CONTROLS)
_ESCAPE_IN_JSON: Final = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def clean(text: str) -> str:
    """Return *text* without C0 and C1 control characters, but for newline and tab."""
    return text.translate(_DROP)


def clean_json(line: str) -> str:
    """Return a line of JSON that means the same and has no control characters in it.

    JSON itself escapes C0; what is left can only stand inside its strings.
    """
    return line.translate(_ESCAPE_IN_JSON)
