"""What a VM's guest says and is told: JSON lines over its virtio-serial port.  The guest is hostile.

So: a line has at most 8 KiB, a field its own bound, an unknown or unreadable line is counted and skipped, and a guest
that talks faster than any honest one is read more slowly, which costs it and nobody else.  What is said is a claim:
nothing here widens what the VM may do.

The pure part is first (`parse`, `Lines`, `Pace`); `orchestrator.host.channels` has the sockets.
"""

from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

MAX_LINE = 8 * 1024
_RANDOM_BYTES = 64

_Word = Annotated[str, Meta(max_length=128)]
_Name = Annotated[str, Meta(max_length=512)]
_Tail = Annotated[str, Meta(max_length=MAX_LINE)]
_Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Code = Annotated[int, Meta(ge=-255, le=255)]


class Hello(Struct, frozen=True, tag_field="m", tag="hello"):
    image: _Word = ""
    cloud_init: _Word = ""


class Settled(Struct, frozen=True, tag_field="m", tag="settled"):
    """The machine stands still at the gate: a template can be taken of it."""


class Prepared(Struct, frozen=True, tag_field="m", tag="prepared"):
    """The machine is one of its own and waits at the gate for a job."""


class Opened(Struct, frozen=True, tag_field="m", tag="opened"):
    """The machine has a clock, an identity and randomness of its own; cloud-init goes on."""


class WhatTime(Struct, frozen=True, tag_field="m", tag="what_time"):
    pass


class JitTaken(Struct, frozen=True, tag_field="m", tag="jit_taken"):
    """The JIT configuration was read, its file unlinked, and cloud-init's copies scrubbed."""


class RunnerStarted(Struct, frozen=True, tag_field="m", tag="runner_started"):
    pid: _Number = 0


class Listening(Struct, frozen=True, tag_field="m", tag="listening"):
    pass


class JobStarted(Struct, frozen=True, tag_field="m", tag="job_started"):
    repository: _Name = ""
    run_id: _Number = 0
    run_attempt: _Number = 0
    job: _Name = ""
    runner_name: _Word = ""


class JobCompleted(Struct, frozen=True, tag_field="m", tag="job_completed"):
    pass


class RunnerExited(Struct, frozen=True, tag_field="m", tag="runner_exited"):
    code: _Code = 0
    log_tail: _Tail = ""


class Beat(Struct, frozen=True, tag_field="m", tag="beat"):
    pass


Message = (
    Hello
    | Settled
    | Prepared
    | Opened
    | WhatTime
    | JitTaken
    | RunnerStarted
    | Listening
    | JobStarted
    | JobCompleted
    | RunnerExited
    | Beat
)


class Settle(Struct, frozen=True, tag_field="m", tag="settle"):
    """Come to rest at the gate, and say so."""


class Prepare(Struct, frozen=True, tag_field="m", tag="prepare"):
    """Be a machine of your own, and wait at the gate, which stays closed.  The fields are those of `Open`."""

    now_ns: int
    random: str

    def __repr__(self) -> str:
        return "Prepare()"


class Open(Struct, frozen=True, tag_field="m", tag="open"):
    """The gate's opening line.  ``now_ns`` since the epoch; ``random`` in base64, for this machine alone."""

    now_ns: int
    random: str

    def __repr__(self) -> str:
        return "Open()"


class Time(Struct, frozen=True, tag_field="m", tag="time"):
    now_ns: int


class SeedGone(Struct, frozen=True, tag_field="m", tag="seed_gone"):
    """The seed is ejected and deleted: the runner may start."""


class Bound(Struct, frozen=True, tag_field="m", tag="bound"):
    """The job's policy is in force: its steps may start."""

    policy: str
    mode: str
    rules: int


class Refused(Struct, frozen=True, tag_field="m", tag="refused"):
    reason: str


class Stop(Struct, frozen=True, tag_field="m", tag="stop"):
    """End the runner with SIGTERM."""


Order = Settle | Prepare | Open | Time | SeedGone | Bound | Refused | Stop

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def parse(line: bytes) -> Message | None:
    """The message in ``line``; None for what isn't one."""
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


def opening() -> Open:
    """An opening line, to be sent at once: it has the time."""
    return Open(time.time_ns(), _fresh())


def preparing() -> Prepare:
    """To be sent at once."""
    return Prepare(time.time_ns(), _fresh())


def _fresh() -> str:
    return b64encode(os.urandom(_RANDOM_BYTES)).decode("ascii")


def encode(order: Order) -> bytes:
    return msgspec.json.encode(order) + b"\n"


class Lines:
    """Cuts a stream into lines; never holds more than one line's bound.  A longer line is skipped whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipping = False
        self.skipped = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        pieces = data.split(b"\n")
        for piece in pieces[:-1]:
            whole = self._take(piece)
            if whole:
                yield whole
        self._keep(pieces[-1])

    def _take(self, piece: bytes) -> bytes:
        self._keep(piece)
        line, too_long = bytes(self._buffer), self._skipping
        self._buffer.clear()
        self._skipping = False
        return b"" if too_long else line

    def _keep(self, piece: bytes) -> None:
        if self._skipping:
            return
        if len(self._buffer) + len(piece) > MAX_LINE:
            self._buffer.clear()
            self._skipping = True
            self.skipped += 1
            return
        self._buffer += piece


class Pace:
    """A token bucket: how much of a guest's talk is read.  Times are in seconds, of a clock that only goes forward."""

    def __init__(self, now: float, *, burst: float = 200.0, per_second: float = 50.0) -> None:
        self._burst = burst
        self._rate = per_second
        self._tokens = burst
        self._at = now

    def spend(self, now: float, cost: float) -> float:
        """Take ``cost`` tokens; for how many seconds nothing more should be read (0.0 where the bucket has some left)."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= cost
        return 0.0 if self._tokens > 0 else -self._tokens / self._rate + 0.05
