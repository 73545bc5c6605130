"""How a clone's QEMU comes by its template's memory, which it must be able to read and not to change.

Clones share the pages that they don't write to: whoever could change them would change what other jobs run.  A private
mapping keeps a guest from that, but not a QEMU that a guest has taken over.  So QEMU never has a descriptor through which the
memory could be written:

* Since 8.2 it opens the file read-only, and the file is root's.
* Before, it insists on opening for writing even what it maps privately.  It gets a copy in memory (memfd) that is sealed:
  the kernel refuses every write and every shared writable mapping of it, to root too, for as long as it exists.  QEMU opens
  it through ``/proc/PID/fd/N`` of a process of its own user that holds it for that moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Iterator

from orchestrator.host.domain_xml import Memory
from orchestrator.host.template_files import RAM, Template, broken, digest_of, verify
from orchestrator.system.process import holding

_READ_ONLY_SINCE = (8, 2)
_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEALED = 0x0001 | 0x0002 | 0x0004 | 0x0008
"""No more seals, no shrinking, no growing, no writing: fcntl(2)."""


def opens_read_only(version: str) -> bool:
    """Whether QEMU of ``version`` can map privately what it may only read."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return numbers >= _READ_ONLY_SINCE


class SealedMemory:
    """A sealed copy of a template's memory; closing it frees it once no clone has it any more."""

    def __init__(self, template: Template) -> None:
        """Copies while it compares with the manifest.  Raises HostError (``template-broken``) or OSError."""
        self._lock = threading.Lock()
        self._descriptor = os.memfd_create(f"ironcd-{template.key[:12]}", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._descriptor, template.manifest.files[RAM].size)
            found = digest_of(template.file(RAM), lambda place, data: _put(self._descriptor, place, data))
            if found != template.manifest.files[RAM]:
                raise broken(f"{template.key[:12]}: its memory isn't what it was")
            os.fchmod(self._descriptor, 0o666)  # who gets as far as a descriptor of it may open it: it is sealed
            seal(self._descriptor)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def opened(self, user: int, group: int) -> Iterator[Memory]:
        """The memory, for a QEMU of ``user`` and ``group`` that is started within the block."""
        with self._lock:  # closed in the meantime, its number could be another file's
            descriptor = os.dup(self._descriptor)
        try:
            with holding([descriptor], user=user, group=group) as pid:
                yield Memory(f"/proc/{pid}/fd/{descriptor}", "clone")
        finally:
            os.close(descriptor)

    @property
    def seals(self) -> int:
        return fcntl.fcntl(self._descriptor, _GET_SEALS)

    @property
    def taken_bytes(self) -> int:
        """Memory of this machine that it can take, beside what clones have of their own: its whole size.

        A page that no template's guest ever touched is made in it when the first clone touches it, and stays.
        """
        with self._lock:
            return os.fstat(self._descriptor).st_size if self._descriptor >= 0 else 0

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


class ReadOnlyMemory:
    """The file itself, which QEMU's group may read."""

    def __init__(self, template: Template, group: int) -> None:
        """Raises HostError (``template-broken``) or OSError."""
        self._path = template.file(RAM)
        os.chown(self._path, 0, group)
        self._path.chmod(0o440)
        verify(template, but=tuple(name for name in template.manifest.files if name != RAM))
        self.taken_bytes = 0
        """The kernel can let go of what it has cached of the file."""

    @contextlib.contextmanager
    def opened(self, user: int, group: int) -> Iterator[Memory]:  # noqa: ARG002 - its rights are the file's
        yield Memory(str(self._path), "clone", read_only=True)

    def close(self) -> None:
        pass


SharedMemory = SealedMemory | ReadOnlyMemory


def memory_of(template: Template, version: str, group: int) -> SharedMemory:
    """The memory of ``template``, compared with its manifest, for QEMU of ``version``."""
    return ReadOnlyMemory(template, group) if opens_read_only(version) else SealedMemory(template)


def no_room(size: int, total: int, taken: int, kept: int, largest: int) -> str:
    """Why a sealed copy of ``size`` can't be kept; empty where it can.  All in MiB: of ``total`` VMs have ``taken``, other copies ``kept``.

    A machine of the ``largest`` class that is wanted must fit beside it, or that class could have no machine here any more.
    """
    if total - kept - size < largest:
        return f"QEMU before 8.2 needs {size} MiB for it, and then a machine of {largest} MiB has no room on this host"
    if total - kept - taken < size:
        return f"QEMU before 8.2 needs {size} MiB for it, which VMs have now"
    return ""


def seal(descriptor: int) -> None:
    """From now on nobody can change what the memfd ``descriptor`` holds, nor its size."""
    fcntl.fcntl(descriptor, _ADD_SEALS, _SEALED)


def _put(descriptor: int, place: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(descriptor, rest, place)
        rest, place = rest[done:], place + done
