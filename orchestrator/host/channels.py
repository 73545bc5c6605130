"""The sockets of the guests' channels: one thread reads them all, and no guest can hold it up.

`Channels.ensure` is called again and again for every VM that should have a channel; it connects where there is no
connection.  A message goes to ``heard``, and a connection that QEMU ended to ``lost``, both on the thread of this module;
they must not block for long.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from orchestrator.host.guest import Lines, Message, Order, Pace, encode, parse

log = structlog.get_logger()

Heard = Callable[[str, Message], None]
Lost = Callable[[str], None]
_READ = 4096
_MAX_UNSENT = 64 * 1024


class Talk(Protocol):
    """What the agent needs of the guests' channels; `Channels` is the real one."""

    def ensure(self, ulid: str, path: Path) -> bool:
        """Connect to the channel of ``ulid`` where that isn't done; True where it is connected."""

    def send(self, ulid: str, order: Order) -> bool:
        """False where there is no connection; the order is then lost."""

    def close(self, ulid: str) -> None: ...


def is_listening(path: Path) -> bool:
    """False where nobody has the socket ``path`` open any more: QEMU is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.setblocking(False)
        try:
            link.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


class _Channel:
    def __init__(self, ulid: str, link: socket.socket) -> None:
        self.ulid = ulid
        self.link = link
        self.lines = Lines()
        self.pace = Pace(time.monotonic())
        self.unsent = bytearray()
        self.resume_at = 0.0
        self.unreadable = 0


class Channels:
    def __init__(self, heard: Heard, lost: Lost) -> None:
        self._heard = heard
        self._lost = lost
        self._lock = threading.RLock()
        self._channels: dict[str, _Channel] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._ended = False
        self._thread = threading.Thread(target=self._turn, name="guest-channels", daemon=True)
        self._thread.start()

    def ensure(self, ulid: str, path: Path) -> bool:
        with self._lock:
            if ulid in self._channels:
                return True
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.setblocking(False)
            try:
                link.connect(str(path))
            except OSError:
                link.close()
                return False
            channel = _Channel(ulid, link)
            self._channels[ulid] = channel
            self._selector.register(link, selectors.EVENT_READ, channel)
        self._wake()
        return True

    def send(self, ulid: str, order: Order) -> bool:
        with self._lock:
            channel = self._channels.get(ulid)
            if channel is None or len(channel.unsent) > _MAX_UNSENT:
                return False
            channel.unsent += encode(order)
            self._flush(channel)
        self._wake()
        return True

    def close(self, ulid: str) -> None:
        with self._lock:
            channel = self._channels.get(ulid)
            if channel is not None:
                self._drop(channel)

    def stop(self) -> None:
        self._ended = True
        self._wake()
        self._thread.join(5)
        with self._lock:
            for channel in list(self._channels.values()):
                self._drop(channel)
            self._selector.close()
            self._wake_read.close()
            self._wake_write.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_write.send(b"x")

    def _turn(self) -> None:
        while not self._ended:
            ready = self._selector.select(0.2)
            for key, events in ready:
                if key.data is None:
                    with contextlib.suppress(OSError):
                        self._wake_read.recv(4096)
                    continue
                self._serve(key.data, events)
            self._resume()

    def _serve(self, channel: _Channel, events: int) -> None:
        with self._lock:
            if self._channels.get(channel.ulid) is not channel:
                return
            if events & selectors.EVENT_WRITE:
                self._flush(channel)
            if not events & selectors.EVENT_READ:
                return
            try:
                data = channel.link.recv(_READ)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._drop(channel)
            lines = list(channel.lines.feed(data))
            now = time.monotonic()
            pause = channel.pace.spend(now, len(lines) + len(data) / 1024)
            if pause and data:
                channel.resume_at = now + pause
                self._watch(channel)
        for line in lines:
            self._tell(channel, line)
        if not data:
            self._lost(channel.ulid)

    def _tell(self, channel: _Channel, line: bytes) -> None:
        message = parse(line)
        if message is None:
            channel.unreadable += 1
            if channel.unreadable in (1, 100, 10_000):
                log.warning("guest_unreadable", runner=channel.ulid, lines=channel.unreadable)
            return
        try:
            self._heard(channel.ulid, message)
        except Exception:
            log.exception("guest_message_failed", runner=channel.ulid, message=type(message).__name__)

    def _resume(self) -> None:
        now = time.monotonic()
        with self._lock:
            for channel in self._channels.values():
                if channel.resume_at and channel.resume_at <= now:
                    channel.resume_at = 0.0
                    self._watch(channel)

    def _watch(self, channel: _Channel) -> None:
        """Have the selector look for what this channel waits for."""
        events = 0 if channel.resume_at else selectors.EVENT_READ
        if channel.unsent:
            events |= selectors.EVENT_WRITE
        registered = channel.link in self._selector.get_map()
        if events and registered:
            self._selector.modify(channel.link, events, channel)
        elif events:
            self._selector.register(channel.link, events, channel)
        elif registered:
            self._selector.unregister(channel.link)

    def _flush(self, channel: _Channel) -> None:
        try:
            sent = channel.link.send(channel.unsent)
            del channel.unsent[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._drop(channel)
            return
        self._watch(channel)

    def _drop(self, channel: _Channel) -> None:
        self._channels.pop(channel.ulid, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(channel.link)
        channel.link.close()
