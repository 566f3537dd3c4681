"""Serve the chat page: the few files of the package's ``web`` directory, and nothing else.

Files are found by name in a table that is made once; no path from a request reaches the
file system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Final, final

import attrs

from semibot.ports import Threads

from .answers import Answer
from .asgi import Asked, Handler, route_not_found

PAGE: Final = "index.html"
"""The file at ``/``."""

MEDIA: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".svg": "image/svg+xml",
        ".png": "image/png",
        ".ico": "image/x-icon",
    }
)
"""What is served, by the end of its name; other files of the directory are not."""

PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
"""What the page may do: talk to this host, with code and styles from here."""


@attrs.frozen(kw_only=True)
class PageFile:
    """One file of the page."""

    data: bytes = attrs.field(repr=False)
    """Its bytes."""
    media: str
    """Its media type."""
    etag: str
    """Changes with the bytes."""


def read_page_files() -> Mapping[str, PageFile]:
    """Return the files of the page by name; blocking."""
    found: dict[str, PageFile] = {}
    directory = files("semibot.host") / "web"
    if not directory.is_dir():
        return found
    for entry in directory.iterdir():
        media = MEDIA.get("." + entry.name.rpartition(".")[2])
        if media is not None and not entry.name.startswith(".") and entry.is_file():
            data = entry.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            found[entry.name] = PageFile(data=data, media=media, etag=etag)
    return found


@final
class PageRoutes:
    """Answers the routes of the page.

    Args:
        threads: Where the files are read, the first time that one is asked for.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._files: Mapping[str, PageFile] | None = None

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What answers each route, by its name."""
        return {"page": self.page, "page_file": self.page_file}

    async def page(self, asked: Asked) -> Answer:
        """Return the page itself."""
        return await self._file(asked, PAGE)

    async def page_file(self, asked: Asked) -> Answer:
        """Return a file that the page names.

        Raises:
            HttpError: If there is none of that name.
        """
        return await self._file(asked, asked.params["file"])

    async def _file(self, asked: Asked, name: str) -> Answer:
        if self._files is None:
            self._files = await self._threads.run_sync(read_page_files, limiter="files")
        file = self._files.get(name)
        if file is None:
            raise route_not_found()
        headers = {
            "ETag": file.etag,
            "Cache-Control": "no-cache",
            "Content-Security-Policy": PAGE_POLICY,
        }
        if _matches(asked.request.headers.get("if-none-match", ""), file.etag):
            return Answer(status=304, headers=headers)
        return Answer(body=file.data, content_type=file.media, headers=headers)


def _matches(asked: str, etag: str) -> bool:
    named = (each.strip().removeprefix("W/") for each in asked.split(","))
    return any(each in {etag, "*"} for each in named)
