"""Measure how soon a model server sees its connection closed after Ctrl-C.

``python tests/cli/close_latency.py [RUNS]`` prints every figure. Each run is the real
program against a real server: it reads a real file with ``read_file``, streams its answer,
and is interrupted in the middle of it.
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio
from cli_programs import open_program, read_rest, read_until

from semibot.testing import model_answers as answers
from semibot.testing.model_server import ModelServer, RecordedRequest, call_tools, open_model_server


@attrs.frozen
class Measurement:
    """One interrupted run."""

    seconds: float
    """From the signal to the end of the connection, as the server saw it."""
    receipt: str
    """What the program said."""
    code: int
    """How it exited."""


def _behave(request: RecordedRequest) -> answers.Answer:
    """Ask for the file, then answer from it without ever ending."""
    results = [message for message in request.messages if message.role == "tool"]
    if not results:
        return call_tools(("read_file", {"path": "notes.txt"}))
    return answers.Answer(steps=(answers.Text(f"It says: {results[-1].content} "), answers.Hang()))


async def measure(server: ModelServer, workspace: Path) -> Measurement:
    """Interrupt one run and return what was seen."""
    (workspace / "notes.txt").write_text("the sky is green")
    async with open_program(
        "chat", "--local", "--model", "openai:test", "What is in notes.txt?",
        cwd=workspace, OPENAI_BASE_URL=server.base_url, OPENAI_API_KEY="key",
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stderr is not None
        await read_until(program.stdout, "the sky is green")
        connection = server.requests[-1].connection
        sent_at = trio.current_time()
        program.send_signal(signal.SIGINT)
        await connection.peer_closed.wait()
        assert connection.peer_closed_at is not None
        receipt = await read_rest(program.stderr)
        code = await program.wait()
    return Measurement(connection.peer_closed_at - sent_at, receipt, code)


async def measure_many(runs: int) -> Sequence[Measurement]:
    """Interrupt *runs* runs, one after the other."""
    async with open_model_server(_behave) as server:
        found: list[Measurement] = []
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as directory:
                found.append(await measure(server, Path(directory)))
        assert server.problems == []
        return found


def main() -> None:
    """Print the figures."""
    started = time.monotonic()
    found = trio.run(measure_many, int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    figures = sorted(round(item.seconds * 1000, 1) for item in found)
    seconds = time.monotonic() - started
    codes = sorted({item.code for item in found})
    sys.stdout.write(f"closed after (ms): {figures}\n")
    sys.stdout.write(f"median: {statistics.median(figures):.1f} ms; ")
    sys.stdout.write(f"{len(figures)} runs in {seconds:.0f} s; exit codes {codes}\n")
    sys.stdout.write(found[-1].receipt)


if __name__ == "__main__":
    main()
