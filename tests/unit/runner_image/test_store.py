from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.errors import ConfigurationError, HostError
from runner_image import store
from runner_image.store import PARTS, Manifest

A, B = "a" * 64, "b" * 64


def manifest(digest: str) -> Manifest:
    return Manifest(
        name="default",
        digest=digest,
        runner_version="2.336.0",
        cloud_init="25.1.4-1",
        kernel="6.12-cloud-amd64",
        presets={"apt": ("mirror.example",), "node": (), "pypi": ("pip.example",)},
        created="2026-01-01T00:00:00+00:00",
        packages=244,
        cmdline="root=/dev/vda",
    )


def add(cache: Path, digest: str, name: str = "") -> Path:
    with store.workplace(cache) as work:
        built = work / "image"
        built.mkdir()
        for part in PARTS:
            (built / part).write_bytes(b"x")
        (built / "manifest.json").write_bytes(msgspec.json.encode(manifest(digest)))
        store.publish(cache, built, digest)
    if name:
        store.point(cache, name, digest)
    return cache / "images" / digest


def overlay(path: Path, backing: Path) -> None:
    """The head of a qcow2 file that is based on ``backing``."""
    name = str(backing).encode()
    path.write_bytes(struct.pack(">4sIQI", b"QFI\xfb", 3, 104, len(name)).ljust(104, b"\0") + name)


def test_a_published_image_is_found_by_name_and_can_be_read_by_all(tmp_path: Path) -> None:
    place = add(tmp_path, A, "default")
    image = store.find_image(tmp_path, "default")
    assert image.folder == place
    assert image.manifest == manifest(A)
    assert {(place / part).stat().st_mode & 0o777 for part in PARTS} == {0o644}
    assert place.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (tmp_path / "images").glob(".build-*")] == []


def test_a_name_can_be_pointed_elsewhere(tmp_path: Path) -> None:
    add(tmp_path, A, "default")
    add(tmp_path, B, "default")
    assert store.find_image(tmp_path, "default").manifest.digest == B
    assert [image.name for image in store.list_images(tmp_path)] == ["default", A]


def test_a_rebuilt_image_takes_the_old_ones_place(tmp_path: Path) -> None:
    place = add(tmp_path, A, "default")
    (place / "old").touch()
    add(tmp_path, A, "default")
    assert not (place / "old").exists()


@pytest.mark.parametrize("name", ["default", "../x", ".build-1", A])
def test_an_image_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(HostError) as caught:
        store.find_image(tmp_path, name)
    assert caught.value.code == "image-missing"


def test_an_image_with_a_part_missing_counts_as_none(tmp_path: Path) -> None:
    (add(tmp_path, A, "default") / "initrd").unlink()
    assert store.list_images(tmp_path) == []
    with pytest.raises(HostError):
        store.find_image(tmp_path, "default")


@pytest.mark.parametrize("name", ["", "A", "a/b", ".x", "-x", "x" * 64, A])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigurationError):
        store.check_name(name)


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    left = store.images_folder(tmp_path) / ".build-dead"
    (left / "root/etc").mkdir(parents=True)
    with store.building(tmp_path):
        assert not left.exists()


def test_nothing_is_removed_that_something_is_mounted_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = store.images_folder(tmp_path) / ".build-dead"
    left.mkdir()
    mounts = f"36 35 0:3 / {left}/root/proc rw - proc proc rw\n"
    monkeypatch.setattr(store, "mount_points", lambda: [line.split(" ")[4] for line in mounts.splitlines()])
    with pytest.raises(HostError, match="still mounted"), store.building(tmp_path):
        pass
    assert left.exists()


def test_a_second_builder_waits_and_says_so(tmp_path: Path) -> None:
    import fcntl

    waited = []

    def let_go() -> None:
        waited.append(True)
        fcntl.flock(other, fcntl.LOCK_UN)

    with (store.images_folder(tmp_path) / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with store.building(tmp_path, waiting=let_go):
            pass
    assert waited == [True]


def test_prune_keeps_the_named_and_those_that_machines_run_from(tmp_path: Path) -> None:
    disks = tmp_path / "disks"
    disks.mkdir()
    add(tmp_path, A, "default")
    used = add(tmp_path, B)
    unused = add(tmp_path, "c" * 64)
    overlay(disks / "vm.qcow2", used / "disk.qcow2")
    assert store.prune(tmp_path, disks) == ["c" * 64]
    assert used.exists()
    assert not unused.exists()


def test_a_backing_file_is_read_off_the_disk(tmp_path: Path) -> None:
    overlay(tmp_path / "a", Path("/x/disk.qcow2"))
    assert store.backing_file(tmp_path / "a") == Path("/x/disk.qcow2")
    (tmp_path / "b").write_bytes(b"short")
    assert store.backing_file(tmp_path / "b") is None
    assert store.backing_file(tmp_path / "none") is None
