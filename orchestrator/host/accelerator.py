"""Which accelerator VMs get: hardware KVM, shown by a guest that really started under it, or emulation where that is allowed.

``/dev/kvm`` proves nothing: inside some virtual machines it exists, and a stock kernel gets stuck on it.  So a kernel is
started under it, with no disk and no network, until it has come as far as looking for its root file system.  The
answer is kept per kernel of the host, QEMU and guest kernel.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from orchestrator.core.settings import HostSettings
from orchestrator.core.wire import Failure
from orchestrator.system.files import write_atomic
from orchestrator.system.process import CommandFailed, run

log = structlog.get_logger()

KVM = Path("/dev/kvm")
MARKER = "Unable to mount root fs"
TIMEOUT_S = 15.0

_ACL = "system.posix_acl_access"
_USER_OBJ, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF

Chosen = Literal["kvm", "tcg", ""]
"""Empty where no VM may start."""
Probe = Callable[[Path], bool]


class Choice(msgspec.Struct, frozen=True):
    accelerator: Chosen
    why: str
    problem: Failure | None = None


class _Kept(msgspec.Struct):
    key: str
    works: bool


def choose(settings: HostSettings, kernel: Path, *, cache: Path, probe: Probe | None = None) -> Choice:
    """The accelerator for VMs of this host.  ``kernel`` is a guest kernel to try; ``cache`` a folder for the answer."""
    if settings.accelerator == "tcg":
        return _emulated(settings, "emulation is configured")
    works = _remembered(kernel, cache, probe or starts_under_kvm) if KVM.exists() else False
    if works:
        return Choice("kvm", "a guest kernel starts under KVM")
    why = "there is no /dev/kvm" if not KVM.exists() else "a guest kernel doesn't start under KVM"
    if settings.accelerator == "kvm":
        return Choice("", why, _unusable(why))
    return _emulated(settings, why)


def starts_under_kvm(kernel: Path) -> bool:
    """Start ``kernel`` under KVM with nothing to boot from; True where it comes as far as asking for its disk."""
    argv = ["qemu-system-x86_64", "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256", "-smp", "1"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    argv += ["-sandbox", "on", "-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"]
    try:
        return MARKER in run(argv, timeout_s=TIMEOUT_S, stdin="")
    except CommandFailed as error:
        log.info("kvm_probe_failed", status=error.status, output=error.output[-300:])
        return False


def device_problem(device: Path = KVM) -> Failure | None:
    """What is wrong with the mode of ``/dev/kvm``: where QEMU's user can't open it, each VM's start takes 90 s longer."""
    try:
        found = device.stat()
    except FileNotFoundError:
        return None
    if found.st_mode & 0o006 == 0o006:
        return None
    if found.st_mode & 0o060 == 0o060 and found.st_gid == _group("kvm"):
        return None
    return Failure(
        code="kvm-mode",
        message=f"{device} has mode {stat.S_IMODE(found.st_mode):04o} and group {found.st_gid}: QEMU can't open it",
        remedy=f"chgrp kvm {device} && chmod 0660 {device}, then restart libvirtd (a udev rule makes it last).",
    )


def open_to_group(gid: int, device: Path = KVM) -> bool:
    """See that QEMU in group ``gid`` can open ``device``; an entry in its access list is added where it can't.

    Each VM's QEMU has a user of its own, which is in no other group.  False where the file system takes no such list.
    """
    found = device.stat()
    if found.st_mode & 0o006 == 0o006 or (found.st_gid == gid and found.st_mode & 0o060 == 0o060):
        return True
    try:
        os.setxattr(device, _ACL, with_group(_access_list(device, found.st_mode), gid))
    except OSError as error:
        log.warning("kvm_not_opened", device=str(device), error=str(error))
        return False
    return True


def with_group(acl: bytes, gid: int) -> bytes:
    """``acl`` (as ``system.posix_acl_access`` has it) with reading and writing for group ``gid``.

    Layout: linux/posix_acl_xattr.h; a version, then entries of tag, permission and id, in the order of tag and id.
    """
    entries = {(tag, owner): perm for tag, perm, owner in struct.iter_unpack("<HHI", acl[4:])}
    entries[_GROUP, gid] = 6
    entries[_MASK, _NOBODY] = entries.get((_MASK, _NOBODY), 0) | 6 | entries.get((_GROUP_OBJ, _NOBODY), 0)
    packed = (struct.pack("<HHI", tag, entries[tag, owner], owner) for tag, owner in sorted(entries))
    return struct.pack("<I", 2) + b"".join(packed)


def _access_list(device: Path, mode: int) -> bytes:
    """The access list of ``device``; where it has none, what its mode means."""
    try:
        return os.getxattr(device, _ACL)
    except OSError:
        parts = ((_USER_OBJ, mode >> 6), (_GROUP_OBJ, mode >> 3), (_OTHER, mode))
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits & 7, _NOBODY) for tag, bits in parts)


def _emulated(settings: HostSettings, why: str) -> Choice:
    if settings.allow_emulation:
        return Choice("tcg", why)
    return Choice(
        "",
        why,
        Failure(
            code="emulation-refused",
            message=f"VMs would have to be emulated ({why}), which is slow and not meant for production",
            remedy="Run on a host with KVM, or set host.allow_emulation = true to try the system out.",
        ),
    )


def _unusable(why: str) -> Failure:
    return Failure(
        code="kvm-unusable",
        message=f"host.accelerator is kvm, but {why}",
        remedy="Turn virtualisation on in the firmware, load kvm_intel or kvm_amd, or use a host that isn't itself a VM.",
    )


def shared_user() -> Failure:
    return Failure(
        code="qemu-shared-user",
        message=f"{KVM} can't be opened to a user per VM: every VM's QEMU runs as the same user",
        remedy=f"Give {KVM} mode 0666 by a udev rule, or use a /dev that takes access lists.",
    )


def _remembered(kernel: Path, cache: Path, probe: Probe) -> bool:
    file = cache / "kvm-probe.json"
    key = _key(kernel)
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=_Kept)
        if kept.key == key:
            return kept.works
    except (OSError, msgspec.MsgspecError):
        pass
    works = probe(kernel)
    write_atomic(file, msgspec.json.encode(_Kept(key, works)))
    return works


def _key(kernel: Path) -> str:
    try:
        qemu = run(["qemu-system-x86_64", "--version"], timeout_s=10).splitlines()[0]
    except CommandFailed:
        qemu = ""
    here = os.uname()
    found = kernel.stat()
    text = f"{here.release} {here.version} {qemu} {kernel.resolve()} {found.st_size} {found.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()


def _group(name: str) -> int | None:
    for line in Path("/etc/group").read_text().splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] == name:
            return int(fields[2])
    return None
