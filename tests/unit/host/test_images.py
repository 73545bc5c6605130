from __future__ import annotations

import json
import struct

import pytest

from orchestrator.core.errors import HostError
from orchestrator.host.images import DEFAULT_CMDLINE, find_image, list_images, virtual_size


def _image(folder, name="default", digest="d1", **manifest):
    place = folder / digest
    place.mkdir()
    (place / "disk.qcow2").write_bytes(b"QFI\xfb" + bytes(20) + struct.pack(">Q", 3 << 30) + bytes(40))
    for part in ("vmlinuz", "initrd"):
        (place / part).write_bytes(b"x")
    facts = {
        "name": name,
        "digest": f"sha256:{digest}",
        "runner_version": "2.3",
        "kernel": "6",
        "packages": 7,
    } | manifest
    (place / "manifest.json").write_text(json.dumps(facts))
    (folder / name).symlink_to(digest)
    return place


def test_an_image_is_found_by_its_name(tmp_path):
    place = _image(tmp_path, presets={"apt": ["deb.example"]}, cmdline="root=/dev/vda quiet")
    found = find_image(tmp_path, "default")
    assert found.disk == place / "disk.qcow2"
    assert found.virtual_size == 3 << 30
    assert found.manifest.cmdline == "root=/dev/vda quiet"
    (listed,) = list_images(tmp_path)
    assert (listed.name, listed.digest, listed.presets) == ("default", "sha256:d1", {"apt": ("deb.example",)})


def test_a_manifest_without_a_command_line_has_ours(tmp_path):
    _image(tmp_path)
    assert find_image(tmp_path, "default").manifest.cmdline == DEFAULT_CMDLINE


@pytest.mark.parametrize("name", ["nothing", "../default", ".", "", "a/b"])
def test_no_such_image(tmp_path, name):
    _image(tmp_path)
    with pytest.raises(HostError) as caught:
        find_image(tmp_path, name)
    assert caught.value.code == "image-missing"
    assert caught.value.remedy


@pytest.mark.parametrize("part", ["disk.qcow2", "vmlinuz", "initrd", "manifest.json"])
def test_an_image_that_isnt_whole(tmp_path, part):
    place = _image(tmp_path)
    (place / part).unlink()
    with pytest.raises(HostError) as caught:
        find_image(tmp_path, "default")
    assert caught.value.code == "image-broken"
    assert list_images(tmp_path) == ()


def test_another_kind_of_disk_is_refused(tmp_path):
    (tmp_path / "raw").write_bytes(bytes(512))
    with pytest.raises(ValueError):
        virtual_size(tmp_path / "raw")


def test_no_folder_has_no_images(tmp_path):
    assert list_images(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("created", "seconds"),
    [("2023-11-14T22:13:20+00:00", 1_700_000_000.0), ("2023-11-14T22:13:20", 1_700_000_000.0), ("soon", 0.0)],
)
def test_when_an_image_was_built(tmp_path, created, seconds):
    _image(tmp_path, created=created)
    (listed,) = list_images(tmp_path)
    assert listed.created == seconds
