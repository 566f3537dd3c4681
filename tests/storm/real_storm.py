"""Two hundred VMs with real sockets lose a real host that is killed, and find it again.

The VMs are real channels in this process; the host is a process of its own, ended by SIGKILL
and started again at once, on the same port and the same disk.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio
import trio.testing

FAIRNESS = Path(__file__).parent.parent / "fairness"
if str(FAIRNESS) not in sys.path:
    sys.path.append(str(FAIRNESS))

from host_process import ORG, HostProcess, open_host_process  # noqa: E402
from storm import percentile  # noqa: E402

from semibot.channel import ControlChannel, open_control_channel  # noqa: E402
from semibot.live import live_ports  # noqa: E402
from semibot.ports import ByteStream  # noqa: E402

PATIENCE = 150.0
"""What anything may take on a machine that is busy, in seconds."""

REAL_BOUND = 60.0
"""When all are up again, in seconds after the host listens: the longest delay of theirs, which
is 30 s, one attempt that a busy machine spoils, and another delay."""


@attrs.frozen(kw_only=True)
class RealOutcome:
    """What was measured; seconds since the host was killed."""

    vms: int
    """How many there were."""
    listens_after: float
    """When the host listened again."""
    back: Sequence[float] = attrs.field(repr=False)
    """When each VM was up again, the first one first."""
    dials: Sequence[float] = attrs.field(repr=False)
    """When anybody dialled."""

    @property
    def per_second(self) -> Sequence[int]:
        """How many VMs came back in each second."""
        counts = Counter(int(at) for at in self.back)
        return [counts[second] for second in range(max(counts, default=0) + 1)]

    def percentile(self, percent: int) -> float:
        """Return when so many percent of the VMs were up again."""
        return percentile(self.back, percent)


@attrs.define(eq=False)
class _RealStorm:
    host: HostProcess
    killed_at: float = float("inf")
    dials: list[float] = attrs.field(factory=list[float])
    back: list[float] = attrs.field(factory=list[float])

    async def dial(self, host: str, port: int, *, use_tls: bool) -> ByteStream:
        self.dials.append(time.monotonic())
        return await live_ports().dial(host, port, use_tls=use_tls)

    async def live(self, number: int, *, task_status: trio.TaskStatus[ControlChannel]) -> None:
        """Be one VM."""
        user = f"user-{number}"
        async with open_control_channel(
            f"ws://127.0.0.1:{self.host.port}/ws/vm",
            user_id=user,
            token=self.host.tokens.make_vm_token(user, ORG),
            ports=attrs.evolve(live_ports(), dial=self.dial),
        ) as channel:
            await channel.wait_up()
            task_status.started(channel)
            await trio.sleep_forever()

    async def wait_back(self, channel: ControlChannel) -> None:
        await channel.wait_status(lambda status: status.state == "down")
        await channel.wait_up()
        self.back.append(time.monotonic() - self.killed_at)


async def measure(vms: int, directory: Path) -> RealOutcome:
    """Kill a host that so many VMs are linked to, start it again, and wait for all of them.

    Args:
        vms: How many.
        directory: For the host's files; empty.
    """
    async with open_host_process(directory, users=vms) as host:
        storm = _RealStorm(host)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as living:
                channels = [await living.start(storm.live, number) for number in range(vms)]
                storm.dials.clear()
                async with trio.open_nursery() as waiting:
                    for channel in channels:
                        waiting.start_soon(storm.wait_back, channel)
                    await trio.testing.wait_all_tasks_blocked()
                    storm.killed_at = time.monotonic()
                    await host.kill()
                    await host.start()
                    listens_after = time.monotonic() - storm.killed_at
                living.cancel_scope.cancel()
        return RealOutcome(
            vms=vms,
            listens_after=listens_after,
            back=sorted(storm.back),
            dials=[at - storm.killed_at for at in storm.dials],
        )
