"""A package index on the loopback address, with wheels made on the spot and faults on demand."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def wheel(project: str, version: str, files: dict[str, bytes]) -> bytes:
    """A wheel with ``files`` below its package folder."""
    name = project.replace("-", "_")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, content in files.items():
            archive.writestr(f"{name}/{path}", content)
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n",
        )
    return buffer.getvalue()


class Index:
    """``simple`` is its URL; ``requests`` lists ``(path, Range header)`` of the files that were asked for.

    ``cut``: close the connection after so many bytes of the next file. ``ranges``: whether ranges are
    honoured. ``wrong``: promise a checksum that the files do not have. ``as_json``: answer in the JSON form.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut: int | None = None
        self.ranges, self.wrong, self.as_json = True, False, False
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/simple/"):
                    index._page(self, self.path.split("/")[2])
                else:
                    index._file(self, self.path.rsplit("/", 1)[1])

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.simple = f"http://127.0.0.1:{self._server.server_port}/simple/"

    def add(self, project: str, version: str, files: dict[str, bytes]) -> bytes:
        """Put a wheel on the index; returns its bytes."""
        content = wheel(project, version, files)
        self.files[f"{project.replace('-', '_')}-{version}-py3-none-any.whl"] = content
        return content

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _page(self, handler: BaseHTTPRequestHandler, project: str) -> None:
        names = [name for name in self.files if name.startswith(project.replace("-", "_") + "-")]
        if not names:
            handler.send_error(404)
            return
        sums = {n: "0" * 64 if self.wrong else hashlib.sha256(self.files[n]).hexdigest() for n in names}
        if self.as_json:
            files = [{"filename": n, "url": f"/files/{n}", "hashes": {"sha256": sums[n]}} for n in names]
            body = json.dumps({"meta": {"api-version": "1.0"}, "name": project, "files": files})
            kind = "application/vnd.pypi.simple.v1+json"
        else:
            body = "".join(f'<a href="/files/{n}#sha256={sums[n]}">{n}</a>\n' for n in names)
            kind = "text/html"
        self._send(handler, 200, {"Content-Type": kind}, body.encode())

    def _file(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((name, asked))
        content, status, headers = self.files[name], 200, {}
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self._send(handler, 416, {"Content-Range": f"bytes */{len(content)}"}, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        self._send(handler, status, headers, content)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if self.cut is not None and "Content-Type" not in headers:
            body, self.cut = body[: self.cut], None
            handler.close_connection = True
        handler.wfile.write(body)
