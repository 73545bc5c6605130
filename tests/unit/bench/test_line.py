"""What the bench of the line times is right: every job waits for room, each has its place, and nobody is served."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import fakeredis
import pytest
import structlog

from bench import line
from bench.control import fleet
from bench.table import Table
from orchestrator.control.store import Store
from orchestrator.core.inbox import Keys
from orchestrator.intake.inbox import Inbox


@pytest.fixture
async def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Table]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    redis = fakeredis.FakeAsyncRedis()
    made = Table(Store(redis), Inbox(redis, Keys("ironcd:")), tmp_path, hosts=2)
    monkeypatch.setattr(Store, "at", lambda _url: Store(redis))
    for name, value in (("FLEET", 20), ("WAITING", 30), ("REPOS", 4), ("AT_ONCE", 7)):
        monkeypatch.setattr(line, name, value)
    yield made
    await made.close()
    structlog.configure(**before)


async def test_what_is_timed(table: Table) -> None:
    await fleet(table, 20)
    await line.fill(table, 30)
    for run in (line.look, line.places, line.anew):
        assert await run(table, "") > 0
    waiting = [record for record in await table.store.live_jobs() if record.wait]
    assert {record.wait for record in waiting} == {"room"}
    assert len(waiting) == 30
    assert all(record.job.reason for record in waiting)
