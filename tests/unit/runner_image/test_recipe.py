"""Each input of an image changes its digest, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from runner_image import recipe as module
from runner_image.guest.stages import STAGES
from runner_image.machine import AptSource, MachineConfig
from runner_image.recipe import CMDLINE, MASKED_UNITS, Recipe, make_recipe, own_files

SOURCE = AptSource("http://mirror.example/debian", "trixie", "main", "https://mirror.example/debian")
MACHINE = MachineConfig(
    (SOURCE,), {"Acquire::Check-Date": "false"}, {"index-url": "https://pip.example/simple"}, "https://npm.example/"
)


def make(**changes: object) -> Recipe:
    whole = make_recipe(MACHINE, runner_sha256="a" * 64, runner_version="2.336.0")
    return msgspec.structs.replace(whole, **changes)


def test_the_digest_is_64_hexadecimal_digits_and_stays() -> None:
    assert make().digest == make().digest
    assert len(make().digest) == 64
    assert int(make().digest, 16) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"suite": "forky"},
        {"architecture": "arm64"},
        {"packages": ("git",)},
        {"enabled_units": ()},
        {"masked_units": ()},
        {"unused_generators": ()},
        {"reordered_units": ()},
        {"runner_sha256": "b" * 64},
        {"runner_version": "2.337.0"},
        {"cmdline": "quiet"},
        {"files": {"tree/etc/fstab": "0"}},
        {"builder": "0"},
        {"machine": msgspec.structs.replace(MACHINE, apt=())},
        {
            "machine": msgspec.structs.replace(
                MACHINE, apt=(msgspec.structs.replace(SOURCE, guest_uri="https://b.example"),)
            )
        },
        {"machine": msgspec.structs.replace(MACHINE, apt_options={})},
        {"machine": msgspec.structs.replace(MACHINE, pip={})},
        {"machine": msgspec.structs.replace(MACHINE, npm_registry="")},
    ],
)
def test_each_input_changes_the_digest(changes: dict[str, object]) -> None:
    assert make(**changes).digest != make().digest


def test_every_field_of_a_recipe_is_an_input() -> None:
    tried = {
        *("suite", "architecture", "packages", "enabled_units", "masked_units", "unused_generators", "machine"),
        *("runner_sha256", "runner_version", "cmdline", "files", "builder", "reordered_units"),
    }
    assert set(Recipe.__struct_fields__) == tried


def test_the_order_of_extra_packages_changes_nothing() -> None:
    one = make_recipe(MACHINE, runner_sha256="a", runner_version="1", extra_packages=("zsh", "make"))
    other = make_recipe(MACHINE, runner_sha256="a", runner_version="1", extra_packages=("make", "zsh", "git"))
    assert one.digest == other.digest != make_recipe(MACHINE, runner_sha256="a", runner_version="1").digest


def test_a_change_in_any_file_of_ours_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("guest/a.py", "initrd/init", "tree/etc/fstab", "base.py", "rootfs.py", "initrd.py", "disk.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(module, "HERE", tmp_path)
    seen = {make().digest}
    for name in ("guest/a.py", "initrd/init", "tree/etc/fstab", "base.py", "rootfs.py", "initrd.py", "disk.py"):
        (tmp_path / name).write_text("after")
        seen.add(make().digest)
    assert len(seen) == 8


def test_compiled_files_are_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guest/__pycache__").mkdir(parents=True)
    (tmp_path / "guest/__pycache__/session.pyc").write_bytes(b"")
    monkeypatch.setattr(module, "HERE", tmp_path)
    assert list(own_files()) == []


def test_cloud_init_stays_as_debian_ships_it() -> None:
    """Its configuration is ours, and its unit's environment; no file of its code is.  Its process is its own unit's; what is
    masked are the units that only tell it to go on with a stage, which the gate does (`docs/adr`).
    """
    ours = [path.relative_to(module.HERE / "tree").as_posix() for path in own_files() if "tree" in path.parts]
    assert [name for name in ours if "cloud" in name] == [
        "etc/cloud/cloud.cfg",
        "etc/cloud/logging.conf",
        "etc/systemd/network/10-cloud-init-eth0.network.d/ironcd.conf",
        "etc/systemd/system/cloud-init-main.service.d/ironcd.conf",
        "etc/systemd/system/var-lib-cloud.mount",
        "usr/lib/ironcd/cloud-init/sitecustomize.py",
    ]
    dropped_in = (module.HERE / "tree/etc/systemd/system/cloud-init-main.service.d/ironcd.conf").read_text()
    assert [line for line in dropped_in.splitlines() if not line.startswith("#")] == [
        "[Service]",
        "Environment=PYTHONPATH=/usr/lib/ironcd/cloud-init",
        "SuccessExitStatus=SIGKILL",
    ]
    assert "cloud-init-main.service" not in MASKED_UNITS
    stages = {f"cloud-{name}.service" for name in ("init-local", "init-network", "config", "final")}
    assert {unit for unit in MASKED_UNITS if unit.startswith("cloud-") and unit.endswith(".service")} == stages
    assert len(STAGES) == len(stages), "each stage whose unit is masked is started by the gate"


def test_the_kernel_line_boots_the_first_disk_and_talks_to_the_serial_port() -> None:
    words = CMDLINE.split()
    assert words[0] == "root=/dev/vda"
    assert "console=ttyS0" in words
    assert all("=" in word or word == "rw" for word in words)
