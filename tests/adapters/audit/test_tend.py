"""Sealing and deleting in the process that the control plane starts for it, killed at any moment."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from orchestrator import audit
from orchestrator.audit import days
from orchestrator.audit.engine import Engine
from orchestrator.audit.search import find
from orchestrator.audit.tend import has_work
from orchestrator.audit.verify import Ask, verify_all
from orchestrator.core.flow import Event, Identity
from orchestrator.core.retention import DAY_S, Keep, Retention
from orchestrator.core.wire import LedgerBatch
from orchestrator.egress.checkpoint import load_signer
from orchestrator.egress.ledger import Ledger
from orchestrator.system.segments import LedgerReader

pytestmark = pytest.mark.real

PER_DAY, DAYS = 1500, 4
AGE = 400 * DAY_S
KEPT = Retention(Keep(egress_days=365))


def record(folder: Path) -> Path:
    """Some days' records of allowed traffic, 400 days old, as host and control plane made them."""
    begun = (time.time() - AGE) // DAY_S * DAY_S + DAY_S / 2  # noon: a day's records are of one day
    clock = [begun]
    signer = load_signer("h1", folder)
    ledger = Ledger(folder / "ledger", gateway="h1", signer=signer, clock=lambda: clock[0])
    received = audit.Ledger(folder / "audit", clock=lambda: clock[0])
    reader = LedgerReader(folder / "ledger")
    for day in range(DAYS):
        for number in range(PER_DAY):
            clock[0] = begun + day * DAY_S + number * 0.01
            ledger.append(
                Event(
                    event="open", ts=round(clock[0], 3), seq=0, gateway="", who=Identity("R", repo="acme/app"),
                    protocol="tls", verdict="blocked" if number % 10 == 0 else "allowed", reason="rule", host="a.example",
                )
            )  # fmt: skip
        ledger.commit()
        note = ledger.checkpoint()
        first = day * PER_DAY + 1
        lines = tuple(reader.read(first, PER_DAY))
        asyncio.run(received.receive(LedgerBatch("h1", first, lines, (note or "",), signer.verifier)))
    ledger.close()
    return folder / "audit"


def argv(folder: Path) -> list[str]:
    kept = msgspec.json.encode(KEPT).decode()
    return [sys.executable, "-m", "orchestrator.audit", "--folder", str(folder), "--retention", kept]


async def tended(folder: Path) -> None:
    tending = asyncio.create_task(audit.tend(folder, KEPT, first_s=0, every_s=0.2))
    async with asyncio.timeout(300):
        while has_work(folder, time.time()) or not (folder / "h1" / "deletions.jsonl").exists():  # noqa: ASYNC110 - files
            await asyncio.sleep(0.1)
    tending.cancel()
    await asyncio.gather(tending, return_exceptions=True)


def test_the_control_plane_tends_the_record(tmp_path: Path) -> None:
    folder = record(tmp_path)
    assert has_work(folder, time.time())
    asyncio.run(tended(folder))
    subprocess.run(argv(folder), check=True, timeout=300)
    whole(folder)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    folder = record(tmp_path)
    seed = int(os.environ.get("TEND_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    sys.stdout.write(f"again with TEND_SEED={seed}\n")
    chance = random.Random(seed)
    for _ in range(8):
        process = subprocess.Popen(argv(folder))
        time.sleep(chance.uniform(0.2, 1.2))
        process.kill()
        process.wait()
        (report,) = verify_all(folder, Ask(cutoff=KEPT.youngest_cutoff(time.time())))
        assert report.findings == []
        assert report.records + report.deleted == PER_DAY * DAYS
    subprocess.run(argv(folder), check=True, timeout=300)
    whole(folder)


def whole(folder: Path) -> None:
    engine = Engine(folder)
    (report,) = verify_all(folder, Ask(cutoff=KEPT.youngest_cutoff(time.time())), engine=engine)
    engine.close()
    left = PER_DAY * DAYS // 10
    assert (report.findings, report.records, report.deleted) == ([], left, PER_DAY * DAYS - left)
    assert report.signed == PER_DAY * DAYS
    assert all(days.parquet_file(folder / "h1", day).exists() for day in days.days(folder / "h1"))
    ledger = audit.Ledger(folder)
    assert len(find(ledger, audit.Query(), limit=10_000).events) == left
    ledger.engine.close()
