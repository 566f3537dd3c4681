"""A secret value that never shows itself by accident."""

from __future__ import annotations

import hmac
from typing import Final, NoReturn, final

_MASK: Final = "Secret(***)"


def _bytes_of(secret: Secret) -> bytes:
    # A variable of the environment may hold bytes that are no UTF-8, as lone surrogates; the
    # error that they would cause here has the whole text in it.
    return secret.reveal().encode("utf-8", "surrogatepass")


@final
class Secret:
    """A string that is masked in ``repr``, ``str``, formatting, pickles and JSON.

    Call :meth:`reveal` at the one place that needs the text.

    Args:
        value: The text to protect.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text itself. The caller must not log, store or print it."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes_of(self), _bytes_of(other))

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __repr__(self) -> str:
        return _MASK

    def __str__(self) -> str:
        return _MASK

    def __format__(self, format_spec: str) -> str:
        return _MASK

    def __reduce__(self) -> NoReturn:
        message = "a Secret cannot be pickled or copied out of the process"
        raise TypeError(message)
