"""Moves bytes between two connected sockets, both ways, and looks at none of them.

Up to 64 KiB each way go by recv and send, and so do small pieces after that, which is cheaper for short exchanges; bulk is
moved by the kernel (`os.splice` through a pipe).  A pipe is taken from the pool only while bytes are in it, so an idle connection costs two
file descriptors.  One side's end is passed on as an end (half-close), its reset as a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct

COPY_BYTES = 65_536
CHUNK = 262_144
ROUNDS = 8
"""Chunks that one direction may move before others get their turn."""

SMALL = 4096
"""A piece below this is cheaper to copy than to splice (HAProxy draws the same line)."""

_MAX_IDLE_PIPES = 64
_F_SETPIPE_SZ = 1031
_SPLICE_FLAGS = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK
_LINGER_RESET = struct.pack("ii", 1, 0)


def reset(sock: socket.socket) -> None:
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

    __slots__ = ("_bulk", "_in_pipe", "_left", "_loop", "_pipe", "_relay", "_source", "_target", "done", "moved")

    def __init__(self, relay: Relay, source: socket.socket, target: socket.socket) -> None:
        self.moved = 0
        self.done = False
        self._relay = relay
        self._loop = relay.loop
        self._source = source
        self._target = target
        self._left = memoryview(b"")
        self._pipe: tuple[int, int] | None = None
        self._in_pipe = 0
        self._bulk = False

    def start(self) -> None:
        self._loop.add_reader(self._source.fileno(), self._guard)

    def stop(self) -> None:
        self._loop.remove_reader(self._source.fileno())
        self._loop.remove_writer(self._target.fileno())
        if self._pipe is not None:
            discard(self._pipe)
            self._pipe = None

    def _guard(self) -> None:
        try:
            self._move()
        except OSError as error:
            self._relay.fail(error)

    def _move(self) -> None:
        for _ in range(ROUNDS):
            try:
                ended = self._fill()
            except BlockingIOError:
                return
            if ended:
                self._end()
                return
            if not self._drain():
                self._loop.remove_reader(self._source.fileno())
                self._loop.add_writer(self._target.fileno(), self._resume)
                return

    def _resume(self) -> None:
        try:
            if self._drain():
                self._loop.remove_writer(self._target.fileno())
                self._loop.add_reader(self._source.fileno(), self._guard)
        except OSError as error:
            self._relay.fail(error)

    def _fill(self) -> bool:
        """Take bytes from the source; True at its end."""
        if not self._bulk:
            data = self._source.recv(COPY_BYTES)
            self._left = memoryview(data)
            self._bulk = len(data) >= SMALL and self.moved + len(data) >= COPY_BYTES
            return not data
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
            return True
        return False

    def _drain(self) -> bool:
        """Give the target what was taken; False where it can't take all of it now."""
        try:
            while self._left:
                sent = self._target.send(self._left)
                self._left = self._left[sent:]
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
        self._relay.active = self._loop.time()

    def _end(self) -> None:
        self._loop.remove_reader(self._source.fileno())
        self.done = True
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self._relay.ended()


class Relay:
    """Both directions between ``client`` and ``upstream``, until both have ended.  `finished` gives the reason.

    ``sent_up`` bytes were sent upstream before (the hello), and are counted.
    """

    def __init__(
        self,
        client: socket.socket,
        upstream: socket.socket,
        *,
        pipes: Pipes,
        loop: asyncio.AbstractEventLoop,
        sent_up: int = 0,
    ) -> None:
        self.loop = loop
        self.pipes = pipes
        self.active = loop.time()
        self.finished: asyncio.Future[str] = loop.create_future()
        self._client = client
        self._upstream = upstream
        self._up = _Way(self, client, upstream)
        self._up.moved = sent_up
        self._down = _Way(self, upstream, client)

    @property
    def bytes_up(self) -> int:
        return self._up.moved

    @property
    def bytes_down(self) -> int:
        return self._down.moved

    def start(self) -> None:
        self._up.start()
        self._down.start()

    def ended(self) -> None:
        if self._up.done and self._down.done:
            self._finish("ended")

    def fail(self, error: OSError) -> None:
        """One side is broken: reset both."""
        reason = "reset" if isinstance(error, (ConnectionError, TimeoutError)) else f"error_{error.errno}"
        self.abort(reason)

    def abort(self, reason: str) -> None:
        """Reset both sides, now."""
        if not self.finished.done():
            self._finish(reason)

    def _finish(self, reason: str) -> None:
        self._up.stop()
        self._down.stop()
        if reason == "ended":
            self._client.close()
            self._upstream.close()
        else:
            reset(self._client)
            reset(self._upstream)
        self.finished.set_result(reason)
