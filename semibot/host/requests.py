"""Answer what VMs ask: skills, memories, agents, sessions (protocol section 4, "Requests").

Theory of operation. A request outlives the link that brought it: its task belongs to the
host, and its answer goes out on the link that the VM has when it is ready, or waits for the
VM's ``resume``. An id is answered once: it is kept by (user, id) for five minutes, so that a
repeat, on this connection or the next, gets the same answer and nothing is done again.

Bounds: :data:`MAX_RUNNING` requests of one user at a time, :data:`MAX_KEPT` answers and
:data:`MAX_KEPT_BYTES` of them per user; the oldest answers go first, and what has gone is
``lost``, which a VM may ask again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.errors import DeadlineExceeded, LocalProtocolError, RequestFailed, StoreError
from semibot.lifetimes import deadline
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.store.base import AgentRow, SessionRow, Store
from semibot.wire.codec import JsonObject, JsonValue, dump_json
from semibot.wire.frames import (
    MAX_FRAME_BYTES,
    MEMORY_SESSION,
    ErrorDetail,
    FromHost,
    Request,
    RequestStatus,
    Response,
)
from semibot.workspace.local_plane import DEFAULT_TOP_K, MAX_TOP_K
from semibot.workspace.skills import CURRENT_VERSION, Skill, read_package, read_skills

from .metrics import Metrics

log: Final = get_logger(__name__)

KEPT_SECONDS: Final = 300.0
"""How long an answer is kept."""

MAX_RUNNING: Final = 64
"""Requests of one user that may be under way."""

MAX_KEPT: Final = 1024
"""Answers that are kept for one user."""

MAX_KEPT_BYTES: Final = 16 * 1024 * 1024
"""Bytes of answers that are kept for one user."""

LEGACY_WAIT: Final = 5.0
"""How long the answer to a level 1 ``resume`` waits for requests under way, in seconds."""

METHODS: Final = frozenset(
    {"get_skill_package", "memory_search", "mcp_call", "get_config", "get_session"}
)
"""What may be asked; the names under which durations are counted."""


class Asker(Protocol):
    """The link that an answer goes to."""

    @property
    def user_id(self) -> str:
        """Whose VM it is."""
        ...

    @property
    def org_id(self) -> str:
        """The user's organization."""
        ...

    def send(self, frame: FromHost) -> bool:
        """Queue a frame; never waits."""
        ...


@final
@attrs.define(eq=False)
class _Entry:
    """One request, under way or answered."""

    request: Request
    asker: Asker
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    response: Response | None = None
    size: int = 0
    answered_at: float = 0.0
    done: trio.Event = attrs.field(factory=trio.Event)


@final
@attrs.define(eq=False)
class _Book:
    """The requests of one user; answered ones in the order of their answers."""

    running: dict[str, _Entry] = attrs.field(factory=dict[str, _Entry])
    answered: dict[str, _Entry] = attrs.field(factory=dict[str, _Entry])
    kept_bytes: int = 0

    def keep(self, entry: _Entry) -> None:
        """Keep an answer, and forget the oldest beyond the bounds."""
        self.answered[entry.request.id] = entry
        self.kept_bytes += entry.size
        while len(self.answered) > MAX_KEPT or self.kept_bytes > MAX_KEPT_BYTES:
            self._forget_oldest()

    def prune(self, now: float) -> None:
        """Forget answers that were kept long enough."""
        while self.answered:
            oldest = next(iter(self.answered.values()))
            if now - oldest.answered_at < KEPT_SECONDS:
                return
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        entry = self.answered.pop(next(iter(self.answered)))
        self.kept_bytes -= entry.size


