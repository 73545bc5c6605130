from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.audit import Ledger
from orchestrator.core.flow import Event, Identity
from orchestrator.core.wire import LedgerBatch

DAY = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = DAY

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    return Ledger(tmp_path / "egress", clock=clock)


def event(seq: int, **changes: object) -> Event:
    made = Event(
        event="open", ts=DAY + seq, seq=seq, gateway="h1", protocol="tls", verdict="allowed", reason="rule",
        who=Identity(runner="R", org="acme", repo="acme/app", job="build", job_id=11), host="allowed.example", port=443,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def batch(*events: Event, host: str = "h1") -> LedgerBatch:
    lines = tuple(msgspec.json.encode(item).decode() for item in events)
    return LedgerBatch(host, events[0].seq if events else 1, lines)
