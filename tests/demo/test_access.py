"""The app's server answers the page, and nothing else."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from iclevr_diffusion.demo.access import OnlyThePage, check_address, is_allowed, is_local
from iclevr_diffusion.utils.errors import UserError


def ask(method, path, headers=(), root=""):
    """The status and headers that a request gets; 200 is that of the application inside."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": headers, "root_path": root}
    # In a thread of its own, since a browser's tests leave an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(OnlyThePage(app)(scope, None, send))).result()
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize("path", ["/", "/config", "/assets/index.js", "/gradio_api/queue/data"])
def test_what_the_page_needs_is_answered_and_may_ask_no_other_host(path):
    status, headers = ask("GET", path)
    assert status == 200
    assert headers[b"content-security-policy"].startswith(b"default-src 'self';")
    assert b"http" not in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=https://example.org"),
        ("GET", "/monitoring"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/upload_progress"),
        ("DELETE", "/"),
        ("GET", "/gradio_api/queue/join"),
    ],
)
def test_other_paths_are_not_found(method, path):
    assert ask(method, path, [(b"content-length", b"2")])[0] == 404


def test_a_request_has_a_length_and_is_small():
    join = "/gradio_api/queue/join"
    assert ask("POST", join, [(b"content-length", b"65536")])[0] == 200
    for length in (b"65537", b"99999999999", b"-1", b"x"):
        assert ask("POST", join, [(b"content-length", length)])[0] == 413
    assert ask("POST", join, [(b"transfer-encoding", b"chunked")])[0] == 413


def test_paths_are_those_below_the_root_of_the_application():
    assert ask("GET", "/space/config", root="/space")[0] == 200
    assert is_allowed("HEAD", "/")
    assert not is_allowed("GET", "/assets")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.org", False)],
)
def test_local_addresses(host, local):
    assert is_local(host) is local


def test_an_address_in_use_is_refused():
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: address already in use"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(UserError, match="port must be in 1"):
        check_address("127.0.0.1", 0)
