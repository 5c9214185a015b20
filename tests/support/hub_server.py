"""A model hub on the loopback: the routes that huggingface_hub calls, with the faults that real ones show.

Files are announced by one origin and delivered by another, under signed addresses that are good for one use.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

REVISION = "5e" * 20
INLINE_BELOW = 10_000  # bytes; a smaller file is kept in git: sent at once, with git's hash for a tag


@dataclass
class State:
    """What the hub holds, what is wrong with it, and what it was asked."""

    files: dict[tuple[str, str], Path] = field(default_factory=dict)  # (repository, path) -> file
    revision: str = REVISION
    token: str = ""  # needed for everything, if set
    gated: bool = False
    silent: bool = False  # accepts connections and says nothing
    status: int = 0  # of every answer, if set
    drop_after: list[int] = field(default_factory=list)  # bytes after which the next deliveries end, one each
    reset: bool = False  # a dropped delivery ends with a reset instead of a close
    corrupt: bool = False  # one byte of every delivery is another
    no_ranges: bool = False  # the deliverer ignores Range
    expired: int = 0  # deliveries that are refused with 403
    requests: list[dict] = field(default_factory=list)
    signatures: set[str] = field(default_factory=set)
    received: dict[str, bytes] = field(default_factory=dict)  # uploaded, by SHA-256
    commits: list[dict[str, bytes]] = field(default_factory=list)  # path -> content
    repos: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def deliveries(self) -> list[dict]:
        """The requests for files' contents, in order."""
        return [request for request in self.requests if request["path"].startswith("/signed/")]


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url` until the end of the block; `hub.state` may be changed meanwhile."""

    def __enter__(self) -> HubServer:
        self.state = State()
        handler = type("Handler", (_Handler,), {"state": self.state, "hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.delivery_url = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.released = threading.Event()
        return self

    def __exit__(self, *error: object) -> None:
        self.released.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: State
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        state = self.state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen = {"method": self.command, "path": unquote(self.path), "host": self.headers["Host"], "body": body}
        seen |= {"range": self.headers.get("Range"), "token": self.headers.get("Authorization")}
        with state.lock:
            state.requests.append(seen)
        if state.silent:
            self.hub.released.wait(60)
            self.close_connection = True
            return
        delivery = seen["path"].startswith("/signed/") or seen["path"].startswith("/upload/")
        if state.status and not delivery:
            return self._answer(state.status)
        if state.token and not delivery and seen["token"] != f"Bearer {state.token}":
            return self._answer(401, headers={"X-Error-Code": "RepoNotFound"})
        if state.gated and not delivery:
            return self._answer(403, headers={"X-Error-Code": "GatedRepo"})
        path = seen["path"].split("?")[0]
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return answer(self, *match.groups(), body=body)
        self._answer(404)

    def _answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # -- reading -------------------------------------------------------------------------------------------------------

    def _resolve(self, repo: str, revision: str, path: str, body: bytes) -> None:
        state = self.state
        commit = {"X-Repo-Commit": state.revision}
        if not any(known == repo for known, _ in state.files):
            return self._answer(404, headers={"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", state.revision):
            return self._answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        file = state.files.get((repo, path))
        if file is None:
            return self._answer(404, headers=commit | {"X-Error-Code": "EntryNotFound"})
        if file.stat().st_size < INLINE_BELOW:
            content = file.read_bytes()
            tag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self._answer(200, content, commit | {"ETag": f'"{tag}"'})
        signature = secrets.token_hex(8)
        state.signatures.add(signature)
        location = f"{self.hub.delivery_url}/signed/{repo}/{path}?signature={signature}"
        tag = {"X-Linked-Etag": f'"{_sha256(file)}"', "X-Linked-Size": str(file.stat().st_size)}
        self._answer(302, headers=commit | tag | {"Location": location})

    def _deliver(self, repo: str, path: str, body: bytes) -> None:
        state = self.state
        signature = self.path.partition("signature=")[2]
        with state.lock:
            if self.headers.get("Authorization"):
                return self._answer(400)  # a token belongs to the hub and must not get here
            if signature not in state.signatures or state.expired:
                state.expired = max(0, state.expired - 1)
                return self._answer(403)
            state.signatures.discard(signature)
            drop = state.drop_after.pop(0) if state.drop_after else None
        file = state.files[repo, path]
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and not state.no_ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        end = size if drop is None else min(size, start + drop)
        with file.open("rb") as source:
            source.seek(start)
            while start < end:
                piece = source.read(min(1 << 20, end - start))
                start += len(piece)
                self.wfile.write(bytes([piece[0] ^ 1]) + piece[1:] if state.corrupt else piece)
        if drop is not None:
            self.wfile.flush()
            if state.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

    # -- writing -------------------------------------------------------------------------------------------------------

    def _create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        self.state.repos.append(repo)
        self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})

    def _preupload(self, repo: str, revision: str, body: bytes) -> None:
        files = [
            {"path": file["path"], "uploadMode": "regular" if file["size"] < INLINE_BELOW else "lfs", "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, repo: str, body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            action = {"href": f"{self.hub.delivery_url}/upload/{wanted['oid']}", "header": {}}
            actions = {} if wanted["oid"] in self.state.received else {"actions": {"upload": action}}
            objects.append({"oid": wanted["oid"], "size": wanted["size"]} | actions)
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, sha256: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != sha256:
            return self._answer(400)
        self.state.received[sha256] = body
        self._answer(200)

    def _commit(self, repo: str, revision: str, body: bytes) -> None:
        commit: dict[str, bytes] = {}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                commit[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                commit[entry["value"]["path"]] = self.state.received[entry["value"]["oid"]]
        self.state.commits.append(commit)
        self._json({"success": True, "commitOid": REVISION, "commitUrl": f"{self.hub.url}/{repo}/commit/{REVISION}"})

    def _validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (rf"(?:HEAD|GET) /{_REPO}/resolve/([^/]+)/(.+)", _Handler._resolve),
    (rf"GET /signed/{_REPO}/(.+)", _Handler._deliver),
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", _Handler._validate),
    (rf"POST /api/models/{_REPO}/preupload/([^/]+)", _Handler._preupload),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler._batch),
    (r"PUT /upload/(\w+)", _Handler._upload),
    (rf"POST /api/models/{_REPO}/commit/([^/]+)", _Handler._commit),
)


_hashes: dict[tuple[str, int], str] = {}


def _sha256(file: Path) -> str:
    key = (str(file), file.stat().st_mtime_ns)
    if key not in _hashes:
        with file.open("rb") as source:
            _hashes[key] = hashlib.file_digest(source, "sha256").hexdigest()
    return _hashes[key]


@contextmanager
def unused_port():
    """A port of the loopback on which nothing answers."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
