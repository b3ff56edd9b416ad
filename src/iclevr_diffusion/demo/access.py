"""Restrict access to the app: the address it listens at, and the paths it serves."""

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from iclevr_diffusion.utils.errors import UserError

LOCAL = "127.0.0.1"
BODY = 64 * 1024  # most bytes of a request
# Requests that the page makes; gradio's other paths upload, read and proxy files, and more.
PATHS = {
    "GET": (
        *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
        *("/assets/*", "/static/*", "/gradio_api/startup-events", "/gradio_api/app_id"),
        *("/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/heartbeat/*"),
    ),
    "POST": ("/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset"),
}
HEADERS = {
    # gradio evaluates templates, so scripts cannot be limited further; other hosts are excluded.
    "content-security-policy": "default-src 'self'; img-src 'self' data:; font-src 'self' data:;"
    " style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval';"
    " object-src 'none'; base-uri 'self'; form-action 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def check_address(host: str, port: int) -> None:
    """Check that a server can listen at an address.

    Raises:
        UserError: The port is out of range or in use, or the address is not this machine's.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"port must be in 1..65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"host={host} port={port}: {why.lower()}; choose another") from error


def is_local(host: str) -> bool:
    """Return whether only this machine can reach a server at an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class OnlyThePage:
    """ASGI middleware: refuses other paths and large requests, and adds headers for safety."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http" or not is_allowed(scope["method"], _path(scope)):
            await _refuse(send, 404, "Not Found")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if scope["method"] == "POST" and not (length.isdigit() and 0 < int(length) <= BODY):
            await _refuse(send, 413, "Content Too Large")
            return

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message.get("headers", []), *own]}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def is_allowed(method: str, path: str) -> bool:
    """Return whether the page needs a path."""
    allowed = PATHS.get("GET" if method == "HEAD" else method, ())
    return any(
        path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern
        for pattern in allowed
    )


def _path(scope: Scope) -> str:
    """Return the path below the root of the application, without a trailing slash."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.rstrip("/") or "/"


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
