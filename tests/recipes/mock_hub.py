"""A mock of the Hugging Face hub, on loopback: it plays the parts of the hub's API that making a repository and
uploading a folder use (whoami, create, validate-yaml, preupload, LFS batch and PUT, commit), and keeps what it was
sent. It is no hub: what the real one does beyond that, it does not."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_aTokenForTestsOnlyThatMustNeverBePrinted"


class MockHub:
    """What came in, and what it answers to whoever shows `TOKEN`."""

    def __init__(self) -> None:
        self.url = ""
        self.role = "write"
        self.refuse_commit = 0
        """A status to answer commits with; 0 takes them."""
        self.calls: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        """LFS objects by sha256."""
        self.files: dict[str, bytes] = {}
        """The repository after its commits."""
        self.commit: dict[str, Any] = {}

    def answer(self, method: str, path: str, body: bytes, known: bool) -> tuple[int, Any]:
        path = path.partition("?")[0]
        self.calls.append(f"{method} {path}")
        if method == "PUT":  # the address is the permission, as with a storage's signed ones
            self.objects[path.rsplit("/", 1)[-1]] = body
            return 200, {}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if not known:
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            token = {"accessToken": {"displayName": "tests", "role": self.role}}
            return 200, {"type": "user", "name": "tester", "orgs": [{"name": "guild"}], "auth": token}
        content = json.loads(body) if body and not path.endswith("/commit/main") else {}
        if path == "/api/repos/create":
            self.created.append(content)
            return 200, {"url": f"{self.url}/{content['organization'] or 'tester'}/{content['name']}"}
        if path.endswith("/preupload/main"):
            large = (".safetensors", ".gguf")
            return 200, {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in content["files"]
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [
                    {**one, "actions": {"upload": {"href": f"{self.url}/storage/{one['oid']}", "header": {}}}}
                    for one in content["objects"]
                ],
            }
        if path.endswith("/commit/main"):
            return self.commit_of(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        return 404, {"error": f"the mock has no {method} {path}"}

    def commit_of(self, repository: str, body: bytes) -> tuple[int, Any]:
        if self.refuse_commit:
            return self.refuse_commit, {"error": "no"}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.commit = value
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                stored = self.objects[value["oid"]]
                assert (hashlib.sha256(stored).hexdigest(), len(stored)) == (value["oid"], value["size"])
                self.files[value["path"]] = stored
        oid = "0" * 40
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repository}/commit/{oid}"}


@contextmanager
def running_hub() -> Iterator[MockHub]:
    """A mock hub, until the end of the ``with`` block."""
    hub = MockHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, content = hub.answer(self.command, self.path, body, known)
            said = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
