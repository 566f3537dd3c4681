from __future__ import annotations

import json
import os
import sys

import attrs
import pytest
import trio
import trio.testing
from scripted_host import open_host

from semibot.channel import open_outbox
from semibot.channel import outbox as outbox_module
from semibot.config import Deadlines
from semibot.errors import LocalProtocolError, StoreError
from semibot.testing import simulated_ports
from semibot.testing.logs import capture_logs
from semibot.wire.frames import FireAndForget


def open_it(directory, *, seed=0, **options):
    ports = simulated_ports(seed)  # another process makes other ids
    return open_outbox(directory, ports=ports, deadlines=Deadlines(), **options)


def report(number=1, size=0):
    return FireAndForget(
        session_id="s1", method="audit_log", params={"event": str(number), "fill": "x" * size}
    )


def events(outbox):
    return [row.frame.params["event"] for row in outbox.rows]


async def add(outbox, *numbers):
    return [await outbox.add(report(number)) for number in numbers]


async def test_reports_survive_until_they_are_acknowledged(tmp_path, autojump_clock):
    async with open_it(tmp_path / "state") as outbox:
        rows = await add(outbox, 1, 2, 3)
        outbox.acknowledge([rows[1].frame.id, "unknown"])
        assert events(outbox) == ["1", "3"]
        assert outbox.bytes == rows[0].size + rows[2].size
    async with open_it(tmp_path / "state", seed=1) as outbox:
        assert events(outbox) == ["1", "3"]
        assert [row.frame.id for row in outbox.rows] == [rows[0].frame.id, rows[2].frame.id]
        await add(outbox, 4)
    async with open_it(tmp_path / "state") as outbox:
        assert events(outbox) == ["1", "3", "4"]
        outbox.acknowledge([row.frame.id for row in outbox.rows])
    assert (tmp_path / "state" / "outbox.jsonl").read_bytes() == b""
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


async def test_half_a_line_and_nonsense_are_skipped(tmp_path, autojump_clock):
    async with open_it(tmp_path) as outbox:
        await add(outbox, 1, 2)
    path = tmp_path / "outbox.jsonl"
    good = path.read_bytes().splitlines()
    nonsense = [b'{"type":"ack","commands":[]}', b"\xff", b"[1]", b'{"type":"fire_and_forget"}']
    path.write_bytes(b"\n".join([good[0], *nonsense, good[1][:-5]]))
    with capture_logs() as logs:
        async with open_it(tmp_path, seed=1) as outbox:
            assert events(outbox) == ["1"]
            await add(outbox, 3)
    assert sum("makes no sense" in str(entry["event"]) for entry in logs) == 5
    async with open_it(tmp_path) as outbox:
        assert events(outbox) == ["1", "3"]


async def test_a_directory_is_for_one_process(tmp_path, autojump_clock):
    async with open_it(tmp_path):
        with pytest.raises(StoreError, match="in use by another VM"):
            async with open_it(tmp_path):
                pass
    async with open_it(tmp_path):
        pass


async def test_a_disk_that_refuses_is_told_to_whoever_reports(tmp_path, autojump_clock):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open the outbox"):
        async with open_it(tmp_path / "file"):
            pass
    async with open_it(tmp_path) as outbox:
        await add(outbox, 1)
        file = outbox._file._file
        really = os.dup(file.fileno())
        os.dup2(os.open("/dev/full", os.O_WRONLY), file.fileno())
        with pytest.raises(StoreError, match="cannot write the outbox"):
            await add(outbox, 2)
        assert events(outbox) == ["1"]
        os.dup2(really, file.fileno())
        os.close(really)
        await add(outbox, 3)
    async with open_it(tmp_path) as outbox:
        assert events(outbox) == ["1", "3"]


async def test_a_disk_that_hangs_is_given_up_after_session_save(tmp_path, autojump_clock):
    ports = simulated_ports()

    class Stuck:
        is_stuck = False

        async def run_sync(self, fn, *args, **options):
            if self.is_stuck:
                await trio.sleep_forever()
            return await ports.threads.run_sync(fn, *args, **options)

    stuck = Stuck()
    async with open_outbox(
        tmp_path, ports=attrs.evolve(ports, threads=stuck), deadlines=Deadlines()
    ) as outbox:
        stuck.is_stuck = True
        with pytest.raises(StoreError, match=r"session\.save \(5 s\) exceeded"):
            await add(outbox, 1)
        assert outbox.rows == ()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, outbox, 2)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    outbox._file.close()
    with pytest.raises(StoreError, match="closed"):
        await add(outbox, 3)


async def test_what_comes_together_is_written_together(tmp_path, autojump_clock):
    writes = []
    ports = simulated_ports()

    class Counting:
        async def run_sync(self, fn, *args, **options):
            writes.append(fn.__name__)
            await trio.sleep(1)
            return await ports.threads.run_sync(fn, *args, **options)

    async with open_outbox(
        tmp_path, ports=attrs.evolve(ports, threads=Counting()), deadlines=Deadlines()
    ) as outbox:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(add, outbox, number)
        assert writes.count("append") == 2
        assert len(outbox.rows) == 100


