"""A control plane for one host, in memory: what a test wishes goes down, what the agent sees comes up."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import msgspec

from orchestrator.core.wire import Desired, DesiredRunner, LedgerAck, LedgerBatch, Observed, ObservedRunner

TOKEN = "test-token-of-a-host"


class ControlPlane:
    """``away`` makes it answer 503; ``observed`` are all reports in order; ``lines`` the ledger as it was shipped."""

    def __init__(self, host: str = "h1", port: int = 0) -> None:
        self.host = host
        self.away = False
        self.generation = 1
        self.runners: dict[str, DesiredRunner] = {}
        self.observed: list[Observed] = []
        self.lines: list[str] = []
        self.next_seq = 1
        self.refused = 0
        self.changed = threading.Condition()
        handler = type("Handler", (_Handler,), {"plane": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def wish(self, runner: DesiredRunner | None = None, *, drop: str = "") -> None:
        with self.changed:
            if runner is not None:
                self.runners[runner.id] = runner
            self.runners.pop(drop, None)
            self.generation += 1
            self.changed.notify_all()

    def change(self, ulid: str, **changes: object) -> None:
        self.wish(msgspec.structs.replace(self.runners[ulid], **changes))

    def seen(self, ulid: str) -> ObservedRunner | None:
        last = self.observed[-1].runners if self.observed else ()
        return next((runner for runner in last if runner.id == ulid), None)

    def until(self, what: Callable[[], object], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        with self.changed:
            while not what():
                left = deadline - time.monotonic()
                assert left > 0, self.observed[-1:]
                self.changed.wait(min(left, 0.2))

    def desired(self, generation: int, wait: float) -> Desired | None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.generation > generation, timeout=wait):
                return None
            return Desired(self.host, self.generation, tuple(self.runners.values()))

    def take(self, batch: LedgerBatch) -> LedgerAck:
        with self.changed:
            if batch.first_seq == self.next_seq:
                self.lines += batch.lines
                self.next_seq += len(batch.lines)
                self.changed.notify_all()
            return LedgerAck(self.next_seq)

    def note(self, observed: Observed) -> None:
        with self.changed:
            self.observed.append(observed)
            self.changed.notify_all()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    plane: ControlPlane
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if self._welcome():
            desired = self.plane.desired(int(query["generation"][0]), min(float(query["wait"][0]), 5))
            self._answer(204 if desired is None else 200, b"" if desired is None else msgspec.json.encode(desired))

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the agent was killed in the middle of it
            self.close_connection = True
            return
        if not self._welcome():
            return
        if self.path == "/host/v1/observed":
            self.plane.note(msgspec.json.decode(body, type=Observed))
            self._answer(204, b"")
        else:
            ack = self.plane.take(msgspec.json.decode(body, type=LedgerBatch))
            self._answer(200, msgspec.json.encode(ack))

    def _welcome(self) -> bool:
        if self.plane.away:
            self._answer(503, b"")
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.plane.refused += 1
            self._answer(401, b"")
        else:
            return True
        return False

    def _answer(self, status: int, body: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the agent was killed while it waited
            self._send(status, body)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass
