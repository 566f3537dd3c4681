from __future__ import annotations

import threading

import pytest
import trio
from gate_kit import wait_until

from semibot.errors import ToolError
from semibot.live import LiveThreads
from semibot.tools import Ledger
from semibot.tools.threads import BlockingCall, Workers


class LateThreads:
    """Threads that begin only when somebody says so, like those of a busy machine."""

    def __init__(self):
        self.begin = None

    async def run_sync(self, fn, *args, limiter, abandon_on_cancel=False, on_exit=None):
        def begin():
            try:
                return fn(*args)
            finally:
                on_exit()

        self.begin = begin
        await trio.sleep_forever()


def new_call(ledger):
    return BlockingCall(ledger.begin("thread", "call-1", "work"))


async def test_a_call_that_was_given_up_before_it_began_never_runs():
    threads, ledger, ran = LateThreads(), Ledger(), []
    call = new_call(ledger)
    with trio.move_on_after(0):
        await Workers(threads).run(call, "tools", ran.append, 1)
    assert ledger.under_way() == ()
    with pytest.raises(ToolError, match="given up"):
        threads.begin()
    assert ran == []
    assert not call.has_started


async def test_a_result_comes_back_and_an_error_too():
    workers, ledger = Workers(LiveThreads()), Ledger()
    assert await workers.run(new_call(ledger), "tools", abs, -1) == 1
    with pytest.raises(ZeroDivisionError):
        await workers.run(new_call(ledger), "tools", divmod, 1, 0)
    assert ledger.under_way() == ()
    assert workers.abandoned("tools") == 0


async def test_each_limiter_has_a_capacity_of_its_own():
    release, ledger = threading.Event(), Ledger()
    workers = Workers(LiveThreads(), {"tools": 1, "files": 1})
    with trio.move_on_after(0.02):
        await workers.run(new_call(ledger), "tools", release.wait, 10)
    assert workers.abandoned("tools") == 1
    refused = new_call(ledger)
    with pytest.raises(ToolError, match="tool capacity: 1 earlier calls"):
        await workers.run(refused, "tools", abs, -1)
    assert not refused.activity.is_open
    assert await workers.run(new_call(ledger), "files", abs, -1) == 1
    release.set()
    await wait_until(lambda: workers.abandoned("tools") == 0)
    assert await workers.run(new_call(ledger), "tools", abs, -1) == 1
