"""A rehearsal can write nothing that stays, held on this machine: in namespaces as it makes them in a guest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import runner_image
from runner_image.guest import rehearsal

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root"),
]

_TRY = """
import os, sys
sys.path.insert(0, sys.argv[1])
from runner_image.guest import rehearsal
there = [folder for folder in rehearsal.IN_MEMORY if os.path.isdir(folder)]
rehearsal.close_off(tuple(there))
for folder in ("/", "/usr/lib", "/opt", "/root", "/home", "/sys", "/etc", *there):
    try:
        with open(f"{folder}/{sys.argv[2]}", "w") as file:
            file.write("x")
        print("wrote", folder)
    except OSError:
        print("refused", folder)
print("processes", sum(name.isdigit() for name in os.listdir("/proc")))
print("links", sorted(line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line))
"""
IN_MEMORY = {"/etc", *(folder for folder in rehearsal.IN_MEMORY if Path(folder).is_dir())}


def test_what_is_written_is_refused_or_gone(tmp_path: Path) -> None:
    mark = f"rehearsed-{os.getpid()}"
    place = str(Path(runner_image.__file__).parent.parent)
    hostname = os.uname().nodename
    argv = [*rehearsal.ENTER, sys.executable, "-c", _TRY, place, mark]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    said = [line.split(" ", 1) for line in done.stdout.splitlines()]
    wrote = {what for word, what in said if word == "wrote"}
    refused = {what for word, what in said if word == "refused"}
    assert wrote == IN_MEMORY, "what isn't in memory is read-only"
    assert refused == {"/", "/usr/lib", "/opt", "/root", "/home", "/sys"}
    assert ["processes", "1"] in said, "it sees no process but its own"
    assert ["links", "['lo']"] in said
    assert [folder for folder in wrote | refused if Path(folder, mark).exists()] == []
    assert "rehearsal" not in Path("/proc/self/mounts").read_text()
    assert os.uname().nodename == hostname
