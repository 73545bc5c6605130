from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import HostError
from runner_image.base import sources_file
from runner_image.build import _check_cloud_init
from runner_image.disk import disk_size, used_bytes
from runner_image.machine import AptSource
from runner_image.recipe import Reordered
from runner_image.rootfs import licences, reordered_unit

SOURCE = AptSource("http://mirror.example/debian", "trixie", "main", "https://mirror.example/debian")


def test_apts_sources_for_the_build_and_for_the_vm() -> None:
    assert "URIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\n" in sources_file(
        [SOURCE], guest=False
    )
    assert "URIs: https://mirror.example/debian\n" in sources_file([SOURCE, SOURCE], guest=True)


def test_licences_of_a_machine_readable_copyright_file(tmp_path: Path) -> None:
    path = tmp_path / "copyright"
    path.write_text(
        "Format: https://www.example/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+\n text\n\nFiles: a\nLicense: MIT\nLicense: MIT\n"
    )
    assert licences(path) == ("GPL-2+", "MIT")
    path.write_text("This is free software.\nLicense: who knows\n")
    assert licences(path) == ()
    assert licences(tmp_path / "none") == ()


def test_a_disk_is_whole_gib_and_has_room_to_boot() -> None:
    assert disk_size(100 << 20) == 1 << 30
    assert disk_size(700 << 20) == 2 << 30
    assert disk_size(0) == 1 << 30


def test_what_files_take_is_counted_in_blocks(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x" * 4097)
    assert used_bytes(tmp_path) == 4096 * (1 + 1 + 2)


@pytest.mark.parametrize("version", ["24.3-1", "24.10.1", "25.1.4-1+deb13u1"])
def test_cloud_init_new_enough(version: str) -> None:
    _check_cloud_init(version)


@pytest.mark.parametrize("version", ["22.4.2-1+deb12u2", "24.2-1", "unknown"])
def test_cloud_init_too_old(version: str) -> None:
    with pytest.raises(HostError):
        _check_cloud_init(version)


def test_a_unit_starts_in_another_order_and_stays_as_it_is_otherwise() -> None:
    text = "[Unit]\nDescription=x\nAfter=a.target b.service\nBefore=a.target\nWants=a.target\n\n[Service]\nExecStart=/bin/x\n"
    changed = reordered_unit(text, Reordered("x.service", ("a.target",), "gate.service"))
    assert changed == (
        "[Unit]\nAfter=gate.service\nDescription=x\nAfter=b.service\nWants=a.target\n\n[Service]\nExecStart=/bin/x\n"
    )
