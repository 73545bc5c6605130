from __future__ import annotations

import stat

from orchestrator.core.names import names_of
from orchestrator.core.settings import HostSettings
from orchestrator.host.paths import host_paths, make_folders, vm_paths

NAMES = names_of("01JZZZZZZZZZZZZZZZZZZZZZZ1")


def _paths(folder):
    settings = HostSettings(name="h", state_dir=f"{folder}/s", run_dir=f"{folder}/r", cache_dir=f"{folder}/c")
    return host_paths(settings)


def _mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_qemu_may_pass_where_it_must_and_list_nowhere(tmp_path):
    paths = _paths(tmp_path)
    make_folders(paths)
    assert {_mode(folder) for folder in (paths.disks, paths.boot, paths.seeds, paths.channels)} == {0o711}
    assert {_mode(folder) for folder in (paths.records, paths.links, paths.consoles)} == {0o700}
    assert _mode(paths.disks.parent) & 0o111 == 0o111


def test_what_a_killed_agent_was_writing_is_cleared_away_and_nothing_else(tmp_path):
    paths = _paths(tmp_path)
    make_folders(paths)
    half = [
        paths.records / f".{NAMES.domain}.json.abcdefgh",
        paths.links / f".{NAMES.tap}.json.abcdefgh",
        paths.desired.parent / ".desired.json.abcdefgh",
        paths.shipped.parent / ".shipped.json.abcdefgh",
    ]
    kept = [vm_paths(paths, NAMES).record, vm_paths(paths, NAMES).link, paths.desired, paths.records / ".gitkeep"]
    for path in half + kept:
        path.write_bytes(b"x")
    make_folders(paths)
    assert not any(path.exists() for path in half)
    assert all(path.exists() for path in kept)


def test_a_socket_path_fits_where_it_must(tmp_path):
    """Linux caps the path of a Unix socket at 107 bytes."""
    paths = host_paths(HostSettings(name="h"))
    assert len(str(vm_paths(paths, NAMES).channel)) <= 107
