"""A small static server on this computer: what the page needs from any host, and nothing else."""

from __future__ import annotations

import gzip
import re
import socket
import threading
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from .. import LabError
from ..errors import first_line

ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""With these two a browser gives a page threads."""

COMPRESSED = {".html", ".css", ".js", ".mjs", ".json", ".svg"}
"""Endings of the files that are sent compressed, as hosts do with text."""


class Handler(SimpleHTTPRequestHandler):
    """Files below `directory`, at `prefix`, with the headers that the page needs; text is compressed."""

    protocol_version = "HTTP/1.1"
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".json": "application/json",
        ".bin": "application/octet-stream",
        ".onnx": "application/octet-stream",
    }

    def __init__(self, *args, prefix: str, isolated: bool, open_to_all: bool, requests: list[str], **options) -> None:
        self.prefix, self.isolated, self.open_to_all, self.requests = prefix, isolated, open_to_all, requests
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if not urlsplit(self.path).path.startswith(self.prefix) or "%00" in self.path:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            path /= "index.html"
        if path.is_file() and (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            self._send_range(path, int(span[1]), int(span[2]) if span[2] else path.stat().st_size - 1)
        elif path.suffix in COMPRESSED and path.is_file() and "gzip" in self.headers.get("Accept-Encoding", ""):
            self._send_compressed(path)
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        return super().translate_path("/" + path.removeprefix(self.prefix))

    def list_directory(self, path):
        self.send_error(HTTPStatus.NOT_FOUND)

    def _send_compressed(self, path: Path) -> None:
        body = gzip.compress(path.read_bytes(), mtime=0)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_range(self, path: Path, first: int, last: int) -> None:
        size = path.stat().st_size
        last = min(last, size - 1)
        if first > last:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(first)
            self.wfile.write(file.read(last - first + 1))

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin" if self.open_to_all else "same-origin")
        if self.open_to_all:
            self.send_header("Access-Control-Allow-Origin", "*")
        for name, value in ISOLATION.items() if self.isolated else ():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args) -> None:
        """Say nothing: the list `requests` has them all."""


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request, client_address) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stop listening, and end the connections that browsers keep: their threads would go on answering."""
        super().server_close()
        for connection in list(self.connections):
            with suppress(OSError):  # closed from the other side meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        """A browser that closes a connection early is no error."""


class Server:
    """Serves a folder on 127.0.0.1 while the context lasts.

    Args:
        folder: what is served.
        port: 0 takes a free one.
        prefix: path under which the folder appears, as on a host that gives each project a sub-path.
        isolated: send the headers that give the page threads.
        open_to_all: let pages of other origins read the files, as a host of weights must.
        handler: a `Handler`, or one that behaves worse.

    Attributes:
        url: of the folder, ending in a slash.
        requests: the path of every GET request so far.

    Raises:
        LabError: no such folder, or the port is taken.
    """

    def __init__(
        self,
        folder: str | Path,
        port: int = 0,
        prefix: str = "/",
        isolated: bool = True,
        open_to_all: bool = False,
        handler: type[Handler] = Handler,
    ) -> None:
        if not Path(folder).is_dir():
            raise LabError(f"{folder}: there is no such folder; make it with `python -m moebius_lab bundle`")
        self.requests: list[str] = []
        options = {"prefix": prefix, "isolated": isolated, "open_to_all": open_to_all, "requests": self.requests}
        try:
            self.http = _QuietServer(("127.0.0.1", port), partial(handler, directory=str(folder), **options))
        except (OSError, OverflowError) as error:  # the second where it is no number of a port
            reason = getattr(error, "strerror", None) or first_line(error)
            raise LabError(f"port {port} cannot be used ({reason}); choose another with --port, 0 for a free one") from None
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Server:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
