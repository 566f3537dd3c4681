"""Say in one line what tools are called with, how long things took, what a receipt lists."""

from __future__ import annotations

import json
from typing import Final

from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.events import Usage
from semibot.wire.receipts import ActivityRecord, Receipt

_MAX_VALUE: Final = 60
_MAX_ARGUMENTS: Final = 160


def shorten(text: str, limit: int) -> str:
    """Return *text*, or its beginning if it is longer than *limit* characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def describe_arguments(arguments: JsonObject) -> str:
    """Return arguments as ``name=value`` pairs, for people; long ones are cut."""
    pairs = (f"{name}={_value(value)}" for name, value in arguments.items())
    return shorten(" ".join(pairs), _MAX_ARGUMENTS)


def _value(value: JsonValue) -> str:
    if isinstance(value, str) and value.isprintable() and value and " " not in value:
        return shorten(value, _MAX_VALUE)
    # What cannot be printed, such as marks that turn the direction of writing, is escaped.
    text = json.dumps(value, ensure_ascii=False)
    return shorten(text if text.isprintable() else json.dumps(value), _MAX_VALUE)


def describe_duration(milliseconds: int) -> str:
    """Return a duration in the unit that reads best."""
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def describe_usage(usage: Usage) -> str:
    """Return how many tokens were spent."""
    return f"{usage.tokens_in} tokens in, {usage.tokens_out} out"


def describe_receipt(receipt: Receipt) -> list[str]:
    """Return the lines of a receipt, the first of which is its sum."""
    if receipt.already:
        return [f"nothing to stop: the run had ended already ({receipt.outcome})"]
    sum_line = f"{_why(receipt)}, in {receipt.seconds:.2f} s"
    lines = [f"{sum_line}; {describe_usage(receipt.usage)}"]
    lines += [f"  stopped    {_activity(record)}" for record in receipt.stopped]
    lines += [f"  abandoned  {_activity(record)}" for record in receipt.abandoned]
    if not receipt.stopped and not receipt.abandoned:
        lines.append("  nothing was under way")
    return lines


def _why(receipt: Receipt) -> str:
    match receipt.outcome, receipt.reason:
        case "cancelled" | "failed", "user_cancelled":
            return "cancelled by you"
        case "timeout", reason:
            return f"stopped by its deadline {reason}"
        case outcome, reason:
            return f"{outcome}: {reason}"


def _activity(record: ActivityRecord) -> str:
    parts = [f"{record.kind.replace('_', ' ')} {record.name}"]
    if record.pid is not None:
        parts.append(f"pid {record.pid}")
    parts.append(f"after {record.seconds:.1f} s")
    if record.effect is not None:
        parts.append(record.effect)
    return ", ".join(parts)
