"""A template's files, and how far they are trusted.

``<templates>/<key>/``: ``ram`` (sparse, of the guest's size), ``state`` (the devices), ``disk.qcow2`` on ``base.qcow2`` (the
image's own disk, by another link, so that the image may be rebuilt or pruned), ``kernel``, ``initrd``, ``manifest.json``.

A template is published by one rename.  Before its first use after a start of the agent everything is read and compared
with the manifest; after that the files are told by identity and times of change, which nobody but root can set back.
What differs is removed: a template can always be made again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from orchestrator.core.errors import HostError
from orchestrator.host.template_key import FORMAT, Basis
from orchestrator.system.files import sync_folder, write_atomic

RAM, STATE, DISK, BASE, KERNEL, INITRD, MANIFEST = (
    *("ram", "state", "disk.qcow2", "base.qcow2", "kernel", "initrd"),
    "manifest.json",
)
HASHED = (RAM, STATE, DISK, KERNEL, INITRD)
"""`BASE` is the image's, which is large and which clones share with machines that boot: its identity is in the key."""
_CHUNK = 1 << 20
_BUILDING = ".building-"
_KEY_DIGITS = 64

Sink = Callable[[int, bytes], None]
"""Called with the place and the bytes of each part of a file that isn't a hole."""


class Content(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    format: int
    key: str
    image: str
    created: float
    vcpus: int
    memory_mib: int
    disk_gib: int
    files: dict[str, Content]
    basis: Basis
    """What the key was made from."""


class Template(msgspec.Struct, frozen=True):
    folder: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        return self.manifest.key

    def file(self, name: str) -> Path:
        return self.folder / name


def digest_of(path: Path, sink: Sink | None = None) -> Content:
    """Size and SHA-256 of ``path``: over the place and bytes of each MiB that isn't all zeros, and the size.

    Holes cost nothing, and it doesn't matter which zeros are holes.  Raises OSError.
    """
    whole = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for place in _data_chunks(file.fileno(), size):
            data = os.pread(file.fileno(), _CHUNK, place)
            if data.strip(b"\0"):
                whole.update(place.to_bytes(8, "big"))
                whole.update(data)
                if sink is not None:
                    sink(place, data)
    whole.update(size.to_bytes(8, "big"))
    return Content(size, whole.hexdigest())


def _data_chunks(descriptor: int, size: int) -> Iterator[int]:
    """Places of the aligned chunks that have any data in them."""
    place = 0
    while place < size:
        try:
            found = os.lseek(descriptor, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        place = found // _CHUNK * _CHUNK
        yield place
        place += _CHUNK


def identity(template: Template) -> tuple[tuple[int, ...], ...]:
    """Of every file: other than before where one was written to, replaced, or given other rights.  Raises OSError."""
    found = []
    for name in (*HASHED, BASE, MANIFEST):
        stat = template.file(name).stat()
        times = () if name == BASE else (stat.st_ctime_ns,)  # a link more to the image changes that
        found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, *times))
    return tuple(found)


def read(folder: Path) -> Template:
    """What is said to be in ``folder``.  Raises HostError (``template-broken``) where that can't be so."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise broken(f"{folder.name[:12]} has no manifest that can be read: {error}") from error
    same = manifest.key == folder.name == manifest.basis.key
    if manifest.format != FORMAT or not same or set(manifest.files) != set(HASHED):
        raise broken(f"{folder.name[:12]} isn't what its name says")
    return Template(folder, manifest)


def verify(template: Template, *, but: tuple[str, ...] = ()) -> None:
    """Compare the files with the manifest, ``but`` those.  Raises HostError (``template-broken``)."""
    try:
        for name in HASHED:
            if name not in but and digest_of(template.file(name)) != template.manifest.files[name]:
                raise broken(f"{template.key[:12]}: {name} isn't what it was")
        template.file(BASE).stat()
    except OSError as error:
        raise broken(f"{template.key[:12]}: {error}") from error


def publish(building: Path, manifest: Manifest, folder: Path) -> Template:
    """Make ``building`` the template of its key, in one step; what may have been there before goes."""
    write_atomic(building / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1), mode=0o644)
    target = folder / manifest.key
    remove(target)
    building.rename(target)
    sync_folder(folder)
    return Template(target, manifest)


def note_use(folder: Path, now: float) -> None:
    """When a template was last used is its folder's time of change, for other agents beside this one to see too."""
    os.utime(folder, (now, now))


def workplace(folder: Path, name: str) -> Path:
    """A new folder to build in.  QEMU's user passes through it, and sees nothing."""
    place = folder / f"{_BUILDING}{name}"
    place.mkdir(mode=0o711)
    place.chmod(0o711)
    return place


def list_keys(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if len(entry.name) == _KEY_DIGITS and entry.is_dir())


def clear_half_built(folder: Path, before: float) -> None:
    """What a build that was killed left behind: nothing in there has changed since ``before``."""
    for entry in folder.glob(f"{_BUILDING}*"):
        with contextlib.suppress(FileNotFoundError):  # it was just published, or is being deleted
            if max(path.stat().st_mtime for path in (entry, *entry.iterdir())) < before:
                shutil.rmtree(entry, ignore_errors=True)


def remove(folder: Path) -> None:
    """Out of sight by one rename, then deleted: a half-deleted template is never found."""
    if folder.is_dir():
        gone = folder.with_name(f"{_BUILDING}gone-{folder.name}-{os.urandom(4).hex()}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def copy(source: Path, target: Path, *, mode: int) -> None:
    shutil.copyfile(source, target)
    target.chmod(mode)


def delete_built(place: Path) -> None:
    """What is left of a workplace; nothing where it was published."""
    shutil.rmtree(place, ignore_errors=True)


def disk_bytes(folder: Path) -> int:
    """What the files take on the disk.

    The image's own is the image's, as long as that has it too: it may have been copied, or pruned since.
    """
    taken = 0
    for entry in os.scandir(folder):
        found = entry.stat(follow_symlinks=False)
        if entry.name != BASE or found.st_nlink == 1:
            taken += found.st_blocks * 512
    return taken


def link_or_copy(source: Path, target: Path) -> None:
    """Another link to ``source``; a copy where that is on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def broken(why: str) -> HostError:
    return HostError(
        f"template {why}", code="template-broken", remedy="It is removed and made anew; jobs boot cold until then."
    )
