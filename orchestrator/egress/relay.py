"""Moves bytes between two connected sockets, both ways, and looks at none of them.

Up to 64 KiB each way go by recv and send, and so do small pieces after that, which is cheaper for short exchanges; bulk is
moved by the kernel (`os.splice` through a pipe).  A pipe is taken from the pool only while bytes are in it, so an idle connection costs two
file descriptors.  One side's end is passed on as an end (half-close), its reset as a reset.

The one exception to not looking: where a TLS session is expected, the server's first byte must begin a handshake or an
alert, and a client that is asked to say hello again must name the same host.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable

from orchestrator.egress.poller import ENDED, READABLE, WRITABLE
from orchestrator.egress.second_hello import SecondHello, asks_again

COPY_BYTES = 65_536
CHUNK = 262_144
ROUNDS = 8
"""Chunks that one direction may move before others get their turn."""

SMALL = 4096
"""A piece below this is cheaper to copy than to splice (HAProxy draws the same line)."""

_MAX_IDLE_PIPES = 64
_F_SETPIPE_SZ = 1031
_SPLICE_FLAGS = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK
_TLS_BEGINS = (0x16, 0x15)
"""A server's first record: its hello, or an alert in its place."""
_LINGER_RESET = struct.pack("ii", 1, 0)


def reset(sock: socket.SocketType) -> None:
    """Close ``sock`` so that its peer gets a reset at once, not an end that looks like an answer."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


class Pipes:
    """A pool of empty pipes."""

    def __init__(self) -> None:
        self._idle: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int]:
        if self._idle:
            return self._idle.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, CHUNK)
        return pipe

    def put(self, pipe: tuple[int, int]) -> None:
        """Give ``pipe`` back.  It must be empty."""
        if len(self._idle) < _MAX_IDLE_PIPES:
            self._idle.append(pipe)
        else:
            discard(pipe)

    def close(self) -> None:
        while self._idle:
            discard(self._idle.pop())


def discard(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    os.close(pipe[1])


class _Way:
    """One direction."""

    __slots__ = (
        "_bulk",
        "_in_pipe",
        "_left",
        "_pipe",
        "_relay",
        "_short",
        "_source",
        "_target",
        "done",
        "first",
        "hello",
        "hung_up",
        "moved",
    )

    def __init__(self, relay: Relay, source: socket.SocketType, target: socket.SocketType, head: bytes = b"") -> None:
        self.moved = 0
        self.done = False
        self.hung_up = False
        """The source has sent its last: read until its end is seen, whatever a short piece seems to say."""
        self.first = False
        """The next piece is the first of a TLS server."""
        self.hello: SecondHello | None = None
        """What is read goes through this before it goes on."""
        self._relay = relay
        self._source = source
        self._target = target
        self._left: bytes | memoryview = head
        self._pipe: tuple[int, int] | None = None
        self._in_pipe = 0
        self._bulk = False
        self._short = False
        """The last piece was all there was."""

    def begin(self) -> None:
        """Give the target its head; nothing is there to be read yet."""
        try:
            self._drain()
        except OSError as error:
            self._relay.fail(error)

    def stop(self) -> None:
        """Move nothing more.  The relay isn't asked any more, so what the two hold of each other can go at once."""
        self.done = True
        del self._relay
        if self._pipe is not None:
            discard(self._pipe)
            self._pipe = None

    def move(self) -> None:
        """Move what there is, until the source has no more or the target takes no more."""
        if self.done:
            return
        try:
            self._move()
        except BlockingIOError:
            pass
        except OSError as error:
            self._relay.fail(error)

    def flush(self) -> None:
        """The target takes bytes again."""
        if self._left or self._in_pipe:
            self.move()

    def _move(self) -> None:
        if not self._drain():
            return
        for _ in range(ROUNDS):
            got = self._fill()
            if self.done:
                return
            if not got:
                self._end()
                return
            if not self._drain() or (self._short and not self.hung_up):
                return  # we are told when there is more, or room for it
        self._relay.loop.call_soon(self.move)

    def _fill(self) -> int:
        """Take bytes from the source; how many, none at its end.  Raises BlockingIOError where there are none yet."""
        if self._bulk:
            self._short = False
            return self._splice()
        data = self._source.recv(COPY_BYTES)
        self._short = len(data) < COPY_BYTES
        if self.first or self.hello is not None:
            return len(self._inspected(data))
        self._left = data
        self._bulk = len(data) >= SMALL and self.moved + len(data) >= COPY_BYTES
        return len(data)

    def _splice(self) -> int:
        pipe = self._pipe or self._relay.pipes.take()
        try:
            self._in_pipe = os.splice(self._source.fileno(), pipe[1], CHUNK, flags=_SPLICE_FLAGS)
        except OSError:
            self._release(pipe)
            raise
        self._pipe = pipe
        self._bulk = self._in_pipe >= SMALL
        if self._in_pipe == 0:
            self._release(pipe)
        return self._in_pipe

    def _inspected(self, data: bytes) -> bytes:
        """``data``, which goes on once it has been looked at, or ends the relay."""
        if self.first and data:
            self.first = False
            self._relay.server_began(data)
        elif self.hello is not None and data:
            same = self.hello.feed(data)
            if same is None:
                return data
            held, self.hello = self.hello.data, None
            if same:
                self._left = bytes(held)
            else:
                self._relay.abort("sni_changed")
            return data
        self._left = data
        return data

    def _drain(self) -> bool:
        """Give the target what was taken; False where it can't take all of it now."""
        try:
            while self._left:
                # The end follows at once where the source has sent its last: both go in one segment.
                sent = self._target.send(self._left, socket.MSG_MORE if self.hung_up else 0)
                self._left = memoryview(self._left)[sent:] if sent < len(self._left) else b""
                self._count(sent)
            while self._in_pipe and self._pipe:
                sent = os.splice(self._pipe[0], self._target.fileno(), self._in_pipe, flags=_SPLICE_FLAGS)
                self._in_pipe -= sent
                self._count(sent)
        except BlockingIOError:
            return False
        if self._pipe is not None:
            self._release(self._pipe)
        return True

    def _release(self, pipe: tuple[int, int]) -> None:
        self._pipe = None
        self._relay.pipes.put(pipe)

    def _count(self, sent: int) -> None:
        self.moved += sent
        self._relay.active = self._relay.loop.time()

    def _end(self) -> None:
        self.done = True
        if self._relay.ended():
            return
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)


