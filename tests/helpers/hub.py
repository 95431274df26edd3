"""A stand-in for the model hub: the few answers its client needs to fetch one file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import save_file

COMMIT = "0" * 40


@contextmanager
def serve_hub(folder: Path, repositories: dict[str, dict[str, torch.Tensor]]) -> Iterator[str]:
    """Serve ``model.safetensors`` of each repository on the loopback address; yields the endpoint."""
    files: dict[str, bytes] = {}
    folder.mkdir(parents=True)
    for repository, state in repositories.items():
        path = folder / "model.safetensors"
        save_file(state, path)
        files[f"/{repository}/resolve/main/model.safetensors"] = path.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            body = files.get(self.path.partition("?")[0])
            self.send_response(200 if body else 404)
            if body:
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if with_body and body:
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            del format, arguments

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
