"""The program that searches files; run as a child process by ``search_text``.

Uses nothing but the standard library, so that it starts in 20 ms. It reads one JSON object
from stdin, searches below its working directory, and writes one to stdout. Directories are
opened below the descriptor of the one before, never through a symbolic link.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO, Final, TypedDict, cast

MAX_MATCHES: Final = 200
"""Most matches that are returned."""
MAX_FILES: Final = 20_000
"""Most files that are looked at."""
MAX_FILE_BYTES: Final = 1024 * 1024
"""Longer files are left out."""
MAX_DEPTH: Final = 64
"""How deep directories are entered."""
MAX_LINE: Final = 300
"""Most characters of a line that are returned."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_CONTEXT: Final = 100


class Order(TypedDict):
    """What is to be searched."""

    pattern: str
    """Regular expression."""
    path: str
    """File or directory, relative to the working directory, without links and ``..``."""
    reserved: list[str]
    """Names at the top that are left out."""
    seconds: float
    """How long to search, in seconds."""


class Match(TypedDict):
    """One line that matches."""

    path: str
    """The file, relative to the working directory."""
    line: int
    """Number of the line, from 1."""
    text: str
    """The line, shortened around the match."""


class Answer(TypedDict, total=False):
    """What was found."""

    matches: list[Match]
    """In order of paths and lines."""
    files_searched: int
    """How many text files were searched."""
    note: str
    """Why there may be more."""
    error: str
    """Why nothing could be searched."""


class _Enough(Exception):
    """Raised to stop a search."""


class Search:
    """One search.

    Args:
        order: What is to be searched.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._pattern = re.compile(order["pattern"])
        self._reserved = {name.casefold() for name in order["reserved"]}
        self._ends_at = time.monotonic() + order["seconds"]
        self._matches: list[Match] = []
        self._seen = 0
        self._searched = 0

    def run(self) -> Answer:
        """Search and return what was found.

        Raises:
            OSError: If the path cannot be opened.
        """
        note: str | None = None
        try:
            self._run()
        except _Enough as exc:
            note = str(exc)
        answer: Answer = {"matches": self._matches, "files_searched": self._searched}
        return answer if note is None else {**answer, "note": note}

    def _run(self) -> None:
        parts = [part for part in self._order["path"].split("/") if part != "."]
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for number, part in enumerate(parts, start=1):
                mode = os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode
                if number == len(parts) and not stat.S_ISDIR(mode):
                    self._search_file(fd, parts[:-1], part)
                    return
                below = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            self._search_directory(fd, parts)
        finally:
            os.close(fd)

    def _search_directory(self, fd: int, parts: list[str]) -> None:
        for name, is_directory in self._names(fd, is_top=not parts):
            if not is_directory:
                self._search_file(fd, parts, name)
            elif len(parts) < MAX_DEPTH:
                try:
                    below = os.open(name, _DIRECTORY, dir_fd=fd)
                except OSError:  # unreadable, or gone
                    continue
                try:
                    self._search_directory(below, [*parts, name])
                finally:
                    os.close(below)

    def _names(self, fd: int, *, is_top: bool) -> Iterator[tuple[str, bool]]:
        for name in sorted(os.listdir(fd)):
            if name == ".git" or (is_top and name.casefold() in self._reserved):
                continue
            try:
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            except OSError:  # gone
                continue
            if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                yield name, stat.S_ISDIR(mode)

    def _search_file(self, fd: int, parts: list[str], name: str) -> None:
        if self._seen == MAX_FILES:
            raise _Enough(f"stopped after {MAX_FILES} files; search a smaller directory")
        if time.monotonic() > self._ends_at:
            raise _Enough("stopped because time ran out; search a smaller directory")
        self._seen += 1
        try:
            file = os.fdopen(os.open(name, _FILE, dir_fd=fd), "rb")
        except OSError:  # unreadable, or gone, or a link by now
            return
        with file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
                return
            data = file.read(MAX_FILE_BYTES)
        if b"\0" not in data:
            self._searched += 1
            self._search_lines("/".join([*parts, name]), data.decode("utf-8", "replace"))

    def _search_lines(self, path: str, text: str) -> None:
        for number, line in enumerate(text.split("\n"), start=1):
            match = self._pattern.search(line.removesuffix("\r"))
            if match is None:
                continue
            if len(self._matches) == MAX_MATCHES:
                raise _Enough(f"stopped after {MAX_MATCHES} matches; use a narrower pattern")
            begin = max(0, match.start() - _CONTEXT) if len(line) > MAX_LINE else 0
            shown = line[begin : begin + MAX_LINE].rstrip("\r")
            self._matches.append({"path": _readable(path), "line": number, "text": shown})


def _readable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def answer(order: Order) -> Answer:
    """Return what was found, or why nothing could be searched.

    Args:
        order: What is to be searched.
    """
    try:
        search = Search(order)
    except (re.error, OverflowError, RecursionError) as exc:
        return {"error": f"the pattern is not a regular expression: {exc}"}
    try:
        return search.run()
    except OSError as exc:
        return {"error": f"{order['path']}: {exc.strerror}"}


def main(stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Read an order, write the answer."""
    order = cast("Order", json.load(stdin))
    stdout.write(json.dumps(answer(order)).encode())
    stdout.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
