"""The gate that every machine passes before cloud-init's first stage, and what makes it a machine of its own there.

A machine may be a clone: one of several that woke from the memory of one template.  Up to the gate nothing is in it that
only one may have.  The host's opening line brings what a clone can't know or make: the time, and random bytes.  A
machine that was booted passes the same gate in the same way, so that there is one path and not two.

What is renewed: the clock, the kernel's random generator, the machine's and the boot's id, SSH host keys, and what the
kernel remembers of the seed's drive.  The hostname is cloud-init's to set.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import socket
import struct
import subprocess
import time
from base64 import b64decode

from .mounts import BIND, mount

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_BLKFLSBUF = 0x1261

MACHINE_ID = "/etc/machine-id"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
SEED_DRIVE = "/dev/sr0"
_OWN_BOOT_ID = "/run/ironcd/boot_id"
_SSH_KEYS = "/etc/ssh/ssh_host_*_key*"


def open_gate(order: dict[str, object], *, prepared: bool = False) -> None:
    """Make this machine one of its own.  ``order``: ``now_ns`` since the epoch, ``random`` in base64.

    ``prepared``: it has waited here as one (`prepare`), and only the time and randomness are made good again.
    Raises OSError or ValueError where that fails: the gate then stays closed.
    """
    take_time_and_randomness(order)
    if not prepared:
        renew_ids()
        renew_ssh_keys()
    forget_seed()


def prepare(order: dict[str, object]) -> None:
    """Make this machine one of its own, that goes on waiting at the gate.  Raises as `open_gate` does."""
    take_time_and_randomness(order)
    renew_ids()
    renew_ssh_keys()


def take_time_and_randomness(order: dict[str, object]) -> None:
    now_ns, fresh = order["now_ns"], order["random"]
    if not isinstance(now_ns, int) or not isinstance(fresh, str):
        raise ValueError("the opening line has no time or no randomness")  # noqa: TRY004 - what a peer said is wrong
    set_clock(now_ns)
    reseed(b64decode(fresh, validate=True))


def set_clock(now_ns: int, *, only_forward: bool = False) -> None:
    """``only_forward``: what has run since the gate never sees a time twice."""
    if not only_forward or now_ns > time.clock_gettime_ns(time.CLOCK_REALTIME):
        time.clock_settime_ns(time.CLOCK_REALTIME, now_ns)


def reseed(fresh: bytes) -> None:
    """Credit ``fresh`` to the kernel's generator and have every processor's key made anew from it."""
    if len(fresh) < 32:
        raise ValueError("too little randomness")
    descriptor = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _RNDADDENTROPY, struct.pack("=ii", len(fresh) * 8, len(fresh)) + fresh)
        fcntl.ioctl(descriptor, _RNDRESEEDCRNG)
    finally:
        os.close(descriptor)


def renew_ids(machine_id: str = MACHINE_ID, own_boot_id: str = _OWN_BOOT_ID) -> None:
    """The machine's id (machine-id(5)), and the boot's: a file of ours is bound over the kernel's, as containers have it."""
    _write(machine_id, os.urandom(16).hex() + "\n")
    random = bytearray(os.urandom(16))
    random[6], random[8] = random[6] & 0x0F | 0x40, random[8] & 0x3F | 0x80
    text = random.hex()
    _write(own_boot_id, "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])) + "\n")
    mount(own_boot_id, BOOT_ID, flags=BIND)


def renew_ssh_keys(pattern: str = _SSH_KEYS) -> None:
    """Delete the host keys, and make new ones where the image has a server that would want them."""
    keys = glob.glob(pattern)
    for key in keys:
        os.unlink(key)
    if keys:
        subprocess.run(["/usr/bin/ssh-keygen", "-q", "-A"], check=True, timeout=120, stdin=subprocess.DEVNULL)


def forget_seed(drive: str = SEED_DRIVE) -> None:
    """Drop what is cached of the drive: the next that is read is this machine's own seed."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(drive, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _BLKFLSBUF)
        finally:
            os.close(descriptor)


def tell_systemd(state: str) -> None:
    """sd_notify(3): units that are ordered after ours start once it is ready."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
        link.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)


def _write(path: str, text: str) -> None:
    """In place: PID 1 may have the file bound over another."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
