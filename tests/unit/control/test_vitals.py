"""What alerts watch is there, from the start, and says what is so."""

from __future__ import annotations

import httpx
import msgspec
import pytest
from fakeredis import FakeAsyncRedis
from prometheus_client.parser import text_string_to_metric_families
from ulid import ULID

from orchestrator.control import metrics
from orchestrator.control.github_transport import Gauge, Limit, Transport
from orchestrator.control.records import Sighting
from orchestrator.control.store import Store
from orchestrator.control.worker import what_github_told
from orchestrator.core.wire import Image, Observed, ObservedRunner

from .stage import Stage


async def samples(stage: Stage, hosts: frozenset[str] | None = None) -> dict[str, float]:
    """``name{label=value,...}`` to value."""
    text = (await metrics.scrape(stage.store, hosts=hosts, clock=lambda: stage.now)).decode()
    return {
        sample.name + "{" + ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items())) + "}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def report(stage: Stage, *, late_s: float = 0.0, **changes: object) -> Observed:
    seen = msgspec.structs.replace(stage.hosts["h1"].report(stage.now), **changes)
    await stage.store.put_sighting(Sighting(stage.now + late_s, seen))
    return seen


async def test_counters_that_alerts_watch_are_there_before_anything_happened() -> None:
    text = (await metrics.scrape(Store(FakeAsyncRedis(), "t:"))).decode()
    for line in (
        'ironcd_deadlines_missed_total{phase="BOOTING"} 0.0',
        "ironcd_strays_total 0.0",
        'ironcd_orphans_total{answer="deleted"} 0.0',
        'ironcd_redeliveries_total{result="given_up"} 0.0',
        'ironcd_looks_total{result="failed"} 0.0',
    ):
        assert line in text
    assert "ironcd_oldest_waiting_job_seconds 0.0" in text


async def test_a_deadline_that_passes_is_counted_by_its_phase(stage: Stage) -> None:
    stage.hosts["h1"].steps_per_move = 0
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run(rounds=3)
    assert (await samples(stage))["ironcd_deadlines_missed_total{phase=BOOTING}"] == 0
    stage.now += stage.settings.deadlines.booting_s
    await stage.run(rounds=2)
    assert (await samples(stage))["ironcd_deadlines_missed_total{phase=BOOTING}"] == 1
    assert (await samples(stage))["ironcd_deadlines_missed_total{phase=READY}"] == 0


async def test_the_histogram_of_phases_adds_up(stage: Stage) -> None:
    changes = stage.store.changes()
    for seconds in (0.05, 3.0, 4.0, 60.0, 9999.0):
        changes.observe_phase("BOOTING", seconds)
    lease = await stage.store.acquire()
    assert lease is not None
    await stage.store.commit(lease, changes)
    found = await samples(stage)
    shown = [
        found[f"ironcd_phase_seconds_bucket{{le={le},phase=BOOTING}}"]
        for le in ("0.1", "2.5", "5.0", "60.0", "3600.0", "+Inf")
    ]
    assert shown == [1, 1, 3, 4, 4, 5]
    assert found["ironcd_phase_seconds_sum{phase=BOOTING}"] == 10066.05


async def test_the_job_that_waits_longest(stage: Stage) -> None:
    stage.hosts["h1"].images = ()
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    stage.now += 700
    await stage.hosts_move()
    await stage.deliver(stage.job(2))
    await stage.look()
    assert (await samples(stage))["ironcd_oldest_waiting_job_seconds{}"] == 700
    changes, lease = stage.store.changes(), await stage.store.acquire()
    assert lease is not None
    changes.put_job(msgspec.structs.replace(await stage.job_record(1), wait="quota"))
    await stage.store.commit(lease, changes)
    assert (await samples(stage))["ironcd_oldest_waiting_job_seconds{}"] == 0, "job 2 has just come"


