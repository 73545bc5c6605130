"""The images that a host has, read from the manifests that `runner_image` writes beside them."""

from __future__ import annotations

from pathlib import Path

import msgspec


class ImageInfo(msgspec.Struct, frozen=True):
    """One image under the name that classes ask for it by."""

    name: str
    digest: str
    runner_version: str
    cloud_init: str
    created: str
    path: str


class _Manifest(msgspec.Struct, frozen=True):
    digest: str
    runner_version: str = ""
    cloud_init: str = ""
    created: str = ""


def images_in(cache_dir: Path) -> list[ImageInfo]:
    """The usable images: each name is a link to the folder of its digest.  What can't be read is left out."""
    folder = cache_dir / "images"
    found = []
    for link in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not link.is_symlink():
            continue
        try:
            manifest = msgspec.json.decode((link / "manifest.json").read_bytes(), type=_Manifest)
        except (OSError, msgspec.MsgspecError):
            continue
        found.append(
            ImageInfo(
                name=link.name,
                digest=manifest.digest,
                runner_version=manifest.runner_version,
                cloud_init=manifest.cloud_init,
                created=manifest.created,
                path=str(link.resolve()),
            )
        )
    return found
