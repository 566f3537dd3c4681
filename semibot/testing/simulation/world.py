"""The state of one simulation: what its parts share, and where they say what they find."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, final

import attrs
import trio

from semibot.config.settings import HostSettings
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.session import AdapterFactory
from semibot.wire.sse import EventId

from .database import Rows, rows_of
from .happenings import Dialled, Happening, Posted, Read, RunBegins, RunRests, Said
from .invariants import watching
from .links import Link
from .lives import HOST, Life, SteppingClock
from .network import LINK, Connection, Network
from .people import Speaker, draw_message
from .pipes import Machine
from .planes import KEY, host_settings
from .processes import Processes
from .readers import Reader
from .talker import talker_of
from .trace import Trace

USERS: Final = ("ann", "bob")

MOST_HAPPENINGS: Final = 400_000
"""What may happen in a simulation, and 200 more for every faulty second."""

TOKEN_AGE: Final = 3 * 3600.0
"""How old tokens are at the beginning, in seconds: more than clocks may be off."""


@attrs.frozen(kw_only=True)
class Plan:
    """What is simulated."""

    seed: int
    """Decides everything."""
    faulty: float
    """How long things go wrong, in seconds."""
    faults: frozenset[str] | None = None
    """Kinds of faults that may happen; None means all."""
    without: frozenset[str] = frozenset()
    """Invariants that are not looked at."""
    adapter: Callable[[Life], AdapterFactory] = talker_of
    """What runs in the VMs."""
    draw_message: Callable[[random.Random], str] = draw_message
    """What people say."""
    last_message: str | None = "say 40 0.01 8 -"
    """What is said in the end, and has to be answered; None draws it, too."""
    check: Callable[[str, str], str | None] | None = None
    """Returns what is wrong with the answer to a question."""
    speakers: int | None = None
    """How many people talk; drawn by default."""


@final
class World:
    """One simulation.

    Args:
        plan: What is simulated.
        directory: Where the disks of its processes are.
        command: Shows this seed again.
    """

    def __init__(self, plan: Plan, directory: Path, command: str) -> None:
        self.plan: Final = plan
        """What is simulated."""
        self.seed: Final = plan.seed
        """Decides everything."""
        self.command: Final = command
        """Shows this seed again."""
        # Reproducible on purpose, here and below.
        self.random: Final = random.Random(f"world {plan.seed}")  # noqa: S311
        """What faults draw from."""
        draw = self.random
        self.users: Final = USERS[: draw.choice([1, 1, 2])]
        """Whose VMs there are."""
        self.lost_after: Final = draw.choice([120.0, 120.0, 35.0])
        """``vm.lost_after``, in seconds."""
        self.max_open: Final = draw.choice([64, 1])
        """How many sessions a VM holds at once."""
        self.disk_delay: Final = draw.choice([0.002, 0.02, 0.2])
        """How long a job in a thread usually takes, in seconds."""
        self.trace: Final = Trace(MOST_HAPPENINGS + int(200 * plan.faulty), self.give_up)
        """What happens."""
        self.network: Final = Network(
            plan.seed, self.trace, on_connect=self._on_connect, on_dial=self._on_dial
        )
        """All connections."""
        self.processes: Final = Processes(self, directory, (HOST, *(f"vm-{u}" for u in self.users)))
        """The host and the VMs."""
        self.adapters: Final = {"graph": plan.adapter}
        """What makes the adapters of a VM, by runtime."""
        self.port_changes: Final[list[Callable[[Life, Ports], Ports]]] = []
        """What faults change about the ports of a life."""
        self.expected_errors: Final = {"store cannot write"}
        """Events that may be logged as errors."""
        self.draw_message: Final = plan.draw_message
        """What people say."""
        self.sessions: Final[dict[str, str]] = {}
        """Every session there was, and its user."""
        self.deleted: Final[set[str]] = set()
        """Those that are deleted."""
        self.maybe_deleted: Final[set[str]] = set()
        """Those that somebody tried to delete."""
        self.readers: Final[list[Reader]] = []
        """Everybody who follows a session."""
        self.speakers: Final[list[Speaker]] = []
        """Everybody who talks."""
        self.asked_reports: Final[set[str]] = set()
        """What VMs were asked to report, whether they could keep it or not."""
        self.hits: Final[Counter[str]] = Counter()
        """How often each kind of fault hit."""
        self.scope: Final = trio.CancelScope()
        """All of it."""
        self.found: Final[list[tuple[str, float, str]]] = []
        """Violations: invariant, time and text."""
        self._lives: dict[Machine, Life] = {}
        self._links: list[Link] = []
        self._runs: dict[str, list[str]] = {}
        self._running: dict[str, Life] = {}
        self._shown: set[tuple[str, EventId]] = set()
        self._numbers = 0
        self._minted: dict[str, str] = {}
        self._minting = SteppingClock()
        self._minting.offset = -TOKEN_AGE
        self._tokens = Tokens(KEY, self._minting, 12 * 3600.0)
        self._watching = watching(self, plan.without)
        begin, begun = trio.open_memory_channel[Callable[[], Awaitable[None]]](1000)
        self._begin = begin
        self.begun: trio.MemoryReceiveChannel[Callable[[], Awaitable[None]]] = begun

    # --- what is found ----------------------------------------------------------------

    def violate(self, invariant: str, text: str, exc: BaseException | None = None) -> None:
        """Take note of something that must never be."""
        if invariant in self.plan.without:
            return
        if exc is not None:
            text += "\n" + "".join(traceback.format_exception(exc))
        self.found.append((invariant, trio.current_time(), text))
        self.trace.note("violation", invariant)
        self.trace.remark("violation", invariant, text)

    def give_up(self, reason: str, promise: str = "comes_to_an_end") -> None:
        """End the simulation, because it passes the cap of a promise."""
        if not self.scope.cancel_called:
            self.violate(promise, reason)
            self.scope.cancel(reason)

    def hit(self, kind: str) -> None:
        """Take note that a fault has hit."""
        self.hits[kind] += 1
        self.trace.note("hit", kind)

    def tell(self, what: Happening) -> None:
        """Tell everybody who wants to know that something happens."""
        match what:
            case Read(session_id=session_id, id=event_id):
                self._shown.add((session_id, event_id))
            case Posted(session_id=session_id, run_id=run_id):
                runs = self._runs.setdefault(session_id, [])
                if run_id not in runs:
                    runs.append(run_id)
            case RunBegins(run_id=run_id, life=life):
                self.trace.note("handle", run_id)
                self._running[run_id] = life
            case RunRests(run_id=run_id, life=life):
                if self._running.get(run_id) is life:
                    del self._running[run_id]
            case _:
                pass
        for invariant in self._watching.get(type(what), ()):
            invariant.take(what)

    def begin(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run something in a task that lives as long as the simulation, or less."""
        self._begin.send_nowait(function)

    # --- settings ---------------------------------------------------------------------

    def host_settings(self, life: Life) -> HostSettings:
        """Return how a host is to run."""
        return host_settings(life.directory, self.lost_after)

    def vm_token(self, life: Life) -> Secret:
        """Return the token that a VM starts with."""
        return Secret(self._tokens.make_vm_token(life.user, "org"))

    def vm_ticket(self, life: Life) -> Secret | None:
        """Return the ticket that a VM starts with; those that no host starts have none."""
        return None

    def user_token(self, user: str) -> str:
        """Return a browser's token."""
        if user not in self._minted:
            self._minted[user] = self._tokens.make_user_token(user, "org")
        return self._minted[user]

    def lend_token(self, user: str, token: str) -> None:
        """Let the browsers of *user* use *token* from now on."""
        self._minted[user] = token

    # --- who there is -----------------------------------------------------------------

    def note_life(self, life: Life) -> None:
        """Take note of a process."""
        self._lives[life.machine] = life

    def life_of(self, machine: Machine) -> Life | None:
        """Return the process behind a machine; None for browsers and strangers."""
        return self._lives.get(machine)

    def kind_of(self, machine: Machine) -> str:
        """Return the kind of a machine's process; empty for browsers and strangers."""
        life = self._lives.get(machine)
        return "" if life is None else life.kind

    def draw_life(self) -> Life | None:
        """Return a process that runs, or None if none does."""
        everyone = self.processes.everyone
        return self.random.choice(everyone) if everyone else None

    def draw_vm(self) -> Life:
        """Return one of the VMs."""
        return self.random.choice(self.processes.vms())

    def is_disk_excused(self, life: Life) -> bool:
        """Return whether a disk has failed lately: what waited for it may have, too."""
        return trio.current_time() < life.drive.bad_until + 20.0

    @property
    def links(self) -> list[Link]:
        """The open connections of VMs, the oldest first."""
        self._links = [each for each in self._links if each.connection.is_open]
        return self._links

    def _on_connect(self, connection: Connection) -> None:
        if connection.kind == LINK:
            self._links.append(
                Link(
                    connection,
                    lambda link, is_from_host, frames: self.tell(
                        Said(link=link, is_from_host=is_from_host, frames=frames)
                    ),
                )
            )

    def _on_dial(self, machine: Machine, kind: str) -> None:
        if kind == LINK:
            self.tell(Dialled(machine=machine.name))

    # --- what there is ----------------------------------------------------------------

    def next_number(self) -> int:
        """Return a number that was not used before."""
        self._numbers += 1
        return self._numbers

    def runs_of(self, session_id: str) -> list[str]:
        """Return the runs that somebody knows of."""
        return self._runs.get(session_id, [])

    def busy_speakers(self) -> list[Speaker]:
        """Return those in whose conversation an adapter works."""
        busy = {
            session_id
            for session_id, runs in self._runs.items()
            if any(run_id in self._running for run_id in runs)
        }
        return [speaker for speaker in self.speakers if speaker.session_id in busy]

    def add_reader(self, user: str, session_id: str) -> Reader:
        """Let somebody follow a session."""
        reader = Reader(self, user, session_id, f"reader{len(self.readers)}")
        self.readers.append(reader)
        return reader

    def close(self) -> None:
        """Forget the disks; nothing runs any more."""
        self.processes.remove_disks()

    def rows(self, sql: str, *values: str) -> Rows:
        """Return the answer to a question to the newest host's database."""
        return rows_of(self.processes.directory_of(HOST), sql, *values)

    def sizes(self) -> tuple[int, int, int, int]:
        """Return how many sessions, runs, events and coming and going readers there were."""
        runs = sum(map(len, self._runs.values()))
        readers = sum(reader.visits > 0 for reader in self.readers)
        return len(self.sessions), runs, len(self._shown), readers
