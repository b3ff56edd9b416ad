"""A server on the loopback that answers as W&B does, until it fails in the way it is told."""

import json
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

KEY = "x" * 40


class Server:
    """``failure``: a status such as ``401``, ``hangs``, ``text`` that is no JSON, or None."""

    def __init__(self, failure=None):
        self.failure = failure
        self.closing = Event()
        self.requests = []
        self.uploaded = []  # the rows of the history
        self.run = None  # what it says of a run that is there already
        self.url = ""

    def answer(self, handler, body):
        self.requests.append(handler.path)
        if self.failure == "hangs":
            self.closing.wait(120)
            handler.close_connection = True
            return
        status, content = 200, self.content(handler.path, body)
        if self.failure == "text":
            content = b"<html>Sign in to the network</html>"
        elif self.failure is not None:
            status, content = (
                int(self.failure),
                json.dumps({"errors": [{"message": "no"}]}).encode(),
            )
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def content(self, path, body):
        if path.endswith("/file_stream"):
            files = json.loads(body).get("files") or {}
            lines = files.get("wandb-history.jsonl", {}).get("content", [])
            self.uploaded += [json.loads(line) for line in lines]
        if path != "/graphql":
            return b"{}"
        given = json.loads(body).get("variables") or {}
        project = {"name": given.get("project"), "entity": {"name": "me"}}
        bucket = {"id": "b", "name": given.get("name"), "displayName": "", "project": project}
        files = [
            {"name": name, "uploadUrl": f"{self.url}/storage/{name}"}
            for name in given.get("files") or []
        ]
        viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}"}
        return json.dumps(
            {
                "data": {
                    "viewer": viewer | {"teams": {"edges": []}},
                    "serverInfo": {"features": []},
                    "model": self.run,
                    "upsertBucket": {"bucket": bucket, "inserted": True},
                    "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files},
                }
            }
        ).encode()

    def has_up_to(self, name, step):
        """Say that a run is there, with rows up to a step."""
        last = json.dumps({"_step": step, "trainer/global_step": step})
        bucket = {"id": "b", "name": name, "displayName": "", "summaryMetrics": last}
        bucket |= {"historyLineCount": step + 1, "historyTail": json.dumps([last]), "config": "{}"}
        bucket |= {"eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]", "tags": []}
        bucket |= {"wandbConfig": json.dumps({"t": 1})}
        entity = {"id": "e", "name": "me"}
        self.run = {"id": "p", "name": "iclevr", "entity": entity, "bucket": bucket}


@contextmanager
def served(failure=None):
    server = Server(failure)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.answer(self, body)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.block_on_close = False
    http.handle_error = lambda *_: None  # connections that the other side gave up
    server.url = f"http://127.0.0.1:{http.server_port}"
    Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def forget():
    """Let wandb read its environment anew, as another process would."""
    import wandb
    from wandb.sdk.lib import wbauth

    wandb.teardown()
    wbauth.unauthenticate_session(update_settings=False)