async def test_a_file_of_acknowledged_reports_is_written_anew(tmp_path, autojump_clock):
    path = tmp_path / "outbox.jsonl"
    async with open_it(tmp_path) as outbox:
        keep = await outbox.add(report(0))
        for number in range(1, 20):
            row = await outbox.add(report(number, size=200_000))
            outbox.acknowledge([row.frame.id])
            assert path.stat().st_size < outbox_module.COMPACT_ABOVE + 2 * row.size
        assert events(outbox) == ["0"]
        async with trio.open_nursery() as nursery:
            for number in range(1, 260):
                nursery.start_soon(add, outbox, number)
        before = path.stat().st_size
        outbox.acknowledge([row.frame.id for row in outbox.rows if row is not keep])
        await trio.testing.wait_all_tasks_blocked()
        assert path.stat().st_size != before
    async with open_it(tmp_path) as outbox:
        assert [row.frame.id for row in outbox.rows] == [keep.frame.id]


@pytest.mark.parametrize("is_durable", [True, False])
async def test_the_outbox_is_bounded(is_durable, tmp_path, autojump_clock):
    async with open_it(tmp_path if is_durable else None, max_bytes=1000) as outbox:
        row = await outbox.add(report(1, size=500))
        with pytest.raises(StoreError, match="full"):
            await outbox.add(report(2, size=500))
        with pytest.raises(LocalProtocolError):
            await outbox.add(report(2, size=11 * 2**20))
        outbox.acknowledge([row.frame.id])
        assert outbox.bytes == 0
        await outbox.add(report(3, size=500))


async def test_reports_are_sent_in_order_until_the_host_has_them(tmp_path, autojump_clock):
    async with open_host() as host:
        async with host.open_channel(state_dir=tmp_path) as channel:
            for number in (1, 2):
                await channel.fire_and_forget("s1", "audit_log", {"event": str(number)})
            link = await host.link()
            first = await link.receive_many(2)
            await channel.fire_and_forget("s1", "audit_log", {"event": "3"})
            third = await link.receive()
            await link.drop()
            link = await host.link()
            again = await link.receive_many(3)
            assert again == [*first, third]
            assert [frame["params"]["event"] for frame in again] == ["1", "2", "3"]
            assert len({frame["id"] for frame in again}) == 3
            await link.send({"type": "ack", "sessions": {}, "ids": [again[0]["id"]]})
            refused = {"type": "error", "id": again[1]["id"], "code": "BAD_PARAMS", "message": "x"}
            await link.send(refused)
            await trio.testing.wait_all_tasks_blocked()
            assert channel.statistics().outbox_rows == 1
        async with host.open_channel(state_dir=tmp_path) as channel:
            link = await host.accept()  # of the first channel, or the second
            auth = await link.introduce()
            await link.settle()
            assert auth["dial"] == 1
            assert await link.receive() == again[2]


async def test_level_1_gets_reports_without_ids_once(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        await channel.fire_and_forget("s1", "audit_log", {"event": "1"})
        link = await host.accept()
        await link.introduce(level=1)
        assert await link.receive() == {
            "type": "fire_and_forget",
            "session_id": "s1",
            "method": "audit_log",
            "params": {"event": "1"},
        }
        await trio.testing.wait_all_tasks_blocked()
        assert channel.statistics().outbox_rows == 0


async def test_snapshots_go_with_their_session_and_only_the_newest_waits(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        channel.open_lane("s1", 1, 1)
        for number in (1, 2):
            await channel.fire_and_forget("s1", "snapshot_sync", {"covers_seq": number})
        await channel.fire_and_forget("nobody", "snapshot_sync", {"covers_seq": 3})
        link = await host.link()
        frames = await link.collect(1)
        assert [frame["params"]["covers_seq"] for frame in frames] == [2]
        await link.drop()
        link = await host.link()
        assert await link.receive() == frames[0]
        await link.send({"type": "ack", "sessions": {}, "ids": [frames[0]["id"]]})
        await trio.testing.wait_all_tasks_blocked()
        await link.drop()
        link = await host.link()
        assert await link.collect(1) == []


PROGRAM = """
import os, sys, trio
from pathlib import Path
from semibot.channel import open_outbox
from semibot.config import Deadlines
from semibot.live import live_ports
from semibot.wire.frames import FireAndForget

async def main():
    async with open_outbox(Path(sys.argv[1]), ports=live_ports(), deadlines=Deadlines()) as outbox:
        for number in range(5):
            row = await outbox.add(
                FireAndForget(session_id="s1", method="audit_log", params={"event": str(number)})
            )
            print(row.frame.id, flush=True)
        outbox.acknowledge([row.frame.id])
        os._exit(9)

trio.run(main)
"""


async def test_a_crash_loses_no_report_and_at_most_repeats_one(tmp_path):
    run = await trio.run_process(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_stdout=True, check=False
    )
    assert run.returncode == 9
    printed = run.stdout.decode().split()
    async with open_it(tmp_path) as outbox:
        assert [row.frame.id for row in outbox.rows] == printed
    lines = (tmp_path / "outbox.jsonl").read_text().splitlines()
    assert all(json.loads(line)["type"] == "fire_and_forget" for line in lines)
