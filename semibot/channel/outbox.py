"""Reports that must reach the host at least once (protocol section 4, "fire_and_forget").

A report gets its id when it enters, and its place in a file in the state directory before
:meth:`Outbox.add` returns. It stays until the host acknowledges the id, over crashes,
restarts and reconnects; a repeat changes nothing on the host. Reports that come together
are written together: whoever waits while the disk is busy joins the next write.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import DeadlineExceeded, LocalProtocolError, StoreError
from semibot.lifetimes import deadline, grace, open_services
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.wire.frames import MAX_FRAME_BYTES, FireAndForget, encode_frame
from semibot.wire.outgoing import utf8_size

from .outbox_file import OutboxFile, acked_line

log: Final = get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_OUTBOX_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of reports that wait for their acknowledgement."""

MAX_UNWRITTEN_ACKS: Final = 256
"""Acknowledgements that wait for the next report before they are written by themselves."""

COMPACT_ABOVE: Final = 1024 * 1024
"""Bytes of acknowledged reports that a file may hold before it is written anew."""


@final
@attrs.define(eq=False)
class OutboxRow:
    """One report that the host has not acknowledged."""

    frame: FireAndForget
    """The report, with its id."""
    encoded: str
    """Its frame as text."""
    size: int
    """Bytes of the frame."""
    is_durable: bool = False
    """Whether it would survive a crash; only then it is sent."""
    is_acknowledged: bool = False
    """Whether the host has it."""


@attrs.define(eq=False)
class _Write:
    row: OutboxRow
    is_done: trio.Event = attrs.field(factory=trio.Event)
    error: StoreError | None = None


