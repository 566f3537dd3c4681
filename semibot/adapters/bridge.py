"""Drive runs through a bridge: a child process that speaks protocol section 8.

A bridge of level 1 cannot tell runs apart. After a cancel its late output would be taken
for the next run's, so it is stopped, and the next message starts a new one that continues
from the history. A bridge whose ``ready`` lists the feature ``run_id`` lives on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, cast, final

import attrs
import trio
from typing_extensions import override

from semibot.errors import AdapterError, LocalProtocolError, UsageError
from semibot.lifetimes import grace, open_services
from semibot.session import ActiveRun, Adapter, AdapterContext
from semibot.tools.ledger import Activity
from semibot.wire.bridge import (
    EXECUTION_ERROR,
    PROTOCOL_ERROR,
    START_KEYS,
    BridgeComplete,
    BridgeError,
    BridgeEvent,
    Cancel,
    ConfigUpdate,
    CpFireAndForget,
    UserMessage,
    encode_frame,
)
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject, JsonValue, dump_json, unstructure
from semibot.wire.events import TextChunk, Usage
from semibot.wire.jsonl import MAX_LINE_BYTES
from semibot.workspace.skills import usable_entries

from .bridge_child import BridgeChild
from .bridge_turn import BridgeCounts, Turn

INHERITED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
        *("OPENAI_BASE_URL", "SEMIBOT_MODEL"),
    }
)
"""Environment variables that a bridge inherits. Keys of model providers are not among them."""

INHERITED_PREFIXES: Final = ("LC_", "OPENCLAW_")
"""Beginnings of the names of further variables that a bridge inherits."""

MAX_REPORTED_TOKENS: Final = 2**53
"""Most tokens that one report of a bridge counts for."""


@attrs.frozen(kw_only=True)
class BridgeStatistics:
    """What a bridge adapter has seen, at one moment."""

    pid: int | None
    """Process id of the child, or None if there is none."""
    starts: int
    """Children that were started, or could not be."""
    dropped_events: int
    """Events that belonged to no active run."""
    skipped_lines: int
    """Lines that said nothing a bridge may say."""


def _as_command(command: Sequence[str]) -> tuple[str, ...]:
    if isinstance(command, str):
        raise TypeError("command must be a sequence of words, not one string")
    if not command:
        raise ValueError("command must name a program")
    return tuple(command)


@final
@attrs.frozen
class BridgeAgent:
    """An adapter factory: runs *command* as a bridge and lets it drive the runs.

    The child is started in the background when the session opens, in the workspace, and
    again by the first message after it ended. It is gone when the session is closed.
    """

    command: tuple[str, ...] = attrs.field(converter=_as_command)
    """Program and arguments; never a shell."""
    environment: Mapping[str, str] | None = attrs.field(default=None, kw_only=True, repr=False)
    """Variables that the child gets beside :data:`INHERITED`."""
    configured_by: str = attrs.field(default="the command of BridgeAgent", kw_only=True)
    """What an error tells the operator to check if the child cannot be started."""

    def __call__(self, context: AdapterContext) -> AbstractAsyncContextManager[Adapter]:
        """Return the adapter's scope.

        Leaving it stops the child: a ``stop`` line and the end of its input, SIGTERM to
        its tree after ``child.eof_grace``, SIGKILL after ``child.term_grace``.
        """
        return _open_bridge(self, context)


@asynccontextmanager
async def _open_bridge(agent: BridgeAgent, context: AdapterContext) -> AsyncGenerator[Adapter]:
    adapter = BridgeAdapter(agent, context)
    # Not in context.nursery: the child must outlive a cancelled body, to be told of it.
    async with open_services() as services:
        services.start_soon(adapter.supervise, name="bridge supervisor")
        yield adapter


@final
class BridgeAdapter(Adapter):
    """The adapter of one session. Made by calling a :class:`BridgeAgent`."""

    def __init__(self, agent: BridgeAgent, context: AdapterContext) -> None:
        self._agent = agent
        self._context = context
        self._environment = {
            **{
                name: value
                for name, value in context.ports.environment.items()
                if name in INHERITED or name.startswith(INHERITED_PREFIXES)
            },
            **(agent.environment or {}),
        }
        self._payload: JsonObject = {
            "runtime_type": "openclaw",
            "skill_index": [skill.index_entry() for skill in context.skills],
            **_known(context.payload),
        }
        self._snapshot = context.snapshot
        self._counts = BridgeCounts()
        self._want, self._wanted = trio.open_memory_channel[BridgeChild](1)
        self._child = self._new_child()

    def statistics(self) -> BridgeStatistics:
        """Return a snapshot of what the adapter has seen."""
        return BridgeStatistics(
            pid=self._child.pid,
            starts=self._counts.starts,
            dropped_events=self._counts.dropped_events,
            skipped_lines=self._counts.skipped_lines,
        )

    # --- the child --------------------------------------------------------------------

    def _new_child(self) -> BridgeChild:
        child = BridgeChild(
            self._agent.command, self._environment, self._context, self._counts, self._keep
        )
        self._want.send_nowait(child)
        return child

    def _usable_child(self) -> BridgeChild:
        if not self._child.is_usable:
            self._child = self._new_child()
        return self._child

    async def supervise(self) -> None:
        """Serve one child after the other until cancelled; only a message makes the next."""
        self._payload = await self._with_usable_skills(self._payload)
        # Unbounded on purpose: the next child is made by the user's next message.
        async for child in self._wanted:
            await child.serve(self._payload, self._agent.configured_by)

    # --- runs -------------------------------------------------------------------------

    @override
    async def handle(self, run: ActiveRun) -> None:
        """Let the bridge answer one message."""
        child = self._usable_child()
        try:
            await child.wait_ready()
            message = self._user_message(run, knows_runs=child.knows_runs)
        except AdapterError as exc:
            await run.fail(exc)
            return
        if child.knows_runs:
            activity = run.ledger.begin("sub_run", run.id, child.program)
        else:  # a cancel stops the child itself
            activity = run.ledger.begin("child", run.id, child.program, pid=child.pid)
        with child.turn(run.id) as turn:
            try:
                await child.say(message)
                await self._follow(run, child, turn)
            except BaseException as exc:
                turn.abandon()
                is_flood = isinstance(exc, AdapterError)  # the run takes no more of it
                with grace("run.cancel_grace", self._context.deadlines.run_cancel_grace):
                    await self._call_off(child, turn, activity, may_live_on=not is_flood)
                if activity.is_open:  # the grace ran out: it goes when it goes
                    _stop(child, activity)
                raise
        activity.finish()

    def _user_message(self, run: ActiveRun, *, knows_runs: bool) -> UserMessage:
        def frame(history: Sequence[JsonValue]) -> UserMessage:
            return UserMessage(
                session_id=self._context.session_id,
                run_id=run.id if knows_runs else None,
                payload={"message": run.message, "history": history, "metadata": run.metadata},
            )

        try:
            room = MAX_LINE_BYTES - len(encode_frame(frame(())))
        except LocalProtocolError as exc:
            raise AdapterError(f"the message cannot be sent: {exc}", code=PROTOCOL_ERROR) from exc
        question = Message(role="user", content=run.message)
        return frame(_newest_that_fit((*run.history, question), room))

    async def _follow(self, run: ActiveRun, child: BridgeChild, turn: Turn) -> None:
        """Pass on what the bridge says until it ends the run, or is gone."""
        # Unbounded but for the run's own deadline.
        async for frame in turn.frames:
            match frame:
                case BridgeEvent():
                    await run.emit(frame.event)
                case CpFireAndForget():
                    run.spend(_reported_usage(frame.params))
                case BridgeComplete():
                    await self._complete(run, frame)
                    return
                case BridgeError():
                    await run.fail(
                        AdapterError(
                            frame.error, code=frame.code, is_retryable=frame.retryable or False
                        )
                    )
                    return
        await run.fail(child.failure)

    async def _complete(self, run: ActiveRun, frame: BridgeComplete) -> None:
        if frame.usage is not None and run.usage == Usage():
            run.spend(frame.usage)
        if frame.cancelled:
            # Nobody here asked for it, and there is no answer: that is a failure.
            await run.fail(
                AdapterError(
                    "the bridge cancelled the run by itself",
                    code=EXECUTION_ERROR,
                    is_retryable=True,
                )
            )
            return
        if frame.final_response and not run.has_text:
            await run.emit(TextChunk(content=frame.final_response))
        await run.complete(frame.final_response, termination_reason=frame.termination_reason)

    async def _call_off(
        self, child: BridgeChild, turn: Turn, activity: Activity, *, may_live_on: bool
    ) -> None:
        """Have the bridge stop working on the run; stop the bridge if that is not certain."""
        if turn.is_over:  # nothing is left to be stopped, and the bridge may live on
            activity.finish()
            return
        if not (may_live_on and await self._confirms_cancel(child, turn)):
            _stop(child, activity)
            await child.wait_ended()
        activity.close()

    async def _confirms_cancel(self, child: BridgeChild, turn: Turn) -> bool:
        with trio.move_on_after(self._context.deadlines.bridge_snapshot):
            run_id = turn.run_id if turn.knows_runs else None
            await child.say(Cancel(session_id=self._context.session_id, run_id=run_id))
            if turn.knows_runs:
                await turn.wait_over()
                return True
            await child.ask_snapshot()
        return False  # whatever a bridge of level 1 answers, it may go on with the run

    # --- state ------------------------------------------------------------------------

    @override
    async def update_config(self, patch: JsonObject) -> None:
        """Merge *patch* into the configuration and tell the bridge.

        Objects are merged, null removes a field, anything else replaces it.

        Args:
            patch: Some of :data:`~semibot.wire.bridge.START_KEYS`; others are left out.

        Raises:
            UsageError: If nothing in it concerns a bridge, or it is longer than 1 MiB.
        """
        known = await self._with_usable_skills(_known(patch))
        if not known:
            raise UsageError("a bridge can be configured by " + ", ".join(START_KEYS))
        try:
            await self._child.say(ConfigUpdate(session_id=self._context.session_id, payload=known))
        except LocalProtocolError as exc:
            raise UsageError(f"the configuration cannot be sent: {exc}") from exc
        self._payload = _merged(self._payload, known)

    async def _with_usable_skills(self, payload: JsonObject) -> JsonObject:
        if "skill_index" not in payload:
            return payload
        entries = await self._context.ports.threads.run_sync(
            self._usable_entries, payload["skill_index"], limiter="files"
        )
        return {**payload, "skill_index": entries}

    def _usable_entries(self, index: JsonValue) -> tuple[JsonObject, ...]:
        return usable_entries(index, environment=self._environment)

    @override
    async def get_snapshot(self) -> JsonObject | None:
        """Return the bridge's newest state; it is asked for it if it is alive."""
        await self._child.ask_snapshot()
        return self._snapshot

    def _keep(self, snapshot: JsonObject) -> None:
        self._snapshot = snapshot if "checkpoint" in snapshot else {"checkpoint": snapshot}


