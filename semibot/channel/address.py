"""Where a host listens for VMs, taken apart from a URL."""

from __future__ import annotations

from typing import Final, final
from urllib.parse import parse_qsl, urlencode, urlsplit

import attrs

from semibot.errors import ConfigError
from semibot.secret import Secret

DEFAULT_PATH: Final = "/ws/vm"
"""Where hosts take links if the URL does not say."""

_PORTS: Final = {"ws": 80, "wss": 443}


@final
@attrs.frozen(kw_only=True)
class PlaneAddress:
    """The parts of a host's URL."""

    host: str
    """Name or address, without brackets."""
    port: int
    """Port, 1 to 65535."""
    use_tls: bool
    """Whether to speak TLS."""
    path: str
    """Where the host takes links."""
    parameters: tuple[tuple[str, str], ...] = ()
    """What the URL asks besides."""

    @property
    def host_header(self) -> str:
        """What the HTTP header ``Host`` says."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return (
            name if self.port == _PORTS["wss" if self.use_tls else "ws"] else f"{name}:{self.port}"
        )

    def resource(self, user_id: str, ticket: Secret | None) -> str:
        """Return the path and the question; a secret if there is a ticket.

        Args:
            user_id: The user whose VM this is.
            ticket: The one-time ticket, as long as it is of use.
        """
        ours = {"user_id": user_id}
        if ticket is not None:
            ours["ticket"] = ticket.reveal()
        asked = [(name, value) for name, value in self.parameters if name not in ours]
        return f"{self.path}?{urlencode([*asked, *ours.items()])}"


def parse_plane_url(url: str) -> PlaneAddress:
    """Return the parts of a URL such as ``wss://host.example/ws/vm``.

    Args:
        url: Scheme ``ws`` or ``wss``; without a path, ``/ws/vm`` is meant.

    Raises:
        ConfigError: If it is not of that form.
    """
    wrong = "the host's URL must look like ws://127.0.0.1:8080/ws/vm or wss://host.example/ws/vm"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(wrong) from None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise ConfigError(wrong)
    if parts.username is not None or parts.fragment:
        raise ConfigError(f"{wrong}, without a user, a password or a fragment")
    return PlaneAddress(
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        use_tls=parts.scheme == "wss",
        path=parts.path if parts.path not in {"", "/"} else DEFAULT_PATH,
        parameters=tuple(parse_qsl(parts.query, keep_blank_values=True)),
    )
