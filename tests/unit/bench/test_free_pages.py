"""How a guest is given its memory, and what it starts with."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest

from bench import free_pages

KERNEL = "6.1-cloud"


def base(path: Path, kernel: str) -> None:
    data = lzma.compress(f"module of {kernel}".encode())
    with tarfile.open(path, "w") as archive:
        for name in (f"./usr/lib/modules/{kernel}/virtio_balloon.ko.xz", f"./usr/lib/modules/{kernel}/other.ko.xz"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_the_initrd_is_the_images_with_what_this_guest_does_behind_it(tmp_path, monkeypatch):
    monkeypatch.setattr(free_pages, "CACHE", tmp_path)
    (tmp_path / "bases").mkdir()
    base(tmp_path / "bases/1.tar", "6.0-cloud")
    base(tmp_path / "bases/2.tar", KERNEL)
    (tmp_path / "manifest.json").write_text(json.dumps({"kernel": KERNEL}))
    (tmp_path / "initrd").write_bytes(b"the image's own")
    free_pages.make_initrd(tmp_path, tmp_path / "made")
    made = (tmp_path / "made").read_bytes()
    assert made.startswith(b"the image's own0707")
    assert b"module of 6.1-cloud" in made
    assert b"module of 6.0-cloud" not in made
    (tmp_path / "bases/2.tar").unlink()
    with pytest.raises(RuntimeError, match="virtio_balloon"):
        free_pages.make_initrd(tmp_path, tmp_path / "made")


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("file", "mem-path=/t,share=off"),
        ("sealed", "mem-path=/proc/self/fd/9,share=off"),
        ("read-only", "/t,share=off,readonly=on"),
    ],
)
def test_a_clones_memory_is_mapped_privately(kind, path):
    assert path in free_pages._memory(kind, Path("/t"), 9)
    assert "file" not in free_pages._memory("booted", Path("/t"), 9)
