"""What the benches of the control plane play is whole: jobs are placed, served by one runner each, and nothing is left."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import fakeredis
import pytest
import structlog

from bench import control
from bench.control import burst, changed, commands_of, fleet, idle
from bench.control_memory import resident
from bench.table import Table
from orchestrator.control.store import Store
from orchestrator.core.inbox import Keys
from orchestrator.intake.inbox import Inbox


@pytest.fixture
async def table(tmp_path: Path) -> AsyncIterator[Table]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    redis = fakeredis.FakeAsyncRedis()
    made = Table(Store(redis), Inbox(redis, Keys("ironcd:")), tmp_path, hosts=2)
    yield made
    await made.close()
    structlog.configure(**before)


async def test_a_burst_is_placed_and_led_to_its_end(table: Table) -> None:
    commands = iter([100, 148])
    done = await burst(table, lambda: next(commands), 12, 1_000)
    assert len(done.waits) == 12
    assert 0 < min(done.waits) <= max(done.waits) <= done.seconds
    assert done.commands == 4
    assert 1 <= done.calls <= 3
    assert table.github.calls.count("generate_jit") == 12
    records = await table.store.latest_finished_jobs(100)
    assert sorted(record.job.id for record in records) == list(range(1_000, 1_012))
    assert {record.job.conclusion for record in records} == {"success"}
    assert all(len(record.runners) == 1 for record in records)
    assert await table.store.live_runners() == []


async def test_a_fleet_runs_on_all_hosts_and_a_change_is_taken_in(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet(table, 20)
    assert [len(host.seen) for host in table.hosts.values()] == [10, 10]
    assert await idle(table, "") > 0
    monkeypatch.setattr(control, "CHANGING", "metal-1")
    await changed(table, "")
    found = [mark for record in await table.store.live_runners() for mark in record.marks if mark.startswith("mark_")]
    assert len(found) == 1


async def test_a_fleet_that_doesnt_fit_is_no_measurement(table: Table) -> None:
    with pytest.raises(RuntimeError, match="20 of 21"):
        await fleet(table, 21)


def test_commands_of_nobody_arent_counted() -> None:
    class Base:
        def info(self, section: str) -> dict[str, dict[str, int]]:
            assert section == "commandstats"
            return {
                "cmdstat_hset": {"calls": 7},
                "cmdstat_evalsha": {"calls": 2},
                "cmdstat_info": {"calls": 50},
                "cmdstat_client|setinfo": {"calls": 4},
            }

    assert commands_of(Base()) == 9  # type: ignore[arg-type]


def test_memory_is_read() -> None:
    assert 10 < resident() < 10_000
