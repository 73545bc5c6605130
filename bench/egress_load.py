"""The two ends of a connection through a gateway, as processes in namespaces of their own.  Standard library only.

```
python egress_load.py answer ADDRESS PORT                        each connection: read a hello, answer 64 bytes, close
python egress_load.py bulk ADDRESS PORT                          read a hello, then send without an end
python egress_load.py connections ADDRESS PORT NAME COUNT AT_ONCE   time COUNT connections; JSON to standard output
python egress_load.py receive ADDRESS PORT NAME SECONDS FLOWS    receive for so long over so many flows; JSON
```
Both ends are kept light, so that the gateway between them is what is measured: the server sends a file's pages
(sendfile), and the client has the kernel throw away what it received (MSG_TRUNC).
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import ssl
import sys
import tempfile
import threading
import time

TLS = b"\x16\x03\x03\x00\x3b"
ANSWER = TLS + bytes(59)
RECEIVE = 4 << 20
FILE_BYTES = 16 << 20
PATIENCE_S = 20.0


def hello(name: str) -> bytes:
    """The first flight of OpenSSL's client for ``name``."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a peer")


def listen(address: str, port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(4096)
    print("ready", flush=True)
    return sock


def answer(address: str, port: int) -> None:
    listener = listen(address, port)
    while True:
        client, _ = listener.accept()
        try:
            if client.recv(65_536):
                client.sendall(ANSWER)
        except OSError:
            pass
        client.close()


def bulk(address: str, port: int) -> None:
    listener = listen(address, port)
    with tempfile.TemporaryFile() as file:
        file.write(TLS + bytes(FILE_BYTES - len(TLS)))
        file.flush()
        while True:
            client, _ = listener.accept()
            threading.Thread(target=send, args=(client, file.fileno()), daemon=True).start()


def send(client: socket.socket, file: int) -> None:
    try:
        client.recv(65_536)
        while True:
            at = 0
            while at < FILE_BYTES:
                at += os.sendfile(client.fileno(), file, at, FILE_BYTES - at)
    except OSError:
        client.close()


class Connections:
    """``count`` connections, ``at_once`` at a time: dial, send the hello, take the answer and the end, close."""

    def __init__(self, address: str, port: int, name: str, count: int, at_once: int) -> None:
        self._target = (address, port)
        self._hello = hello(name)
        self._left = count
        self._at_once = at_once
        self._selector = selectors.EpollSelector()
        self._took: list[float] = []
        self._failed = 0

    def run(self) -> dict[str, object]:
        count = self._left
        began = time.perf_counter()
        for _ in range(min(self._at_once, count)):
            self._dial()
        while len(self._took) + self._failed < count:
            ready = self._selector.select(PATIENCE_S)
            if not ready:
                break
            for key, events in ready:
                self._step(key.fileobj, key.data, events)  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "done": len(self._took), "failed": count - len(self._took), "took": self._took}

    def _dial(self) -> None:
        self._left -= 1
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        began = time.perf_counter()
        sock.connect_ex(self._target)
        self._selector.register(sock, selectors.EVENT_WRITE, [began, 0])

    def _step(self, sock: socket.socket, state: list[float], events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                sock.send(self._hello)
                self._selector.modify(sock, selectors.EVENT_READ, state)
                return
            got = sock.recv(4096)
        except OSError:
            self._failed += 1
            got = b""
        else:
            state[1] += len(got)
            if got:
                if state[1] == len(ANSWER):
                    self._took.append(time.perf_counter() - state[0])
                return
            self._failed += state[1] != len(ANSWER)
        self._selector.unregister(sock)
        sock.close()
        if self._left:
            self._dial()


def receive(address: str, port: int, name: str, seconds: float, flows: int) -> dict[str, object]:
    first = hello(name)
    got = [0] * flows
    start, stop = threading.Barrier(flows), time.monotonic() + seconds + 0.3

    def one(index: int) -> None:
        with socket.create_connection((address, port), timeout=PATIENCE_S) as sock:
            sock.sendall(first)
            buffer = bytearray(RECEIVE)
            sock.recv_into(buffer)
            start.wait()
            while time.monotonic() < stop:
                size = sock.recv_into(buffer, RECEIVE, socket.MSG_TRUNC)
                if not size:
                    raise ConnectionError("ended early")
                got[index] += size

    began = time.monotonic()
    threads = [threading.Thread(target=one, args=(index,)) for index in range(flows)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seconds": time.monotonic() - began, "bytes": sum(got), "flows": sum(1 for size in got if size)}


def main(what: str, address: str, port: str, *rest: str) -> None:
    match what, rest:
        case "answer", ():
            answer(address, int(port))
        case "bulk", ():
            bulk(address, int(port))
        case "connections", (name, count, at_once):
            print(json.dumps(Connections(address, int(port), name, int(count), int(at_once)).run()))
        case "receive", (name, seconds, flows):
            print(json.dumps(receive(address, int(port), name, float(seconds), int(flows))))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
