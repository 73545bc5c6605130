"""The guest's end of the channel, where the host comes, speaks and goes: the ends of a socket pair stand for the port's.

Like the port it polls as hung up once the other end is closed, and still gives what was written before.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner_image.guest import main
from runner_image.guest.main import Channel, Guest


class Ends:
    """The guest's end stays; each ``host`` is one process at the other end, until it closes."""

    def __init__(self) -> None:
        self.host, self.guest = socket.socketpair()
        self.guest.setblocking(False)
        self.channel = Channel(self.guest.fileno())

    def come_back(self) -> None:
        """A new process at the host's end."""
        self.host, other = socket.socketpair()
        other.setblocking(False)
        os.dup2(other.fileno(), self.guest.fileno())
        other.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.host.close()
    made.guest.close()


@pytest.fixture
def guest(ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    facts = tmp_path / "image.json"
    facts.write_text(json.dumps({"digest": "d", "cloud_init": "25.1"}))
    monkeypatch.setattr(main, "FACTS", str(facts))
    monkeypatch.setattr(main, "find_port", lambda: os.devnull)
    with socket.socket(socket.AF_UNIX) as hooks:
        hooks.bind(str(tmp_path / "hooks"))
        hooks.listen()
        monkeypatch.setattr(main, "listen", lambda _path: hooks)
        made = Guest()
        os.close(made.channel.descriptor)
        made.channel = ends.channel
        yield made


@pytest.fixture
def heard(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> list[bytes | str]:
    """Lines that the session was given, and when it was told that the host came or went, in order."""
    told: list[bytes | str] = []

    def note(what: bytes | str) -> list[main.Effect]:
        told.append(what)
        return []

    monkeypatch.setattr(guest.session, "heard", lambda line, _now: note(line))
    monkeypatch.setattr(guest.session, "opened", lambda: note("came"))
    monkeypatch.setattr(guest.session, "closed", lambda _now: note("went"))
    return told


def look(guest: Guest) -> None:
    if guest.channel.changed():
        guest.came_or_went()


def test_a_line_that_comes_together_with_a_hang_up_is_heard_while_the_guest_waits(guest, ends, heard) -> None:
    look(guest)
    ends.host.sendall(b"one\ntwo\n")
    ends.host.close()
    guest.wait()
    assert heard == ["came", b"one", b"two", "went"]


def test_and_where_the_guest_looks_who_is_there(guest, ends, heard) -> None:
    look(guest)
    ends.host.sendall(b"one\n" + b"x" * 5000 + b"\n")
    ends.host.close()
    look(guest)
    assert heard == ["came", b"one", b"x" * 5000, "went"]
    look(guest)
    guest.wait()
    assert len(heard) == 4, "once each"


def test_a_line_that_was_cut_off_by_a_hang_up_is_no_part_of_the_next(guest, ends, heard) -> None:
    look(guest)
    ends.host.sendall(b"one\nhalf a li")
    ends.host.close()
    guest.wait()
    ends.come_back()
    look(guest)
    ends.host.sendall(b"two\n")
    guest.wait()
    assert heard == ["came", b"one", "went", "came", b"two"]


def test_what_was_not_sent_to_one_is_not_sent_to_the_next(guest, ends, heard) -> None:
    look(guest)
    ends.host.close()
    guest.wait()
    guest.channel.send(b"to nobody\n")
    ends.come_back()
    look(guest)
    guest.channel.send(b"to the next\n")
    assert ends.host.recv(100) == b"to the next\n"
