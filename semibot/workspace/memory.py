"""Short-term memory: what was said in a session, as Markdown that people can read.

The file is only ever appended to, and a checkpoint says how long it was. A reopening
cuts it to that length, so that file and checkpoint never disagree after a crash.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, final

import attrs

from semibot.wire.chat import Message

from .files import Sync, open_regular, read_regular, sync_directory, write_atomically

_HEADING: Final = re.compile(r"^## \[(user|assistant)\] (\S+)$", re.MULTILINE)


@attrs.frozen(kw_only=True)
class MemoryEntry:
    """One thing that was said."""

    role: str
    """``user`` or ``assistant``."""
    when: str
    """ISO 8601 time."""
    text: str
    """What was said."""


@attrs.frozen(kw_only=True)
class MemoryHit:
    """An entry that a search found."""

    entry: MemoryEntry
    """The entry."""
    score: float
    """Share of the query's words that it contains, above 0, at most 1."""


@final
@attrs.define(eq=False)
class ShortTermMemory:
    """The memory file of one session; blocking."""

    path: Path
    """The Markdown file."""
    sync: Sync = attrs.field(default=os.fsync, kw_only=True, repr=False)
    """What makes files last."""

    def restore(self, length: int) -> None:
        """Cut the file to what the newest checkpoint covers.

        Args:
            length: Bytes that are covered.

        Raises:
            OSError: If the disk refuses.
        """
        if self.path.exists():
            with os.fdopen(open_regular(self.path, os.O_RDWR), "r+b") as file:
                if file.seek(0, os.SEEK_END) > length:
                    file.truncate(length)

    def replace(self, content: str) -> int:
        """Put *content* in the place of the whole memory, and return its length in bytes.

        Raises:
            OSError: If the disk refuses.
        """
        data = content.encode()
        write_atomically(self.path, data, sync=self.sync)
        return len(data)

    def append(self, messages: tuple[Message, ...], when: str, length: int) -> int:
        """Add what user and assistant said, and return the file's length in bytes.

        Args:
            messages: New messages; others and empty ones are passed over.
            when: ISO 8601 time for the headings.
            length: How long the file is by the newest checkpoint. What stands behind is
                from a save that was given up, and is written over.

        Raises:
            OSError: If the disk refuses.
        """
        text = "".join(
            f"## [{message.role}] {when}\n\n{_quote(message.content)}\n\n"
            for message in messages
            if message.role in {"user", "assistant"} and message.content.strip()
        ).encode()
        with os.fdopen(open_regular(self.path, os.O_RDWR | os.O_CREAT), "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            length = min(length, size)  # a file that somebody has shortened
            file.seek(length)
            file.write(text)
            file.truncate()
            file.flush()
            self.sync(file.fileno())
        if size == 0:  # it may be new
            sync_directory(self.path.parent, sync=self.sync)
        return length + len(text)

    def content(self, length: int | None = None) -> str:
        """Return the memory.

        Args:
            length: How many bytes of it; None means all.

        Raises:
            OSError: If the disk refuses.
        """
        if not self.path.exists():
            return ""
        return read_regular(self.path)[:length].decode("utf-8", "replace")  # "\\r" stays what it is

    def entries(self) -> tuple[MemoryEntry, ...]:
        """Return everything that was said, oldest first.

        Raises:
            OSError: If the disk refuses.
        """
        pieces = _HEADING.split(self.content())[1:]
        return tuple(
            MemoryEntry(role=role, when=when, text=_unquote(text.strip("\n")))
            for role, when, text in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True)
        )

    def search(self, query: str, top_k: int) -> tuple[MemoryHit, ...]:
        """Return the entries that share words with *query*, best and newest first.

        The question that is being answered is left out: it would be its own best hit.

        Args:
            query: Words to look for.
            top_k: Most entries to return, at least 1.

        Raises:
            OSError: If the disk refuses.
        """
        wanted = _words(query)
        entries = self.entries()
        if entries and entries[-1].role == "user":
            entries = entries[:-1]
        hits = [
            MemoryHit(entry=entry, score=round(len(shared) / len(wanted), 4))
            for entry in reversed(entries)
            if (shared := wanted & _words(entry.text))
        ]
        return tuple(sorted(hits, key=lambda hit: hit.score, reverse=True)[:top_k])


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def _quote(text: str) -> str:
    # A line that looks like one of our headings would start an entry of its own.
    return re.sub(r"^(\\*)(?=## \[)", r"\1\\", text, flags=re.MULTILINE)


def _unquote(text: str) -> str:
    return re.sub(r"^(\\*)\\(?=## \[)", r"\1", text, flags=re.MULTILINE)