def _nobody(_reason: str) -> None:
    """Whom a relay tells that is over."""


class Relay:
    """Both directions between ``client`` and ``upstream``, until both have ended: then ``finished(reason)``, once.

    Both sockets are closed by then.  ``head`` (the hello) goes upstream first and is counted.  ``tls`` where a TLS server
    is expected to answer.  `client_ready` and `upstream_ready` are the poller's to call.
    """

    def __init__(
        self,
        client: socket.SocketType,
        upstream: socket.SocketType,
        *,
        pipes: Pipes,
        loop: asyncio.AbstractEventLoop,
        finished: Callable[[str], None],
        head: bytes = b"",
        tls: SecondHello | None = None,
    ) -> None:
        self.loop = loop
        self.pipes = pipes
        self.active = loop.time()
        self._finished = finished
        self._over = False
        self._client = client
        self._upstream = upstream
        self._second = tls
        self._up = _Way(self, client, upstream, head)
        self._down = _Way(self, upstream, client)
        self._down.first = tls is not None

    @property
    def bytes_up(self) -> int:
        return self._up.moved

    @property
    def bytes_down(self) -> int:
        return self._down.moved

    def start(self, *, client: int, upstream: int) -> None:
        """Go on from what the poller has said of the two so far."""
        self._up.hung_up = bool(client & ENDED)
        if client & READABLE:
            self._up.move()
        else:
            self._up.begin()
        if upstream & READABLE:
            self.upstream_ready(upstream)

    def client_ready(self, events: int) -> None:
        if events & ENDED:
            self._up.hung_up = True
        if events & READABLE:
            self._up.move()
        if events & WRITABLE:
            self._down.flush()

    def upstream_ready(self, events: int) -> None:
        if self._over:
            return
        if events & ENDED:
            self._down.hung_up = True
        if events & READABLE:
            self._down.move()
        if events & WRITABLE:
            self._up.flush()

    def server_began(self, flight: bytes) -> None:
        """``flight`` is the first that the server sends."""
        if flight[0] not in _TLS_BEGINS:
            self.abort("upstream_not_tls")
        elif asks_again(flight):
            self._up.hello = self._second

    def ended(self) -> bool:
        """One way has ended; True where both have, and so the relay."""
        if self._up.done and self._down.done:
            self._finish("ended")
        return self._over

    def fail(self, error: OSError) -> None:
        """One side is broken: reset both."""
        reason = "reset" if isinstance(error, (ConnectionError, TimeoutError)) else f"error_{error.errno}"
        self.abort(reason)

    def abort(self, reason: str) -> None:
        """Reset both sides, now."""
        self._finish(reason)

    def _finish(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        self._up.stop()
        self._down.stop()
        finished, self._finished = self._finished, _nobody
        finished(reason)