def _stop(child: BridgeChild, activity: Activity) -> None:
    """Have the child ended, and the receipt say so."""
    activity.kind, activity.pid = "child", activity.pid or child.pid
    child.request_stop()


def _known(payload: JsonObject) -> JsonObject:
    return {key: payload[key] for key in START_KEYS if payload.get(key) is not None}


def _merged(old: JsonValue, patch: JsonObject) -> JsonObject:
    merged = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value) if isinstance(value, Mapping) else value
    return merged


def _newest_that_fit(messages: Sequence[Message], room: int) -> list[JsonObject]:
    """Return the newest messages that fit into *room* bytes, beginning with a question."""
    kept: list[JsonObject] = []
    for message in reversed(messages):
        plain = cast("JsonObject", unstructure(message))
        room -= len(dump_json(plain).encode()) + 1
        if room < 0:
            break
        kept.append(plain)
    while len(kept) < len(messages) and kept and kept[-1]["role"] != "user":
        kept.pop()
    kept.reverse()
    return kept


def _reported_usage(params: JsonObject) -> Usage:
    def count(key: str) -> int:
        value = params.get(key)
        return max(0, min(value, MAX_REPORTED_TOKENS)) if type(value) is int else 0

    return Usage(tokens_in=count("tokens_in"), tokens_out=count("tokens_out"))
