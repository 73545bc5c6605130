from __future__ import annotations

from pathlib import Path

import msgspec

from orchestrator.audit import Ledger
from orchestrator.core.flow import Event, Identity
from orchestrator.core.job import Job
from orchestrator.core.wire import LedgerBatch
from orchestrator.surface.blocked import BlockedInRecord
from policies import load_presets

JOB = Job(3, 7, "acme", "acme/app", "completed", started_at=1_700_000_000.0)


def line(seq: int, job: int, host: str, verdict: str = "blocked") -> str:
    made = Event(
        event="dns", ts=1_700_000_010.0, seq=seq, gateway="h1", who=Identity("R", repo="acme/app", job_id=job),
        protocol="dns", verdict=verdict, reason="rule" if verdict == "allowed" else "not_allowed", host=host,
    )  # fmt: skip
    return msgspec.json.encode(made).decode()


async def test_what_the_record_has_of_one_job(tmp_path: Path) -> None:
    lines = (line(1, 3, "evil.example"), line(2, 4, "other.example"), line(3, 3, "ok.example", "allowed"))
    lines += (line(4, 3, "warned.example", "warn"),)
    await Ledger(tmp_path / "audit").receive(LedgerBatch("h1", 1, lines))
    found = await BlockedInRecord(tmp_path / "audit", load_presets())(JOB)
    assert [(one.target, one.line, one.passed) for one in found or ()] == [
        ("evil.example", "{host: evil.example}", False),
        ("warned.example", "{host: warned.example}", True),
    ]


async def test_no_record_here(tmp_path: Path) -> None:
    assert await BlockedInRecord(tmp_path / "audit", load_presets())(JOB) is None
