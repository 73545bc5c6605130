from __future__ import annotations

import lzma
import stat
from pathlib import Path

import pytest

from orchestrator.core.errors import HostError
from runner_image.initrd import Entry, cpio, make_initrd, module_order

DEPENDENCIES = """\
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/net/core/failover.ko.xz:
kernel/drivers/block/virtio_blk.ko.xz:
"""


def read_cpio(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of the "newc" format: name to mode and data."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        data_at = (at + 110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[data_at : data_at + fields[6]])
        at = (data_at + fields[6] + 3) // 4 * 4


def test_modules_are_loaded_after_what_they_need_and_once() -> None:
    order = module_order(DEPENDENCIES, ("virtio_net", "virtio_blk", "net_failover"))
    names = [path.rsplit("/", 1)[-1] for path in order]
    assert names == ["failover.ko.xz", "net_failover.ko.xz", "virtio_net.ko.xz", "virtio_blk.ko.xz"]


def test_a_kernel_without_a_module_is_refused() -> None:
    with pytest.raises(HostError, match="no module sr_mod"):
        module_order(DEPENDENCIES, ("sr_mod",))


def test_an_archive_reads_back() -> None:
    entries = [
        Entry("dir", stat.S_IFDIR | 0o755),
        Entry("dir/a", stat.S_IFREG | 0o644, b"12345"),
        Entry("b", stat.S_IFREG | 0o755, b""),
        Entry("console", stat.S_IFCHR | 0o600, device=(5, 1)),
    ]
    assert read_cpio(cpio(entries)) == {entry.name: (entry.mode, entry.data) for entry in entries}


def test_an_initrd_has_its_modules_unpacked_and_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner_image.initrd.MODULES", ("virtio_net",))
    (tmp_path / "modules.dep").write_text(DEPENDENCIES)
    for line in DEPENDENCIES.splitlines():
        path = tmp_path / line.split(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(path.name.encode()))
    (tmp_path / "init").write_text("#!")
    (tmp_path / "busybox").write_bytes(b"ELF")
    made = make_initrd(tmp_path / "init", tmp_path / "busybox", tmp_path)
    files = read_cpio(made)
    assert files["modules/order"][1] == b"failover.ko\nnet_failover.ko\nvirtio_net.ko\n"
    assert files["modules/virtio_net.ko"][1] == b"virtio_net.ko.xz"
    assert files["init"] == (stat.S_IFREG | 0o755, b"#!")
    assert made == make_initrd(tmp_path / "init", tmp_path / "busybox", tmp_path)
