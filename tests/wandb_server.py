"""As much of a Weights & Biases server as its library asks of one: it takes runs, and stops answering on command."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG_SECONDS = 1000
_RUN = {
    "id": "bucket", "displayName": "run", "description": None, "config": None, "sweepName": None,
    "historyLineCount": 0, "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
}  # fmt: skip
_ANSWERS = {
    "createRunFiles": {"runID": "run", "uploadHeaders": [], "files": []},
    "model": None,
    "project": None,
    "viewer": {"id": "v", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}},
    "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []},
}


def answer_to(body: bytes) -> dict:
    """All that any query asks for; a run keeps the name that it was made under."""
    name = (json.loads(body).get("variables") or {}).get("name")
    return {"data": _ANSWERS | {"upsertBucket": {"bucket": _RUN | {"name": name}, "inserted": True}}}


class WandbServer:
    """`does`: None answers as it should, a number is the status of every answer, "hang" gives none."""

    def __init__(self, does: int | str | None = None) -> None:
        self.does, self.requests = does, []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                owner.requests.append((self.path, body))
                if owner.does == "hang":
                    time.sleep(HANG_SECONDS)
                content = json.dumps(answer_to(body) if "graphql" in self.path else {}).encode()
                self.send_response(owner.does or 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *_) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def close(self) -> None:
        """Nothing listens at the port any more."""
        self._server.shutdown()
        self._server.server_close()

    def __exit__(self, *_) -> None:
        self.close()