@final
class Outbox:
    """Reports that wait for their acknowledgement. Made by :func:`open_outbox`."""

    def __init__(
        self,
        ports: Ports,
        deadlines: Deadlines,
        file: OutboxFile | None,
        on_durable: Callable[[OutboxRow], None],
        max_bytes: int,
    ) -> None:
        self._ports = ports
        self._deadlines = deadlines
        self._file = file
        self._on_durable = on_durable
        self._max_bytes = max_bytes
        self._rows: dict[str, OutboxRow] = {}
        self._writes: list[_Write] = []
        self._acked: list[str] = []
        self._work = trio.lowlevel.ParkingLot()
        self._is_closed = False
        self.bytes: int = 0
        """Bytes of the reports that wait."""

    @property
    def rows(self) -> Sequence[OutboxRow]:
        """The reports that wait and would survive a crash, in the order they came."""
        return tuple(row for row in self._rows.values() if row.is_durable)

    async def add(self, frame: FireAndForget) -> OutboxRow:
        """Take a report and return when it would survive a crash.

        A caller that is cancelled meanwhile leaves the report here.

        Args:
            frame: The report; it gets its id here.

        Raises:
            LocalProtocolError: If it is larger than a frame may be.
            StoreError: If the disk refuses, or 64 MiB of reports wait already.
        """
        named = attrs.evolve(frame, id=self._ports.ids.new_id())
        encoded = encode_frame(named)
        row = OutboxRow(named, encoded, utf8_size(encoded))
        if row.size > MAX_FRAME_BYTES:
            raise LocalProtocolError(f"a report is at most {MAX_FRAME_BYTES} bytes long")
        if self._is_closed:
            raise StoreError("the outbox is closed")
        if self.bytes + row.size > self._max_bytes:
            raise StoreError(f"the outbox is full: {self.bytes} bytes of reports wait for the host")
        self._keep(row)
        if self._file is None:
            self._settle(row)
            await trio.lowlevel.checkpoint()
            return row
        write = _Write(row)
        self._writes.append(write)
        self._work.unpark_all()
        await write.is_done.wait()  # bounded by the writer's deadline
        if write.error is not None:
            raise write.error
        return row

    def acknowledge(self, ids: Iterable[str]) -> None:
        """Forget reports that the host has; unknown ids are ignored."""
        for row_id in ids:
            row = self._rows.pop(row_id, None)
            if row is not None:
                row.is_acknowledged = True
                self.bytes -= row.size
                if self._file is not None:
                    self._acked.append(row_id)
                    self._work.unpark_all()

    async def open(self) -> None:
        """Read what an earlier process left.

        Raises:
            StoreError: If another process has the directory, or the disk refuses.
        """
        if self._file is not None:
            for frame in await self._in_thread(self._file.open):
                encoded = encode_frame(frame)
                self._keep(OutboxRow(frame, encoded, utf8_size(encoded), is_durable=True))

    async def serve(self) -> None:
        """Write what is to be written, together; a service."""
        while True:
            if self._writes or len(self._acked) > MAX_UNWRITTEN_ACKS:
                await self._write()
            else:
                await self._work.park()

    async def aclose(self) -> None:
        """Write what is left and give the directory free, within ``session.save`` each."""
        self._is_closed = True
        with grace("session.save", self._deadlines.session_save):
            if self._writes or self._acked:
                await self._write()
        for write in self._writes:  # the grace ran out
            self._fail(write, StoreError("the outbox was closed"))
        if self._file is not None:
            with grace("session.save", self._deadlines.session_save):
                await self._release(self._file)

    async def _release(self, file: OutboxFile) -> None:
        try:
            await self._in_thread(file.close)
        except DeadlineExceeded as exc:  # a thread is at it, and closes it when the disk answers
            log.warning("cannot close the outbox", error=str(exc))

    def _settle(self, row: OutboxRow) -> None:
        row.is_durable = True
        if not row.is_acknowledged:
            self._on_durable(row)

    def _keep(self, row: OutboxRow) -> None:
        if row.frame.id is not None:
            self._rows[row.frame.id] = row
            self.bytes += row.size

    async def _write(self) -> None:
        writes, acked = list(self._writes), list(self._acked)
        try:
            await self._write_to(writes, acked)
        except (StoreError, DeadlineExceeded) as exc:
            error = exc if isinstance(exc, StoreError) else StoreError(f"the outbox: {exc}")
            log.warning("cannot write the outbox", error=str(error))
            for write in writes:
                self._fail(write, error)
        else:
            for write in writes:
                self._settle(write.row)
                write.is_done.set()
        del self._writes[: len(writes)]
        del self._acked[: len(acked)]  # if it failed, the host says it again

    async def _write_to(self, writes: list[_Write], acked: list[str]) -> None:
        file = self._file
        if file is None:
            return
        new = [write.row for write in writes]
        garbage = file.size - self.bytes
        if garbage > COMPACT_ABOVE or (self._is_closed and not self._rows and garbage):
            await self._in_thread(file.replace, _lines(self._rows.values()))
            return
        lines = _lines(row for row in new if not row.is_acknowledged)
        await self._in_thread(file.append, (acked_line(acked) if acked else b"") + lines)

    def _fail(self, write: _Write, error: StoreError) -> None:
        row_id = write.row.frame.id
        if row_id is not None and self._rows.pop(row_id, None) is not None:
            self.bytes -= write.row.size
        write.error = error
        write.is_done.set()

    async def _in_thread(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        with deadline("session.save", self._deadlines.session_save):
            return await self._ports.threads.run_sync(
                fn, *args, limiter="files", abandon_on_cancel=True
            )


def _lines(rows: Iterable[OutboxRow]) -> bytes:
    return "".join(f"{row.encoded}\n" for row in rows).encode()


@asynccontextmanager
async def open_outbox(
    state_dir: Path | None,
    *,
    ports: Ports,
    deadlines: Deadlines,
    on_durable: Callable[[OutboxRow], None] = lambda _: None,
    max_bytes: int = MAX_OUTBOX_BYTES,
) -> AsyncGenerator[Outbox]:
    """Open the outbox of a state directory, with what an earlier process left there.

    Exit writes what has been taken and waits for it, at most twice ``session.save``.

    Args:
        state_dir: Where its file lies, under an exclusive lock; None keeps it in memory.
        ports: The seams.
        deadlines: ``session.save`` bounds each access to the disk.
        on_durable: Called when a report may be sent.
        max_bytes: Most bytes of reports that wait.

    Yields:
        The outbox.

    Raises:
        StoreError: If another process has the directory, or the disk refuses.
        DeadlineExceeded: ``session.save``.
    """
    file = None if state_dir is None else OutboxFile(state_dir, ports.disk.sync)
    outbox = Outbox(ports, deadlines, file, on_durable, max_bytes)
    try:
        await outbox.open()
        async with open_services() as services:
            services.start_soon(outbox.serve, name="outbox")
            yield outbox
    finally:
        await outbox.aclose()
