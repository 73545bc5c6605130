"""A limit on the size of files is a full disk to the ledger: the kernel cuts a write short, and then refuses it with EFBIG.

The signal that comes with the refusal (SIGXFSZ) ends a process that doesn't ignore it.  A gateway that is started where it isn't
ignored, as here, must go on all the same: one that ends lets nothing through, but takes every open connection with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, os, resource, sys
from pathlib import Path

from orchestrator.core.flow import Event, Identity
from orchestrator.egress.checkpoint import load_signer
from orchestrator.egress.ledger import Ledger, LedgerFull

folder, victim = Path(sys.argv[1]), sys.argv[2]


def event(number):
    who = Identity(runner="r")
    return Event("open", 1.0, 0, "h1", who, "tls", "allowed", "rule", host=f"n{number}.example")


def limited(room, what):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        what()
        return "done"
    except LedgerFull as error:
        return error.code
    except OSError as error:
        return error.strerror
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


ledger = Ledger(folder, gateway="h1", signer=load_signer("h1", folder.parent))
ledger.append(event(0))
ledger.checkpoint()
sizes = {path.name: path.stat().st_size for path in folder.glob("*.jsonl")}
(lines,) = (size for name, size in sizes.items() if name != "checkpoints.jsonl")
found = {}
ledger.append(event(1))
if victim == "lines":
    found["said"] = limited(lines + 40, ledger.flush)
    found["again"] = limited(lines + 40, ledger.flush)
    found["full"] = ledger.full
else:
    ledger.commit()
    if victim == "killed":  # as a process that died in the middle of its note
        with (folder / "checkpoints.jsonl").open("ab") as file:
            file.write(b'{"ts":1,"size":2,"no')
        found["said"] = ""
    else:
        found["said"] = limited(sizes["checkpoints.jsonl"] + 40, ledger.checkpoint)
ledger.commit()
ledger.append(event(2))
ledger.checkpoint()
found["full_after"] = ledger.full
ledger.close()
print(json.dumps(found))
"""


def play(folder: Path, victim: str) -> dict[str, Any]:
    done = subprocess.run(  # it restores the signals' defaults in the child, SIGXFSZ's among them
        [sys.executable, "-c", PROGRAM, str(folder / "ledger"), victim], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def the_days(folder: Path) -> list[dict[str, Any]]:
    days = sorted(folder.glob("ledger/????-??-??.jsonl"))
    return [line for day in days for line in lines_of(day)]


def test_a_line_that_the_limit_refuses_isnt_there_and_nothing_passes(tmp_path: Path) -> None:
    assert play(tmp_path, "lines") == {"said": "ledger-full", "again": "ledger-full", "full": True, "full_after": False}
    events = the_days(tmp_path)
    assert [event["host"] for event in events] == ["n0.example", "n1.example", "n2.example"]
    assert [event["seq"] for event in events] == [1, 2, 3]


@pytest.mark.parametrize(("victim", "said"), [("checkpoints", "File too large"), ("killed", "")])
def test_a_checkpoint_that_was_cut_short_spoils_none_that_comes_after_it(
    tmp_path: Path, victim: str, said: str
) -> None:
    assert play(tmp_path, victim) == {"said": said, "full_after": False}
    sizes = [note["size"] for note in lines_of(tmp_path / "ledger" / "checkpoints.jsonl")]
    assert sizes == [1, 3]
    assert len(the_days(tmp_path)) == 3
