"""The images that this host has: ``<cache>/images/<digest>/`` and ``<cache>/images/<name>``, a link to one of them."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from orchestrator.core.errors import HostError
from orchestrator.core.wire import Image

log = structlog.get_logger()

DEFAULT_CMDLINE = "root=/dev/vda rw console=ttyS0 panic=1"


class Manifest(msgspec.Struct, frozen=True):
    """``manifest.json`` as the image's builder writes it; what it has beyond this is for people."""

    name: str
    digest: str
    runner_version: str
    presets: dict[str, tuple[str, ...]] = {}
    cmdline: str = DEFAULT_CMDLINE
    created: str = ""
    """ISO 8601"""


class LocalImage(msgspec.Struct, frozen=True):
    """Paths are resolved: a name that is pointed at another image later doesn't move a running VM's."""

    manifest: Manifest
    disk: Path
    kernel: Path
    initrd: Path
    virtual_size: int
    """Bytes"""

    def as_wire(self, name: str) -> Image:
        found = self.manifest
        return Image(name, found.digest, found.runner_version, found.presets, created=_seconds(found.created))


def find_image(folder: Path, name: str) -> LocalImage:
    """Raises HostError: ``image-missing``, or ``image-broken`` for one that isn't whole."""
    place = folder / name
    if not name or "/" in name or name.startswith(".") or not place.is_dir():
        raise HostError(
            f"this host has no image called {name!r}",
            code="image-missing",
            remedy=f"Build it with `ironcd image build --name {name}`.",
        )
    place = place.resolve()
    try:
        manifest = msgspec.json.decode((place / "manifest.json").read_bytes(), type=Manifest)
        disk, kernel, initrd = place / "disk.qcow2", place / "vmlinuz", place / "initrd"
        kernel.stat()
        initrd.stat()
        return LocalImage(manifest, disk, kernel, initrd, virtual_size(disk))
    except (OSError, ValueError) as error:
        raise HostError(
            f"the image {name!r} isn't whole: {error}",
            code="image-broken",
            remedy=f"Delete {place} and build it again with `ironcd image build --name {name}`.",
        ) from error


def list_images(folder: Path) -> tuple[Image, ...]:
    """Every image that has a name, once per name.  One that isn't whole is left out, with a line in the log."""
    found = []
    for link in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not link.is_symlink():
            continue
        try:
            found.append(find_image(folder, link.name).as_wire(link.name))
        except HostError as error:
            log.warning("image_left_out", image=link.name, error=error.message)
    return tuple(found)


def _seconds(iso: str) -> float:
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def virtual_size(disk: Path) -> int:
    """The size in bytes that a guest sees of a qcow2 file.  Raises ValueError for another kind of file."""
    with disk.open("rb") as file:
        header = file.read(32)
    if len(header) < 32 or header[:4] != b"QFI\xfb":
        raise ValueError(f"{disk} isn't a qcow2 file")
    return int(struct.unpack(">Q", header[24:32])[0])
