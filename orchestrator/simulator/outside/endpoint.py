"""One TCP connection to the world: recorded byte by byte as it came, and answered as what it turns out to be.

TLS is ended in memory, so that the raw bytes are on record even where no handshake comes of them.  What is inside (or a
plain stream) is taken for HTTP where it starts like HTTP, and echoed otherwise.  Port 22 greets like SSH, port 53 is DNS.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import httptools

from orchestrator.simulator.outside.names import Names, question_of
from orchestrator.simulator.outside.records import Received, Recorder, Request

SSH_BANNER = b"SSH-2.0-OpenSSH_10.0p2 Debian-7\r\n"
_ORIGINAL_DST = 80
_CHUNK = bytes(65_536)
MOST_BYTES = 1 << 32


def original_destination(connection: socket.socket) -> tuple[str, int]:
    """Where the connection was going before nftables redirected it here."""
    raw = connection.getsockopt(socket.SOL_IP, _ORIGINAL_DST, 16)
    port, address = struct.unpack_from("!2xH4s", raw)
    return socket.inet_ntoa(address), port


Greeting = Callable[[str, int], str]
"""What the site at an address and port says about itself."""


class Endpoint(asyncio.Protocol):
    def __init__(
        self, recorder: Recorder, names: Names, context_for: Callable[[str], ssl.SSLContext], greeting: Greeting
    ) -> None:
        self._recorder = recorder
        self._names = names
        self._context_for = context_for
        self._greeting = greeting
        self._kind = ""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._http: Any = None
        self._request = Request("", "", {})
        self._left = 0
        self._paused = False
        self._keep_alive = True
        self._dns = b""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        source = transport.get_extra_info("peername")
        address, port = original_destination(transport.get_extra_info("socket"))
        self._record = self._recorder.add(Received("tcp", source[0], source[1], address, port))
        if port == 22:
            self._kind = "echo"
            self._write_raw(SSH_BANNER)
        elif port == 53:
            self._kind = "dns"

    def data_received(self, data: bytes) -> None:
        self._record.take(data)
        if not self._kind:
            self._kind = "tls" if data[:1] == b"\x16" else "plain"
        if self._kind == "tls":
            self._decrypt(data)
        elif self._kind == "dns":
            self._query(data)
        elif self._kind == "echo":
            self._write_raw(data)
        else:
            self._plain(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._record.closed = True
        self._left = 0

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def _write_raw(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._record.bytes_out += len(data)
            self._transport.write(data)

    # TLS

    def _decrypt(self, data: bytes) -> None:
        if self._tls is None:
            context = self._context_for(self._record.address)
            context.sni_callback = self._on_name
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(data)
        try:
            if not self._record.tls:
                self._tls.do_handshake()
                self._record.tls = True
            while plain := self._tls.read(65_536):
                self._plain(plain)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._write_raw(self._outgoing.read())
            self._transport.close()
            return
        self._write_raw(self._outgoing.read())

    def _on_name(self, _tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
        self._record.sni = name

    def _write(self, data: bytes) -> None:
        if self._tls is None:
            self._write_raw(data)
            return
        with contextlib.suppress(ssl.SSLError):
            self._tls.write(data)
        self._write_raw(self._outgoing.read())

    # HTTP, or whatever it is

    def _plain(self, data: bytes) -> None:
        if self._http is None:
            if not data[:1].isupper():
                self._kind = "echo" if self._tls is None else self._kind
                self._write(data)
                return
            self._http = httptools.HttpRequestParser(self)
        try:
            self._http.feed_data(data)
        except httptools.HttpParserError:
            self._write(data)

    def on_message_begin(self) -> None:
        self._request = Request("", "", {})

    def on_url(self, url: bytes) -> None:
        self._request.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._request.method = self._http.get_method().decode("latin-1")
        self._record.requests.append(self._request)

    def on_body(self, body: bytes) -> None:
        self._request.body_bytes += len(body)

    def on_message_complete(self) -> None:
        self._keep_alive = self._http.should_keep_alive()
        body = self._greeting(self._record.address, self._record.port).encode()
        size = self._asked_size()
        length = len(body) if size is None else size
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nServer: world\r\n"
            f"Content-Length: {length}\r\nConnection: {'keep-alive' if self._keep_alive else 'close'}\r\n\r\n"
        )
        self._write(head.encode() + (body if size is None and self._request.method != "HEAD" else b""))
        self._left = size or 0
        self._pump()

    def _asked_size(self) -> int | None:
        """``/bytes/N`` answers with N zero bytes."""
        prefix, _, number = self._request.target.partition("/bytes/")
        return min(int(number), MOST_BYTES) if not prefix and number.isdigit() else None

    def _pump(self) -> None:
        while self._left and not self._paused and not self._transport.is_closing():
            size = min(self._left, len(_CHUNK))
            self._left -= size
            self._write(_CHUNK[:size])
        if not self._left and not self._keep_alive and not self._paused:
            self._transport.close()

    # DNS over TCP

    def _query(self, data: bytes) -> None:
        self._dns += data
        while len(self._dns) >= 2 and len(self._dns) >= 2 + int.from_bytes(self._dns[:2], "big"):
            size = int.from_bytes(self._dns[:2], "big")
            query, self._dns = self._dns[2 : 2 + size], self._dns[2 + size :]
            name, kind = question_of(query)
            record = self._record
            self._recorder.add(
                Received(
                    "dns",
                    record.source,
                    record.source_port,
                    record.address,
                    record.port,
                    raw=query,
                    bytes_in=size,
                    name=name,
                    kind=kind,
                )
            )
            if (answer := self._names.answer(query)) is not None:
                self._write_raw(len(answer).to_bytes(2, "big") + answer)
