"""A model hub on 127.0.0.1: the few endpoints of the real one that a download uses, with faults on request."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_FILE_BYTES = 1000  # from here on a file is announced with its SHA-256, as Git LFS does


@dataclass
class Request:
    """One request the hub has seen."""

    method: str
    path: str
    range: str | None
    authorised: bool


@dataclass
class Hub:
    """`repositories`: {repository: {path: content}}. Faults: `cut_after` {path: [bytes, ...]} drops one connection per
    entry after that many bytes; `corrupt` paths are sent with one byte changed; `no_ranges` ignores Range headers;
    `status` {path: [code, ...]} answers one request per entry with that status; `padded` paths are sent too long."""

    repositories: dict[str, dict[str, bytes]]
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    padded: set[str] = field(default_factory=set)
    no_ranges: bool = False
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> "Hub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloads(self) -> list[Request]:
        """The requests for file contents."""
        return [request for request in self.requests if "/resolve/" in request.path]

    def model_info(self, repository: str) -> dict:
        """What the real hub answers at /api/models/<repository>?blobs=true."""
        siblings = []
        for path, content in self.repositories[repository].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"rfilename": path, "size": len(content), "blobId": blob}
            if len(content) >= LARGE_FILE_BYTES:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 135}
            siblings.append(entry)
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(Request(self.command, path, self.headers.get("Range"), "Authorization" in self.headers))
            if path.startswith("/api/models/"):
                self.info(path.removeprefix("/api/models/"))
            elif f"/resolve/{COMMIT}/" in path:
                repository, _, file = path.removeprefix("/").partition(f"/resolve/{COMMIT}/")
                self.file(repository, file, body)
            else:
                self.plain(404, b"not here", {"X-Error-Code": "RevisionNotFound"})

        def info(self, repository: str) -> None:
            if repository in hub.repositories:
                self.plain(200, json.dumps(hub.model_info(repository)).encode())
            else:
                self.plain(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

        def file(self, repository: str, path: str, body: bool) -> None:
            content = hub.repositories.get(repository, {}).get(path)
            if content is None:
                self.plain(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if hub.status.get(path):
                self.plain(hub.status[path].pop(0), b"fault")
                return
            etag = hashlib.sha256(content).hexdigest()
            total = len(content)
            if path in hub.corrupt:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if path in hub.padded:
                content += b"more"
            start = 0
            wanted = self.headers.get("Range")
            if wanted and not hub.no_ranges:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= total:
                self.plain(416, b"")
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{total}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(total))
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if not body:
                return
            content = content[start:]
            cuts = hub.cut_after.get(path)
            if cuts:
                self.wfile.write(content[: cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
            else:
                self.wfile.write(content)

        def plain(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler
