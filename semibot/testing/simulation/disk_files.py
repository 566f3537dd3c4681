"""One file of a simulated disk: what the cache shows of it, and what is on the medium."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from typing import Final, final

import attrs

SECTOR: Final = 512
"""Bytes that are written as a whole or not at all."""


@final
@attrs.define(eq=False)
class DiskFile:
    """A file, whatever it is called.

    The real file is the cache. *pin* keeps it readable when it has no name any more.
    """

    pin: int
    """A descriptor that reads and writes it."""
    medium: bytearray = attrs.field(factory=bytearray, repr=False)
    """What a loss of power leaves for certain."""
    touched: set[int] | None = None
    """Sectors that were written since the last sync; None if nobody notes that."""
    forgotten: dict[int, bytes] = attrs.field(factory=dict[int, bytes], repr=False)
    """Sectors that count as written, with what the cache shows and the medium may lack."""

    def size(self) -> int:
        """Return its length in the cache."""
        return os.fstat(self.pin).st_size

    def content(self) -> bytes:
        """Return what the cache shows."""
        return os.pread(self.pin, self.size(), 0)

    def watch(self) -> None:
        """Begin to rely on being told what is written; see :meth:`wrote`."""
        if self.touched is None:
            self.touched = {n for n, _ in self.unsynced()}

    def wrote(self, offset: int, size: int) -> None:
        """Note that something was written."""
        sectors = range(offset // SECTOR, -(-(offset + size) // SECTOR))
        if self.touched is not None:
            self.touched.update(sectors)
        for n in sectors if self.forgotten else ():
            self.forgotten.pop(n, None)

    def unsynced(self) -> list[tuple[int, bytes]]:
        """Return the sectors of the cache that are not on the medium, with their numbers."""
        size = self.size()
        numbers = range(-(-size // SECTOR)) if self.touched is None else sorted(self.touched)
        found: list[tuple[int, bytes]] = []
        for first, last in _stretches(numbers):
            data = os.pread(self.pin, (last - first + 1) * SECTOR, first * SECTOR)
            for n in range(first, last + 1):
                piece = data[(n - first) * SECTOR : (n - first + 1) * SECTOR]
                if piece != bytes(self.medium[n * SECTOR : n * SECTOR + len(piece)]):
                    found.append((n, piece))
        return found

    def _dirty(self) -> list[tuple[int, bytes]]:
        """Return those of them that a sync writes."""
        return [(n, piece) for n, piece in self.unsynced() if self.forgotten.get(n) != piece]

    def sync(self) -> None:
        """Bring to the medium what the cache knows to be missing there."""
        self._write(self._dirty())
        resize(self.medium, self.size())
        self._all_clean()

    def fail_sync(self, draw: random.Random) -> None:
        """Bring some of it there, and take all of it for written from now on.

        Sometimes the cache is dropped at once; then the old content is back.
        """
        dirty = self._dirty()
        arrived = {n for n, _ in dirty if draw.random() < 0.5}
        self._write((n, piece) for n, piece in dirty if n in arrived)
        self.forgotten.update((n, piece) for n, piece in dirty if n not in arrived)
        self._all_clean()
        if draw.random() < 0.3:
            self._drop_cache()

    def _write(self, sectors: Iterable[tuple[int, bytes]]) -> None:
        for n, piece in sectors:
            put_sector(self.medium, n, piece)
            self.forgotten.pop(n, None)

    def _all_clean(self) -> None:
        if self.touched is not None:
            self.touched = set(self.forgotten)

    def _drop_cache(self) -> None:
        size = self.size()
        for n, shown in self.forgotten.items():
            old = bytes(self.medium[n * SECTOR : n * SECTOR + len(shown)]).ljust(len(shown), b"\0")
            os.pwrite(self.pin, old[: max(0, size - n * SECTOR)], n * SECTOR)
        self.forgotten.clear()

    def after_power_loss(self, draw: random.Random) -> tuple[bytearray, int]:
        """Return what is found when the power is back, and how many sectors were lost."""
        image = bytearray(self.medium)
        pending, size = self._dirty(), self.size()
        if not pending and size == len(image):
            return image, 0
        survivors = _survivors(pending, draw)
        for n, piece in survivors:
            put_sector(image, n, piece)
        if draw.random() < 0.5:  # the length is written apart from the content
            resize(image, size)
        return image, len(pending) - len(survivors)


def _survivors(
    pending: Sequence[tuple[int, bytes]], draw: random.Random
) -> Sequence[tuple[int, bytes]]:
    """Choose what reached the medium: all, nothing, a beginning, or any of it."""
    match draw.randrange(4):
        case 0:
            return ()
        case 1:
            return pending
        case 2:
            return pending[: draw.randint(0, len(pending))]
        case _:
            share = draw.random()
            return [each for each in pending if draw.random() < share]


def put_sector(image: bytearray, number: int, piece: bytes) -> None:
    """Write one sector, with zeros before it where nothing was."""
    resize(image, max(len(image), number * SECTOR + len(piece)))
    image[number * SECTOR : number * SECTOR + len(piece)] = piece


def resize(image: bytearray, size: int) -> None:
    """Cut *image*, or extend it with zeros."""
    if len(image) > size:
        del image[size:]
    else:
        image.extend(bytes(size - len(image)))


def _stretches(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last of each row of numbers that follow each other."""
    rows: list[tuple[int, int]] = []
    for n in numbers:
        if rows and rows[-1][1] == n - 1:
            rows[-1] = (rows[-1][0], n)
        else:
            rows.append((n, n))
    return rows