@final
class Requests:
    """Answers requests. Its service is :meth:`serve`.

    Args:
        store: Where the answers are.
        settings: ``skills_dir`` is where skills are.
        ports: The seams.
        deadlines: ``request_limit`` bounds every request.
        metrics: Counts durations.
    """

    def __init__(
        self,
        *,
        store: Store,
        settings: HostSettings,
        ports: Ports,
        deadlines: Deadlines,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._skills_dir = settings.skills_dir or settings.data_dir / "skills"
        self._ports = ports
        self._deadlines = deadlines
        self._metrics = metrics
        self._books: dict[str, _Book] = {}
        self._wanted: list[_Entry] = []
        self._work = trio.lowlevel.ParkingLot()

    # --- what links say ---------------------------------------------------------------

    def ask(self, asker: Asker, request: Request) -> None:
        """Answer a request on *asker*, now or later; never waits.

        A repeat of an id is not carried out again.
        """
        book = self._book(asker.user_id)
        known = book.running.get(request.id)
        if known is not None:
            known.asker = asker
            return
        answered = book.answered.get(request.id)
        if answered is not None and answered.response is not None:
            asker.send(answered.response)
            return
        if len(book.running) >= MAX_RUNNING:
            busy = f"{MAX_RUNNING} requests are under way; wait for one of them"
            asker.send(_failure(request.id, "REQUEST_FAILED", busy))
            return
        entry = book.running[request.id] = _Entry(request, asker)
        self._wanted.append(entry)
        self._work.unpark_all()

    def cancel(self, user_id: str, request_id: str) -> None:
        """Stop a request: nobody waits for its answer any more."""
        entry = self._book(user_id).running.pop(request_id, None)
        if entry is not None:
            entry.scope.cancel("request_cancel")

    def resume(self, asker: Asker, request_ids: Sequence[str]) -> Mapping[str, RequestStatus]:
        """Return what became of requests; answers of those under way go to *asker*.

        Args:
            asker: The VM's new link.
            request_ids: The requests that the VM still waits for.
        """
        book = self._book(asker.user_id)
        found: dict[str, RequestStatus] = {}
        for request_id in request_ids:
            running, answered = book.running.get(request_id), book.answered.get(request_id)
            if running is not None:
                running.asker = asker
                found[request_id] = RequestStatus(status="pending")
            elif answered is not None and answered.response is not None:
                found[request_id] = _status(answered.response)
            else:
                found[request_id] = RequestStatus(status="lost")
        return found

    def send_again(self, asker: Asker, request_ids: Sequence[str]) -> None:
        """Send the answers that are kept of some requests, each in a frame of its own."""
        book = self._book(asker.user_id)
        for request_id in request_ids:
            entry = book.answered.get(request_id)
            if entry is not None and entry.response is not None and entry.response.error is None:
                asker.send(entry.response)

    async def wait_answered(self, user_id: str, request_ids: Sequence[str]) -> None:
        """Wait until none of some requests is under way; at most :data:`LEGACY_WAIT`."""
        book = self._book(user_id)
        running = [book.running[each] for each in request_ids if each in book.running]
        with trio.move_on_after(LEGACY_WAIT):  # noqa: ASYNC912 - maybe nothing to wait for
            for entry in running:
                await entry.done.wait()

    def _book(self, user_id: str) -> _Book:
        book = self._books.setdefault(user_id, _Book())
        book.prune(trio.current_time())
        return book

    # --- answering --------------------------------------------------------------------

    async def serve(self) -> None:
        """Carry out requests, each in a task of its own, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._wanted:
                    nursery.start_soon(self._run, self._wanted.pop(0))
                # Answers that nobody asks for again go without anybody's help.
                with trio.move_on_after(KEPT_SECONDS):
                    await self._work.park()
                self._prune()

    def _prune(self) -> None:
        now = trio.current_time()
        for user_id, book in tuple(self._books.items()):
            book.prune(now)
            if not book.running and not book.answered:
                del self._books[user_id]

    async def _run(self, entry: _Entry) -> None:
        request, started_at = entry.request, trio.current_time()
        user_id = entry.asker.user_id
        with entry.scope:
            response = await self._respond(entry)
            entry.size = _size_of(response)
            if entry.size > MAX_FRAME_BYTES:
                response = _failure(request.id, "REQUEST_FAILED", "the answer is too big")
                entry.size = _size_of(response)
            entry.response = response
        entry.done.set()
        method = request.method if request.method in METHODS else "other"
        self._metrics.ws_request_duration_seconds.observe(
            trio.current_time() - started_at, method=method
        )
        book = self._book(user_id)
        if entry.response is None or book.running.get(request.id) is not entry:
            return  # cancelled, and perhaps asked again under the same id
        del book.running[request.id]
        entry.request = attrs.evolve(request, method=method, params={})  # they may be 10 MiB
        entry.answered_at = trio.current_time()
        book.keep(entry)
        entry.asker.send(entry.response)

    async def _respond(self, entry: _Entry) -> Response:
        request = entry.request
        limit, name = self._deadlines.request_limit, "request.limit"
        if request.deadline_ms is not None and request.deadline_ms / 1000 < limit:
            limit, name = max(0.0, request.deadline_ms / 1000), "deadline_ms"
        try:
            with deadline(name, limit):
                result = await self._answer(request, entry.asker)
            return Response(id=request.id, result=result, error=None)
        except DeadlineExceeded as exc:
            return _failure(request.id, "DEADLINE_EXCEEDED", str(exc))
        except RequestFailed as exc:
            return _failure(request.id, exc.code, exc.message)
        except (StoreError, OSError) as exc:
            log.warning("request failed", method=request.method, error=repr(exc))
            return _failure(request.id, "REQUEST_FAILED", "the host could not look it up")
        except Exception as exc:
            log.exception("request failed", method=request.method)
            return _failure(request.id, "REQUEST_FAILED", f"the host failed: {type(exc).__name__}")

    async def _answer(self, request: Request, asker: Asker) -> JsonValue:
        params = request.params
        match request.method:
            case "get_skill_package":
                return await self._skill_package(params)
            case "memory_search":
                return await self._memories(asker.user_id, params)
            case "get_config":
                return await self._config(asker.org_id, params)
            case "get_session":
                return await self._session(asker, request.session_id, params)
            case "mcp_call":
                raise RequestFailed("UNSUPPORTED_METHOD", "this host calls no MCP servers")
            case _:
                raise RequestFailed("UNSUPPORTED_METHOD", "this host does not know the method")

    async def _skill_package(self, params: JsonObject) -> JsonObject:
        skill_id, version = _text(params, "skill_id"), _text_or_none(params, "version")
        package = await self._ports.threads.run_sync(
            _read_package,
            self._skills_dir,
            skill_id,
            version,
            limiter="files",
            abandon_on_cancel=True,
        )
        return {"package": package}

    async def _memories(self, user_id: str, params: JsonObject) -> JsonObject:
        query = _text(params, "query")
        top_k = params.get("top_k", DEFAULT_TOP_K)
        if type(top_k) is not int:
            raise RequestFailed("BAD_PARAMS", f"top_k must be an integer from 1 to {MAX_TOP_K}")
        if not query.strip():
            return {"results": []}
        hits = await self._store.search_memories(user_id, query, max(1, min(top_k, MAX_TOP_K)))
        return {
            "results": [
                {"content": hit.content, "score": hit.score, "metadata": hit.metadata}
                for hit in hits
            ]
        }

    async def _config(self, org_id: str, params: JsonObject) -> JsonObject:
        agent = await self._store.get_agent(org_id, _text(params, "agent_id"))
        if agent is None:
            raise RequestFailed("NOT_FOUND", "there is no such agent")
        return _agent_object(agent)

    async def _session(self, asker: Asker, session_id: str, params: JsonObject) -> JsonObject:
        wanted = _text_or_none(params, "session_id") or session_id
        session = None
        if wanted != MEMORY_SESSION:
            session = await self._store.get_session(asker.user_id, wanted)
        if session is None:  # not the user's: the same answer
            raise RequestFailed("NOT_FOUND", "there is no such session")
        agent = None
        if session.agent_id is not None:
            agent = await self._store.get_agent(session.org_id, session.agent_id)
        return {
            "session": _session_object(session),
            "agent": None if agent is None else _agent_object(agent),
        }


# --- answers as JSON ------------------------------------------------------------------


def _failure(request_id: str, code: str, message: str) -> Response:
    return Response(id=request_id, result=None, error=ErrorDetail(code=code, message=message))


def _status(response: Response) -> RequestStatus:
    if response.error is not None:
        return RequestStatus(status="failed", error=response.error)
    return RequestStatus(status="completed", data=response.result)


def _size_of(response: Response) -> int:
    """Return about the bytes that an answer takes; more than any frame if JSON cannot say it."""
    try:
        return len(dump_json(response.result).encode()) + 256
    except LocalProtocolError:
        return MAX_FRAME_BYTES + 1


def _text(params: JsonObject, name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str):
        raise RequestFailed("BAD_PARAMS", f"{name} must be a string")
    return value


def _text_or_none(params: JsonObject, name: str) -> str | None:
    return None if params.get(name) is None else _text(params, name)


def _read_package(directory: Path, skill_id: str, version: str | None) -> JsonObject | None:
    """Return a skill's package, or None if there is none of that id and version; blocking."""
    skill = next((each for each in read_skills(directory) if each.id == skill_id), None)
    if skill is None or version not in {None, "latest", CURRENT_VERSION, skill.version}:
        return None
    return read_package(skill)


def skill_index(directory: Path) -> tuple[JsonObject, ...]:
    """Return the skills on offer as a ``skill_index``; blocking.

    Args:
        directory: Holds one directory per skill.
    """
    skills: tuple[Skill, ...] = read_skills(directory)
    return tuple(skill.index_entry() for skill in skills)


def _agent_object(agent: AgentRow) -> JsonObject:
    return {
        "id": agent.id,
        "org_id": agent.org_id,
        "name": agent.name,
        "runtime_type": agent.runtime_type,
        "agent_config": agent.agent_config,
        "openclaw_config": agent.openclaw_config,
    }


def _session_object(session: SessionRow) -> JsonObject:
    return {
        "id": session.id,
        "user_id": session.user_id,
        "org_id": session.org_id,
        "agent_id": session.agent_id,
        "title": session.title,
        "runtime_type": session.runtime_type,
        "openclaw_config": session.openclaw_config,
        "created_at": session.created_at,
        "updated_at": session.updated_at,
    }
