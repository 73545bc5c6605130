"""Where one host keeps what belongs to its VMs, and who may look in.

QEMU runs as a user of its own for each VM and must pass through these folders, so they are 0711: it can open what it was
given, and can't list what others have.  Folders that QEMU needs nothing in are 0700.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from orchestrator.core.names import Names
from orchestrator.core.settings import HostSettings

_PASSED = 0o711
_PRIVATE = 0o700


class HostPaths(msgspec.Struct, frozen=True):
    disks: Path
    boot: Path
    seeds: Path
    records: Path
    waiting: Path
    ledger: Path
    links: Path
    channels: Path
    consoles: Path
    images: Path
    templates: Path
    cache: Path
    gateway_socket: Path
    desired: Path
    decided: Path
    deadlines: Path
    shipped: Path


class VmPaths(msgspec.Struct, frozen=True):
    """The files of one runner's VM."""

    disk: Path
    boot: Path
    """A folder with the VM's own copy of kernel and initrd: libvirt gives them to the VM's user."""
    seed: Path
    channel: Path
    console: Path
    record: Path
    link: Path


def host_paths(settings: HostSettings) -> HostPaths:
    state, run, cache = Path(settings.state_dir), Path(settings.run_dir), Path(settings.cache_dir)
    return HostPaths(
        disks=state / "disks",
        boot=state / "boot",
        seeds=state / "seeds",
        records=state / "runners",
        waiting=state / "waiting",
        ledger=state / "ledger",
        links=run / "links",
        channels=run / "channels",
        consoles=run / "consoles",
        images=cache / "images",
        templates=Path(settings.templates_dir) if settings.templates_dir else state / "templates",
        cache=cache,
        gateway_socket=run / "gateway.sock",
        desired=state / "desired.json",
        decided=state / "decided.json",
        deadlines=state / "deadlines.json",
        shipped=state / "shipped.json",
    )


def vm_paths(paths: HostPaths, names: Names) -> VmPaths:
    return VmPaths(
        disk=paths.disks / names.disk,
        boot=paths.boot / names.domain,
        seed=paths.seeds / names.seed,
        channel=paths.channels / names.channel,
        console=paths.consoles / f"{names.domain}.log",
        record=paths.records / f"{names.domain}.json",
        link=paths.links / f"{names.tap}.json",
    )


def make_folders(paths: HostPaths) -> None:
    """Make what is missing.  A parent that QEMU must pass gets the right to be passed, and no other."""
    for folder in (paths.disks, paths.boot, paths.seeds, paths.channels, paths.templates):
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, _PASSED)
    for folder in (paths.records, paths.waiting, paths.links, paths.consoles, paths.ledger, paths.images):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in (paths.records, paths.waiting, paths.links, paths.consoles):
        os.chmod(folder, _PRIVATE)
    _clear_half_written(paths)
    for folder in (paths.disks.parent, paths.templates.parent, paths.channels.parent, paths.cache, paths.images):
        mode = folder.stat().st_mode & 0o7777
        os.chmod(folder, mode | 0o111)  # noqa: S103 - to pass, not to list or read


def _clear_half_written(paths: HostPaths) -> None:
    """Delete what an agent that was killed in the middle of `write_atomic` left: only the agent writes these."""
    ours = [
        *paths.records.glob(".ironcd-*.json.*"),
        *paths.waiting.glob(".ironcd-*.json.*"),
        *paths.links.glob(".ic*.json.*"),
    ]
    for file in (paths.desired, paths.shipped):
        ours += file.parent.glob(f".{file.name}.*")
    for path in ours:
        path.unlink(missing_ok=True)
