"""What a host and a VM are told by whoever starts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

import attrs

from semibot.secret import Secret

from .deadlines import Deadlines

DEFAULT_PORT: Final = 8080
"""Where a host listens if nobody says."""

LOCAL_USER: Final = "local"
"""The one user of a host on loopback; the id of the user's organization, too."""

RunMode: TypeAlias = Literal["development", "production"]
"""``SEMIBOT_ENV``."""


@attrs.frozen(kw_only=True)
class Provider:
    """A model provider that VMs may use."""

    api_key: Secret | None = None
    """The key; it reaches a VM only inside the envelope of ``init``."""
    base_url: str | None = None
    """Base address, if not the provider's own."""


@attrs.frozen(kw_only=True)
class HostSettings:
    """How a host is to run. :func:`semibot.config.loader.load_host_settings` makes one."""

    data_dir: Path
    """Where the database and the state of VMs lie; made if missing."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs *jwt_secret*."""
    port: int = DEFAULT_PORT
    """Port to listen on; 0 takes a free one."""
    run_mode: RunMode = "development"
    """``production`` refuses to start without a good *jwt_secret*, also on loopback."""
    jwt_secret: Secret | None = None
    """Key of Bearer and VM tokens, at least 32 bytes. None on loopback: one local user, and a
    random key in *data_dir*."""
    workspace: Path | None = None
    """Where the local user's agents work; None means a directory in *data_dir*."""
    allow: tuple[str, ...] = ()
    """Tools that agents on this host's own VMs may use without asking."""
    model: str | None = None
    """Model for the host's own VMs, such as ``openai:gpt-5``."""
    providers: Mapping[str, Provider] = attrs.field(factory=dict[str, Provider])
    """Model providers by name: ``openai``, ``anthropic``."""
    skills_dir: Path | None = None
    """Where ``get_skill_package`` finds skills; None means ``skills`` in *data_dir*."""
    vm_bootstrap_cmd: tuple[str, ...] | None = None
    """What starts a VM, as words; None means ``semibot vm``."""
    vm_bootstrap_max_attempts: int = 5
    """After how many attempts without ``ready`` a row is ``failed``; at least 1."""
    vm_bootstrap_cooldown_ms: int = 30_000
    """Between two attempts of which the first never got ready, in milliseconds."""
    vm_token_ttl: float = 12 * 3600.0
    """Lifetime of a VM token, in seconds."""
    environment: Mapping[str, str] = attrs.field(factory=dict[str, str], repr=False)
    """What VMs may inherit a few allowed variables from."""
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    """The bounds."""


@attrs.frozen(kw_only=True)
class VmSettings:
    """How a VM is to run; from the environment of protocol section 9 and from flags."""

    url: str
    """The host's ``ws://`` or ``wss://`` address, up to and with ``/ws/vm``."""
    user_id: str
    """Whose VM it is."""
    token: Secret
    """The VM token."""
    ticket: Secret | None = None
    """The one-time ticket of a bootstrap attempt."""
    workspace: Path
    """Where agents work."""
    state_dir: Path
    """Where outbox and sessions are kept; one VM at a time."""
    allow: tuple[str, ...] = ()
    """Tools that agents may use without asking."""
    model: str | None = None
    """Model, if an agent names none."""
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    """The bounds."""
