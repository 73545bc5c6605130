"""The images of a host: ``images/<digest>/`` and ``images/<name>``, a link to one of them.

An image is built in a folder of its own beside the others and renamed when it is whole, so one that has its name is
whole.  Whoever builds holds a lock; what a killed build left is removed by the next one.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from orchestrator.core.errors import ConfigurationError, HostError
from orchestrator.system.files import sync_folder

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WORK = ".build-"
PARTS = ("disk.qcow2", "vmlinuz", "initrd", "manifest.json", "packages.json")


class Manifest(msgspec.Struct, frozen=True):
    """``manifest.json``.  ``created`` in ISO 8601, UTC; ``packages`` is how many; ``cmdline`` the kernel's."""

    name: str
    digest: str
    runner_version: str
    cloud_init: str
    kernel: str
    presets: dict[str, tuple[str, ...]]
    created: str
    packages: int
    cmdline: str
    runner_sha256: str = ""


class Image(msgspec.Struct, frozen=True):
    """``folder`` is that of the digest."""

    name: str
    folder: Path
    manifest: Manifest


def images_folder(cache_dir: Path) -> Path:
    """Made where it isn't there; QEMU's user must be able to get to what is in it."""
    for folder in (cache_dir, cache_dir / "images"):
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o755)
    return cache_dir / "images"


def check_name(name: str) -> None:
    """Raises ConfigurationError for what can't be an image's name, a digest's form included."""
    if not _NAME.fullmatch(name) or _DIGEST.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} can't be an image's name",
            code="image-name",
            remedy="Use up to 63 lower-case letters, digits, dots, dashes and underscores.",
        )


@contextmanager
def building(cache_dir: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the builders' lock; ``waiting`` is called where it isn't free at once.  Clears what a killed build left."""
    folder = images_folder(cache_dir)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        clear_leftovers(folder)
        yield


def clear_leftovers(folder: Path) -> None:
    """Remove the folders of builds that died.  Nothing is removed that something is mounted in."""
    mounted = mount_points()
    for left in folder.glob(f"{_WORK}*"):
        if any(place.startswith(f"{left.resolve()}/") for place in mounted):
            raise HostError(
                f"something is still mounted in {left}, which a killed build left",
                code="image-leftover",
                remedy=f"Unmount everything under {left} and try again.",
            )
        shutil.rmtree(left)


def mount_points() -> list[str]:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split(" ")[4] for line in mounts]


@contextmanager
def workplace(cache_dir: Path) -> Iterator[Path]:
    """A folder to build in, on the images' own file system; gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix=_WORK, dir=images_folder(cache_dir)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def publish(cache_dir: Path, built: Path, digest: str) -> None:
    """Move the whole image in ``built`` to its digest's place; an earlier build of the same recipe makes way.

    A VM that runs from the earlier one keeps its files open.
    """
    folder = images_folder(cache_dir)
    for part in PARTS:
        (built / part).chmod(0o644)
        with (built / part).open("rb") as file:
            os.fsync(file.fileno())
    built.chmod(0o755)
    place = folder / digest
    if place.exists():
        shutil.move(place, built.parent / "replaced")
    built.rename(place)
    sync_folder(folder)


def point(cache_dir: Path, name: str, digest: str) -> None:
    """Let ``name`` mean the image ``digest`` from now on."""
    check_name(name)
    folder = images_folder(cache_dir)
    link = folder / f".{name}.link"
    link.unlink(missing_ok=True)
    link.symlink_to(digest)
    link.replace(folder / name)
    sync_folder(folder)


def read_image(folder: Path, name: str) -> Image | None:
    """The image in ``folder``; None where it isn't whole."""
    try:
        manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
    except (OSError, ValueError):
        return None
    whole = all((folder / part).is_file() for part in PARTS)
    return Image(name, folder.resolve(), manifest) if whole else None


def find_image(cache_dir: Path, name: str) -> Image:
    """By name or digest.  Raises HostError (``image-missing``)."""
    image = None if "/" in name or name.startswith(".") else read_image(cache_dir / "images" / name, name)
    if image is None:
        raise HostError(
            f"there is no image {name!r}",
            code="image-missing",
            remedy=f"Build it with `ironcd image build --name {name}`; `ironcd image list` shows what there is.",
        )
    return image


def list_images(cache_dir: Path) -> list[Image]:
    """Every image with a name, once per name, and the nameless ones under their digest."""
    folder = cache_dir / "images"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    links = [entry for entry in entries if entry.is_symlink() and not entry.name.startswith(".")]
    named = [image for link in links if (image := read_image(link, link.name))]
    used = {image.folder for image in named}
    bare = [entry for entry in entries if _DIGEST.fullmatch(entry.name) and entry.resolve() not in used]
    return [*named, *(image for entry in bare if (image := read_image(entry, entry.name)))]


def prune(cache_dir: Path, disks: Path) -> list[str]:
    """Remove the images that have no name and that no disk in ``disks`` (a host's running VMs) is based on.

    Returns their digests.
    """
    with building(cache_dir):
        folder = images_folder(cache_dir)
        named = {link.resolve() for link in folder.iterdir() if link.is_symlink()}
        needed = {backing.resolve().parent for disk in disks.glob("*") if (backing := backing_file(disk))}
        removed = []
        for entry in sorted(folder.iterdir()):
            if entry.is_symlink() or not _DIGEST.fullmatch(entry.name) or entry.resolve() in named | needed:
                continue
            shutil.rmtree(entry)
            removed.append(entry.name)
        return removed


def backing_file(disk: Path) -> Path | None:
    """What a qcow2 file is based on; None for one that stands alone and for any other file."""
    try:
        with disk.open("rb") as file:
            magic, _, offset, length = struct.unpack(">4sIQI", file.read(20))
            if magic != b"QFI\xfb" or offset == 0:
                return None
            file.seek(offset)
            return disk.parent / os.fsdecode(file.read(length))
    except (OSError, struct.error):
        return None
