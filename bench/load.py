"""A load generator: deliveries over a few kept-alive connections, each sending its next once its last was answered.

It is one thread over one selector with requests that were built beforehand, so that on one core it outpaces what it
measures; `bench.receiver` shows by how much.  Every receiver gets the same bytes from the same code.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from bench.deliveries import Signed

RECEIVE = 64 << 10


class Load(msgspec.Struct, frozen=True):
    """What came of a burst.  ``latencies`` in seconds, one for each answer, from the first byte sent."""

    seconds: float
    statuses: dict[int, int]
    latencies: tuple[float, ...]

    def accepted(self, statuses: Sequence[int]) -> int:
        return sum(self.statuses.get(status, 0) for status in statuses)


def request(delivery: Signed, host: str, path: str) -> bytes:
    """The delivery as the bytes of an HTTP/1.1 request."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(delivery.body)}"]
    lines += [f"{name}: {value}" for name, value in delivery.headers()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + delivery.body


def send(address: tuple[str, int], requests: Sequence[bytes], *, connections: int, timeout_s: float = 60.0) -> Load:
    """Send all ``requests`` over ``connections`` at once.  Raises ConnectionError where the server hangs up, or times out."""
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    left = iter(requests)
    with selectors.DefaultSelector() as selector:
        clients = [_Client(address) for _ in range(min(connections, len(requests)))]
        began = time.perf_counter()
        try:
            for client in clients:
                selector.register(client.socket, selectors.EVENT_READ, client)
                client.send(next(left))
            _drain(selector, left, statuses, latencies, began + timeout_s)
            seconds = time.perf_counter() - began
        finally:
            for client in clients:
                client.socket.close()
    return Load(seconds, dict(statuses), tuple(latencies))


def _drain(
    selector: selectors.BaseSelector,
    left: Iterator[bytes],
    statuses: Counter[int],
    latencies: list[float],
    until: float,
) -> None:
    while selector.get_map():
        ready = selector.select(1.0)
        if not ready and time.perf_counter() > until:
            raise ConnectionError("the server doesn't answer in time")
        for key, _ in ready:
            client: _Client = key.data
            status = client.receive()
            if status is None:
                continue
            statuses[status] += 1
            latencies.append(time.perf_counter() - client.sent_at)
            following = next(left, None)
            if following is None:
                selector.unregister(client.socket)
            else:
                client.send(following)


class _Client:
    """One connection with at most one request on its way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._got = b""

    def send(self, data: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(data)

    def receive(self) -> int | None:
        """The status, once the whole answer is there.  Raises ConnectionError where there won't be one."""
        data = self.socket.recv(RECEIVE)
        if not data:
            raise ConnectionError(f"the server hung up after {len(self._got)} bytes of its answer")
        self._got += data
        status = answer_of(self._got)
        if status is not None:
            self._got = b""
        return status


def answer_of(data: bytes) -> int | None:
    """The status of the one HTTP answer in ``data``, or None where it isn't whole yet."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    lowered = head.lower()
    if b"\r\ntransfer-encoding: chunked" in lowered:
        whole = body.endswith(b"0\r\n\r\n")
    else:
        _, _, after = lowered.partition(b"\r\ncontent-length:")
        whole = len(body) >= int(after.split(b"\r\n", 1)[0] or b"0")
    return int(data[9:12]) if whole else None
