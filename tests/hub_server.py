"""A small server on the loopback that speaks as much of the Hugging Face Hub as the tests need."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"


class Hub:
    """Repositories by name, each a dict of files, and what was requested.

    Attributes:
        repos: The files of each repository, by their paths.
        requests: Method and path of each request.
        cut: Whether downloads of tensors end in the middle.
        commit: The newest revision.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.cut = False
        self.commit = COMMIT
        self.url = ""

    def add(self, repo: str, folder: Path, **more: bytes):
        files = (path for path in folder.rglob("*") if path.is_file())
        self.repos[repo] = {f.relative_to(folder).as_posix(): f.read_bytes() for f in files} | more


@contextmanager
def hub_server():
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_): ...

        def do_GET(self):
            self.answer()

        do_HEAD = do_POST = do_GET  # noqa: N815

        def answer(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "whoami-v2"]:
                known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                return self.send({"name": "user"}) if known else self.send({"error": "no"}, 401)
            if parts[:3] == ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
                hub.repos.setdefault(repo, {})
                return self.send({"url": f"{hub.url}/{repo}", "name": repo, "id": "1"})
            if parts == ["api", "validate-yaml"]:  # of a README's metadata
                return self.send({"errors": [], "warnings": []})
            is_api = parts[:2] == ["api", "models"]
            parts = parts[2:] if is_api else parts
            repo, rest = "/".join(parts[:2]), parts[2:]
            if repo not in hub.repos:
                return self.send({"error": "no"}, 401, {"X-Error-Code": "RepoNotFound"})
            files = hub.repos[repo]
            what, revision, *name = [*rest, "main", "main"][: max(2, len(rest))]
            if revision not in ("main", "v1", hub.commit):
                return self.send({"error": "no"}, 404, {"X-Error-Code": "RevisionNotFound"})
            if what == "preupload":
                asked = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular"} for f in asked]
                return self.send({"files": [mode | {"shouldIgnore": False} for mode in modes]})
            if what == "commit":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "deletedFile":
                        del files[line["value"]["path"]]
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"{hub.url}/{repo}/commit/{COMMIT}"
                return self.send({"commitUrl": url, "commitOid": COMMIT, "success": True})
            if what == "tree":
                entries = [
                    {"type": "file", "path": f, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for f, b in files.items()
                ]
                return self.send(entries)
            if what == "resolve":
                return self.send_file("/".join(name), files)
            siblings = [{"rfilename": name} for name in files]
            return self.send({"id": repo, "sha": hub.commit, "siblings": siblings, "tags": []})

        def send_file(self, name, files):
            if name not in files:
                return self.send({"error": "no"}, 404, {"X-Error-Code": "EntryNotFound"})
            content = files[name]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            headers = {"ETag": etag, "X-Repo-Commit": hub.commit}
            sent = content[: len(content) // 2] if hub.cut and name.endswith("tensors") else content
            return self.send(sent, 200, headers, len(content))

        def send(self, content, status=200, headers=None, length=None):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            kind = "application/octet-stream" if data is content else "application/json"
            told = {"Content-Length": str(length or len(data)), "Content-Type": kind}
            for key, value in (told | (headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
            if length and length > len(data):
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
