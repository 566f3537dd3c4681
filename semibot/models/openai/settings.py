"""What the environment says about the connection to OpenAI or a compatible server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import attrs

from semibot.errors import ModelNotConfigured
from semibot.secret import Secret

DEFAULT_MODEL: Final = "gpt-5"
"""The model if neither the program nor ``SEMIBOT_MODEL`` names one."""

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
"""Where requests go if ``OPENAI_BASE_URL`` does not say otherwise."""

PREFIX: Final = "openai:"
"""What a model's full name begins with."""


@attrs.frozen(kw_only=True)
class OpenAISettings:
    """Where to ask, for what, and as whom."""

    model: str
    """The provider's name of the model."""
    base_url: str = attrs.field(repr=False)
    """Root of the API, such as ``https://api.openai.com/v1``."""
    api_key: Secret
    """The bearer token; a made-up word for servers that need none."""
    organization: str | None = None
    """Organization to bill, if the key has several."""
    project: str | None = None
    """Project to bill, if the key has several."""
    proxy: str | None = attrs.field(default=None, repr=False)
    """URL of the proxy to go through."""
    ca_file: str | None = None
    """File of certificates to trust in place of the system's."""

    @property
    def host(self) -> str:
        """The server's host and port, for messages."""
        return urlsplit(self.base_url).netloc.rpartition("@")[2]

    @property
    def is_openai(self) -> bool:
        """Whether the server is OpenAI's own."""
        return self.base_url == DEFAULT_BASE_URL


def read_settings(
    model: str,
    environment: Mapping[str, str],
    *,
    api_key: Secret | None = None,
    base_url: str | None = None,
) -> OpenAISettings:
    """Return what *environment* says about the connection.

    Args:
        model: The provider's name of the model.
        environment: The program's environment variables.
        api_key: Used instead of ``OPENAI_API_KEY``.
        base_url: Used instead of ``OPENAI_BASE_URL``.

    Raises:
        ModelNotConfigured: If something is missing or cannot be; the message says what
            to set, and quotes no value.
    """
    key = environment.get("OPENAI_API_KEY", "") if api_key is None else api_key.reveal()
    key = key.strip()
    base_url = (base_url or environment.get("OPENAI_BASE_URL", "")).strip().rstrip("/")
    if not key and not base_url:
        raise ModelNotConfigured(
            f"no key for the model {PREFIX}{model}: set OPENAI_API_KEY, or set OPENAI_BASE_URL "
            "to a compatible server that needs no key, such as http://localhost:11434/v1"
        )
    if any(not 0x21 <= ord(character) <= 0x7E for character in key):
        raise ModelNotConfigured(
            "OPENAI_API_KEY has characters in it that no key has; set it to the key alone"
        )
    base_url = base_url or DEFAULT_BASE_URL
    return OpenAISettings(
        model=model,
        base_url=base_url,
        api_key=Secret(key or "no-key-needed"),
        organization=environment.get("OPENAI_ORG_ID", "").strip() or None,
        project=environment.get("OPENAI_PROJECT_ID", "").strip() or None,
        proxy=proxy_for(base_url, environment),
        ca_file=environment.get("SSL_CERT_FILE") or None,
    )


def proxy_for(base_url: str, environment: Mapping[str, str]) -> str | None:
    """Return the proxy that *environment* prescribes for *base_url*, or None.

    Args:
        base_url: Where the requests go.
        environment: The program's environment variables.

    Raises:
        ModelNotConfigured: If one of the URLs is none.
    """
    scheme, host, port = _split("OPENAI_BASE_URL", base_url)
    if host == "localhost" or host == "::1" or host.startswith("127."):
        return None
    for entry in _either(environment, "no_proxy").lower().split(","):
        wanted, _, wanted_port = entry.strip().lstrip("*").lstrip(".").partition(":")
        if entry.strip() == "*" or (
            wanted
            and (host == wanted or host.endswith("." + wanted))
            and wanted_port in {"", str(port)}
        ):
            return None
    proxy = _either(environment, f"{scheme}_proxy") or _either(environment, "all_proxy")
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = "http://" + proxy
    _split(f"{scheme.upper()}_PROXY or ALL_PROXY", proxy)
    return proxy


def _either(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name, "") or environment.get(name.upper(), "")


def _split(variable: str, url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ModelNotConfigured(f"{variable} must be an http or https URL")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)