async def test_a_machine_that_nobody_knows_is_counted_once(stage: Stage) -> None:
    await stage.run(rounds=2)
    stray = str(ULID.from_timestamp(stage.now - 5000))
    stage.hosts["h1"].seen[stray] = ObservedRunner(stray, "running")
    stage.hosts["h1"].move = lambda _desired, _now: None  # type: ignore[method-assign] - it can't get rid of it
    for _ in range(3):
        await stage.hosts_move()
        await stage.look()
    assert (await samples(stage))["ironcd_strays_total{}"] == 1


@pytest.mark.parametrize(
    ("ahead", "late", "took", "skew"),
    [(0.0, 0.4, 0.5, 0.0), (30.0, 0.4, 0.5, 29.6), (-30.0, 0.4, 0.5, -29.9), (-5.0, 0.4, 0.0, 0.0)],
)
async def test_a_hosts_clock(stage: Stage, ahead: float, late: float, took: float, skew: float) -> None:
    await report(stage, late_s=late, at=stage.now + ahead, took_s=took)
    found = (await samples(stage))["ironcd_host_clock_skew_seconds{host=h1}"]
    assert found == pytest.approx(skew, abs=1e-3)


async def test_what_a_host_tells_of_its_ledger_images_and_leaks(stage: Stage) -> None:
    image = Image("default", "d", "2.336.0", created=stage.now - 86400)
    await report(stage, unshipped=7, unshipped_s=400.0, images=(image, Image("old", "e", "2")), swept={"link": 2})
    found = await samples(stage)
    assert found["ironcd_host_ledger_unshipped_lines{host=h1}"] == 7
    assert found["ironcd_host_ledger_unshipped_seconds{host=h1}"] == 400
    assert found["ironcd_host_leaks_total{host=h1,what=link}"] == 2
    assert found["ironcd_host_leaks_total{host=h1,what=runner}"] == 0
    assert found["ironcd_image_age_seconds{host=h1,image=default,runner_version=2.336.0}"] == 86400
    assert not any("image=old" in name for name in found), "its age isn't known"


async def test_a_host_that_was_taken_out_of_the_configuration_is_missed_by_nobody(stage: Stage) -> None:
    await report(stage)
    assert any("host=h1" in name for name in await samples(stage))
    assert not any("host=h1" in name for name in await samples(stage, frozenset({"h2"})))


async def test_githubs_limits_and_clock() -> None:
    gauge = Gauge()
    gauge.limits = {(7, "core"): Limit(5000, 12, 100.0), (0, "core"): Limit(5000, 40, 300.0)}
    told = what_github_told(gauge, now=200.0)
    assert told["github_remaining{installation=7,resource=core}"] == 5000, "it was reset since"
    assert told["github_remaining{installation=app,resource=core}"] == 40
    assert told["github_limit{installation=app,resource=core}"] == 5000
    assert "github_clock_skew" not in told
    store = Store(FakeAsyncRedis(), "t:")
    await store.add_counts({}, {**told, "github_clock_skew": -3.5})
    text = (await metrics.scrape(store)).decode()
    assert 'ironcd_github_limit{installation="app",resource="core"} 5000.0' in text
    assert "ironcd_github_clock_skew_seconds -3.5" in text


@pytest.mark.parametrize(
    ("headers", "skew"),
    [
        ({"date": "Tue, 14 Nov 2023 22:13:20 GMT"}, 0.0),
        ({"date": "Tue, 14 Nov 2023 22:14:20 GMT"}, 58.0),
        ({"date": "Tue, 14 Nov 2023 22:12:20 GMT"}, -59.0),
        ({"date": "Tue, 14 Nov 2023 22:12:20 GMT", "age": "60"}, None),
        ({"date": "yesterday"}, None),
    ],
)
async def test_a_date_of_githubs_is_compared_with_our_clock(headers: dict[str, str], skew: float | None) -> None:
    moments = iter([1_700_000_000.0, 1_700_000_002.0])
    gauge = Gauge()
    inner = httpx.MockTransport(lambda _request: httpx.Response(200, headers=headers))
    async with httpx.AsyncClient(transport=Transport(inner, gauge, 7, clock=lambda: next(moments))) as client:
        await client.get("http://github.test/meta")
    assert gauge.skew == skew
