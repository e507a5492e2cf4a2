"""The page at `/`: talk to the model, watch what the gateway does. One file, no build step."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from baleen.server.doors.door import Call

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
        " connect-src 'self'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
}


class PageDoor:
    """`GET /`."""

    def __init__(self) -> None:
        self._text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    async def handle(self, call: Call) -> web.StreamResponse:
        """The page."""
        return web.Response(text=self._text, content_type="text/html", headers=_HEADERS)
