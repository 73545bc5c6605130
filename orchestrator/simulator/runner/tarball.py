"""The runner's tarball: the same bytes for the same sources, whoever packs it and when."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from orchestrator.simulator.runner.guest.version import VERSION

_LISTENER = """#!/usr/bin/python3 -IS
# The simulator's runner; see bin/simrunner/.
import os
import sys

sys.dont_write_bytecode = "warmup" not in sys.argv
folder = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, folder)

from simrunner.start import start  # noqa: E402

start(os.path.dirname(folder))
"""
_RUN = """#!/bin/bash
cd "$(dirname "$(realpath "$0")")" && exec bin/Runner.Listener run "$@"
"""


def _members() -> dict[str, tuple[bytes, int]]:
    folder = Path(__file__).parent / "guest"
    members = {f"bin/simrunner/{path.name}": (path.read_bytes(), 0o644) for path in sorted(folder.glob("*.py"))}
    members["bin/Runner.Listener"] = (_LISTENER.encode(), 0o755)
    members["run.sh"] = (_RUN.encode(), 0o755)
    return members


def runner_tarball() -> tuple[bytes, str, str]:
    """The tarball's bytes, their sha256 in hex, and the version that the runner has."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (content, mode) in sorted(_members().items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
        file.write(raw.getvalue())
    data = packed.getvalue()
    return data, hashlib.sha256(data).hexdigest(), VERSION


def write_runner(root: Path) -> None:
    """Unpack the runner into ``root``, as ``tar xzf`` would."""
    for name, (content, mode) in _members().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
