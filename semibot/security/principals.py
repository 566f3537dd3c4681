"""Who asks: the one local user of a host on loopback, or whoever a Bearer token names.

A host without users trusts everybody who can reach its loopback address, and a browser can
be made to reach it by any page. Two headers that pages cannot forge keep them out: ``Host``
is a name that no foreign page has, and ``Origin``, where there is one, is this very address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final, final

import attrs

from semibot.errors import OriginRefused, TokenRefused, Unauthenticated

from .tokens import Tokens

_HOST: Final = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.\-]+)(:[0-9]{1,5})?")
_BEARER: Final = re.compile(r"bearer +(?P<token>[A-Za-z0-9._~+/=\-]+)", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Principal:
    """Whose request it is."""

    user_id: str
    """The user."""
    org_id: str
    """The user's organization."""


@final
class Principals:
    """Tells whose a request is.

    Args:
        is_local: Whether everybody who can reach the host is its one local user.
        tokens: Checks Bearer tokens, if not.
        local_user: Id of the local user, and of the user's organization.
    """

    def __init__(self, *, is_local: bool, tokens: Tokens, local_user: str = "local") -> None:
        self._tokens = tokens
        self._local = Principal(user_id=local_user, org_id=local_user) if is_local else None

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse requests that another page or another name led here.

        With Bearer tokens there is nothing to check: a foreign page has none.

        Args:
            headers: Of the request, by names in lower case.

        Raises:
            OriginRefused: If ``Host`` is neither ``localhost`` nor a loopback address, or
                ``Origin`` is there and not this host.
        """
        if self._local is None:
            return
        host = headers.get("host", "").lower()
        match = _HOST.fullmatch(host)
        if match is None or not is_loopback(match["name"]):
            raise OriginRefused("Host")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{host}", f"https://{host}"}:
            raise OriginRefused("Origin")

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Return whose the request is.

        Args:
            headers: Of the request, by names in lower case.

        Raises:
            OriginRefused: See :meth:`check_origin`.
            Unauthenticated: If there is no Bearer token, or it is not accepted.
        """
        if self._local is not None:
            self.check_origin(headers)
            return self._local
        given = headers.get("authorization")
        if given is None:
            raise Unauthenticated
        match = _BEARER.fullmatch(given)
        if match is None:
            raise Unauthenticated(_INVALID)
        try:
            claims = self._tokens.verify_user_token(match["token"])
        except TokenRefused as exc:
            raise Unauthenticated(_EXPIRED if exc.reason == "expired" else _INVALID) from None
        return Principal(user_id=claims.user_id, org_id=claims.org_id)


_INVALID: Final = "AUTH_INVALID"
_EXPIRED: Final = "AUTH_EXPIRED"


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine can reach *host*."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
