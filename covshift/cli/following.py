"""What ``report --watch`` and ``watch`` share: following recordings as they grow, and a page for this machine alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from covshift.exceptions import RecordingError
from covshift.store.growth import Growth, growth

LOOPBACK = "127.0.0.1"


def follow(paths: Sequence[Path], *, seconds: float, pause: Callable[[float], None] = time.sleep) -> Iterator[bool]:
    """Yield whenever one of the recordings has grown, first at once, until none of them is written any more.

    A recording that is damaged or missing grows no more; what follows from that is for whoever opens it to say.

    Parameters
    ----------
    paths : sequence of Path
        Recordings.
    seconds : float
        How often to look.
    pause : callable
        Waits so many seconds.

    Yields
    ------
    bool
        Whether any recording goes on; the last is False.
    """
    seen = None
    while True:
        now = [_growth(path) for path in paths]
        goes_on = any(one.goes_on for one in now)
        if now != seen:
            yield goes_on
        if not goes_on:
            return
        seen = now
        pause(seconds)


def _growth(path: Path) -> Growth:
    try:
        return growth(path)
    except RecordingError:
        return Growth(records=0, goes_on=False)


@contextmanager
def served(page: Path, *, port: int) -> Iterator[str]:
    """Serve one file on the loopback interface inside the ``with``, and nothing else to nobody else.

    Parameters
    ----------
    page : Path
        The file; it is read anew for every request.
    port : int
        Port to listen on; 0 lets the system choose.

    Yields
    ------
    str
        Where a browser on this machine finds it.
    """
    server = ThreadingHTTPServer((LOOPBACK, port), _handler(page))
    address = f"{LOOPBACK}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{address}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(page: Path) -> type[BaseHTTPRequestHandler]:
    class PageHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # a name that some site points at this machine is not ours: only the address itself is answered
            ours = self.headers.get("Host", "").rpartition(":")[0] == LOOPBACK and self.path == "/"
            if not ours or not page.exists():
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = page.read_bytes()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Say nothing: the terminal belongs to the command."""

    return PageHandler
