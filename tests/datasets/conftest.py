"""A web server on this machine, so that downloads are tested with real connections and without a network."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Handler(BaseHTTPRequestHandler):
    def __init__(self, files, *args, **kwargs):
        self.files = files
        super().__init__(*args, **kwargs)

    def do_GET(self):
        content, promised = self.files.get(self.path, (None, 0))
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args):
        pass


class Server:
    """Serves what is put; may promise more bytes than it sends, as a connection that breaks does."""

    def __init__(self, address: str, files: dict[str, tuple[bytes, int]]) -> None:
        self.address, self._files = address, files

    def put(self, name: str, content: bytes, *, promised: int | None = None) -> str:
        self._files[f"/{name}"] = content, len(content) if promised is None else promised
        return f"{self.address}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    files: dict[str, tuple[bytes, int]] = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, files)) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{web.server_port}", files)
        web.shutdown()
        thread.join()
