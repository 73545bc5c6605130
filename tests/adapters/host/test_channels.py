"""The guests' channels on real sockets, with guests that misbehave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.host import guest
from orchestrator.host.channels import Channels, is_listening

BEAT = b'{"m":"beat"}\n'


class Qemu:
    """QEMU's end of a channel: listens, and takes one connection at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(60)
        self.link: socket.socket

    def accept(self) -> Qemu:
        self.link, _ = self._listener.accept()
        self.link.settimeout(60)
        return self

    def close(self) -> None:
        self._listener.close()
        if hasattr(self, "link"):
            self.link.close()


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard: list[tuple[str, guest.Message]] = []
        self.lost: list[str] = []
        self.changed = threading.Event()
        self.channels = Channels(self._hear, self._lose)
        self.made: list[Qemu] = []

    def _hear(self, ulid: str, message: guest.Message) -> None:
        self.heard.append((ulid, message))

    def _lose(self, ulid: str) -> None:
        self.lost.append(ulid)

    def qemu(self, ulid: str) -> Qemu:
        made = Qemu(self.folder / ulid)
        self.made.append(made)
        assert self.channels.ensure(ulid, made.path)
        return made.accept()

    def until(self, what, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.channels.stop()
    for qemu in made.made:
        qemu.close()


def test_both_directions(site):
    qemu = site.qemu("A")
    qemu.link.sendall(b'{"m":"hello","image":"sha256:1","cloud_init":"25.1"}\n{"m":"jit_')
    qemu.link.sendall(b'taken"}\n')
    site.until(lambda: len(site.heard) == 2)
    assert site.heard == [("A", guest.Hello("sha256:1", "25.1")), ("A", guest.JitTaken())]
    assert site.channels.send("A", guest.SeedGone())
    assert qemu.link.recv(100) == b'{"m":"seed_gone"}\n'


def test_what_isnt_there_cant_be_told(site, tmp_path):
    assert not site.channels.ensure("A", tmp_path / "nothing")
    assert not site.channels.send("A", guest.Stop())


def test_an_end_of_qemu_is_told_and_a_new_connection_can_be_made(site):
    qemu = site.qemu("A")
    qemu.link.close()
    site.until(lambda: site.lost == ["A"])
    assert is_listening(qemu.path)
    assert site.channels.ensure("A", qemu.path)
    site.made[0]._listener.accept()[0].close()
    qemu._listener.close()
    assert not is_listening(qemu.path)


def test_last_words_are_heard(site):
    qemu = site.qemu("A")
    qemu.link.sendall(b'{"m":"runner_exited","code":0}\n')
    qemu.link.close()
    site.until(lambda: site.lost)
    assert site.heard == [("A", guest.RunnerExited(0))]


def test_a_flood_is_read_slowly_and_holds_nobody_up(site):
    loud, calm = site.qemu("LOUD"), site.qemu("CALM")
    loud.link.settimeout(0.05)
    ended = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        while not ended.is_set():
            try:
                sent += loud.link.send(BEAT * 1000)
            except TimeoutError:
                continue

    thread = threading.Thread(target=flood)
    begun = time.monotonic()
    thread.start()
    try:
        for _ in range(10):
            before = len([1 for ulid, _ in site.heard if ulid == "CALM"])
            calm.link.sendall(BEAT)
            site.until(lambda b=before: len([1 for ulid, _ in site.heard if ulid == "CALM"]) > b)
        time.sleep(1)
    finally:
        ended.set()
        thread.join()
    heard = len([1 for ulid, _ in site.heard if ulid == "LOUD"])
    took_s = time.monotonic() - begun
    assert heard < 2400 + 50 * took_s, "200 at once, 50 a second, and what one read may hold on top"
    assert sent < 4 << 20


def test_a_line_without_end_is_no_burden(site):
    qemu = site.qemu("A")
    qemu.link.sendall(b"x" * 100_000 + b"\n")
    qemu.link.sendall(b"not json\n" + BEAT)
    site.until(lambda: site.heard == [("A", guest.Beat())])


def test_a_guest_that_never_reads_doesnt_block_us(site):
    site.qemu("A")
    results = [site.channels.send("A", guest.Refused("x" * 4000)) for _ in range(300)]
    assert results[0]
    assert not results[-1]


def test_a_listener_that_raises_doesnt_end_the_thread(site, monkeypatch):
    qemu = site.qemu("A")

    def broken(_ulid, _message):
        raise RuntimeError("a bug")

    monkeypatch.setattr(site.channels, "_heard", broken)
    qemu.link.sendall(BEAT)
    time.sleep(0.2)
    monkeypatch.undo()
    qemu.link.sendall(BEAT)
    site.until(lambda: site.heard)


def test_closing_is_no_loss(site):
    site.qemu("A")
    site.channels.close("A")
    time.sleep(0.3)
    assert site.lost == []
    assert not site.channels.send("A", guest.Stop())
