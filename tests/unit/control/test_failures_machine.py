"""Known ways a job goes wrong on a machine, by their number: it doesn't boot, its runner can't sign in, it is too old."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.control import metrics
from orchestrator.control.github import Release
from orchestrator.control.records import Sighting
from orchestrator.core.quarantine import Ward
from orchestrator.core.runner_release import DAY_S
from orchestrator.core.wire import Failure, Image

from .stage import REPO, Host, Stage, runner_name

SILENT = Failure("guest-silent", "the guest never spoke", console="Kernel panic - not syncing", domain="running")


def refuses_from(host: Host, *, image: str = "") -> None:
    """From now on every start on ``host`` fails; with ``image``: where it is of that digest."""
    host.fails = lambda _runner: SILENT if not image or host.images[0].digest == image else None


async def failing(stage: Stage, *jobs: int, seconds: float = 10, rounds: int = 12) -> None:
    await stage.hosts_move()
    for number in jobs:
        await stage.deliver(stage.job(number))
    await stage.run(seconds=seconds, rounds=rounds)


async def test_row_12_a_start_that_fails_is_tried_on_another_host_with_the_evidence_kept(tmp_path: Path) -> None:
    bad, good = Host("a-bad"), Host("z-good", vcpus=16)
    stage = Stage(tmp_path, hosts=[bad, good])
    refuses_from(bad)
    await failing(stage, 1)
    record = await stage.job_record(1)
    assert (record.job.conclusion, record.job.replacements) == ("success", 1)
    first = await stage.store.runner(record.runners[0])
    second = await stage.store.runner(record.runners[1])
    assert first is not None
    assert second is not None
    assert (first.life.host, second.life.host) == ("a-bad", "z-good")
    assert first.failure is not None
    assert (first.failure.console, first.failure.domain) == ("Kernel panic - not syncing", "running")
    assert first.life.registration == "gone"
    jits = [host.jits[runner] for host, runner in ((bad, first.id), (good, second.id))]
    assert len(set(jits)) == 2, "a configuration that may have been read is never used again"
    assert await stage.leftovers() == {}
    await stage.close()


async def test_row_12_three_failures_put_a_host_in_quarantine_and_it_ends_by_itself(tmp_path: Path) -> None:
    bad, good = Host("a-bad", vcpus=16), Host("z-good", vcpus=64)
    good.images = (msgspec.structs.replace(bad.images[0], digest="sha256:1"),)
    stage = Stage(tmp_path, hosts=[bad, good])
    refuses_from(bad)
    await failing(stage, 1, 2, 3)
    ward = await stage.store.ward()
    assert set(ward.held) == {"host:a-bad"}
    assert "guest-silent" in ward.held["host:a-bad"].reason
    await failing(stage, 4)
    record = await stage.job_record(4)
    assert (record.job.conclusion, record.job.replacements) == ("success", 0), "the host that fails isn't tried"
    bad.fails = lambda _runner: None
    del stage.hosts["z-good"]
    stage.now += 600
    await failing(stage, 5)
    assert (await stage.job_record(5)).job.conclusion == "success"
    assert (await stage.store.ward()).held == {}
    await stage.close()


async def test_row_12_an_image_that_fails_everywhere_is_no_hosts_fault(tmp_path: Path) -> None:
    one, two = Host("one", vcpus=4), Host("two", vcpus=4)
    stage = Stage(tmp_path, hosts=[one, two])
    refuses_from(one, image="sha256:0")
    refuses_from(two, image="sha256:0")
    await failing(stage, 1, 2, rounds=14)
    assert set((await stage.store.ward()).held) == {"image:sha256:0"}
    assert "which is in quarantine" in (await stage.job_record(1)).job.reason
    for host in (one, two):
        host.images = (Image("default", "sha256:new", "2.336.0"),)
    await stage.run(seconds=10, rounds=30)
    assert {(await stage.job_record(n)).job.conclusion for n in (1, 2)} == {"success"}
    await stage.close()


async def test_row_12_a_persons_word_ends_a_quarantine(stage: Stage) -> None:
    refuses_from(stage.hosts["h1"])
    await failing(stage, 1, 2, 3, rounds=8)
    assert "host h1 is in quarantine until" in (await stage.job_record(1)).job.reason
    stage.hosts["h1"].fails = lambda _runner: None
    await stage.store.lift("host:h1", stage.now)
    await stage.run(seconds=10, rounds=12)
    assert {(await stage.job_record(n)).job.conclusion for n in (1, 2, 3)} == {"success"}
    stage.now += 4000
    await stage.look()
    assert await stage.leftovers() == {}


async def test_row_12_a_start_that_a_flush_fell_into_puts_nobody_in_quarantine(stage: Stage) -> None:
    """The packet filter was flushed just then: that says nothing against the host, and its next start succeeds."""
    left = [Failure("wall-disturbed", "another program changed the packet filter")] * 5
    stage.hosts["h1"].fails = lambda _runner: left.pop() if left else None
    await failing(stage, 1, 2, 3, 4, 5, rounds=30)
    assert left == []
    assert (await stage.store.ward()) == Ward()
    assert {(await stage.job_record(n)).job.conclusion for n in (1, 2, 3, 4, 5)} == {"success"}
    assert await stage.leftovers() == {}


async def test_row_12_machines_that_a_restart_of_their_host_ended_put_nobody_in_quarantine(tmp_path: Path) -> None:
    """Two hosts start anew while machines boot on both: that says nothing against the image that they have in common."""
    hosts = [Host("one", vcpus=16), Host("two", vcpus=16)]
    stage = Stage(tmp_path, hosts=hosts)
    left = [Failure("vm-vanished", "the VM ended in the middle of its work (gone while the agent was away)")] * 5
    for host in hosts:
        host.fails = lambda _runner: left.pop() if left else None
    await failing(stage, 1, 2, 3, 4, 5, rounds=30)
    assert left == []
    assert (await stage.store.ward()) == Ward()
    assert {(await stage.job_record(n)).job.conclusion for n in (1, 2, 3, 4, 5)} == {"success"}
    await stage.close()


async def test_row_12_what_isnt_their_fault_puts_nobody_in_quarantine(stage: Stage) -> None:
    host = stage.hosts["h1"]
    host.steps_per_move = 5
    await stage.hosts_move()
    for number in (1, 2, 3, 4):
        await stage.deliver(stage.job(number))
    await stage.look()
    await stage.hosts_move()
    for number, runner in enumerate(list(host.seen)):
        if number < 3:
            host.exits(runner, 0, stage.now)
        else:
            await stage.deliver(stage.github.end(number + 1, "cancelled"))
    await stage.look()
    assert (await stage.store.ward()).faults == ()


@pytest.mark.parametrize(("code", "reason"), [(1, "runner_exited"), (5, "session_conflict")])
async def test_row_13_a_runner_that_cant_sign_in(code: int, reason: str, stage: Stage) -> None:
    """The guest has tried again by itself (see ``tests/unit/runner_image/test_session.py``); a new one is made."""
    host = stage.hosts["h1"]
    host.steps_per_move = 9
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    await stage.hosts_move()
    (first,) = [record.id for record in await stage.runners()]
    host.exits(first, code, stage.now)
    host.steps_per_move = 99
    await stage.run(seconds=2)
    record = await stage.job_record(1)
    assert (record.job.conclusion, record.job.replacements) == ("success", 1)
    gone = await stage.store.runner(first)
    assert gone is not None
    assert gone.life.reason == reason
    counters = await stage.store.counters()
    assert counters.get("incidents{kind=jit_used_twice}", 0) == (1 if code == 5 else 0), "an alarm"
    assert len(set(host.jits.values())) == 2
    assert await stage.leftovers() == {}


@pytest.mark.parametrize(("off", "served"), [(299.0, True), (301.0, False), (-299.0, True), (-320.0, False)])
async def test_row_13_a_host_whose_clock_is_off_gets_no_runner(off: float, served: bool, stage: Stage) -> None:
    host = stage.hosts["h1"]
    await stage.deliver(stage.job(1))
    await stage.store.put_sighting(Sighting(stage.now, host.report(stage.now + off)))
    await stage.look()
    assert [record.life.host for record in await stage.runners()] == (["h1"] if served else [])
    if not served:
        assert "clock that is" in (await stage.job_record(1)).job.reason


@pytest.mark.parametrize("code", [3, 4, 7])
async def test_row_20_a_runner_too_old_for_github_puts_its_image_out_of_use(code: int, stage: Stage) -> None:
    host = stage.hosts["h1"]
    host.steps_per_move = 9
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    await stage.hosts_move()
    (first,) = [record.id for record in await stage.runners()]
    host.exits(first, code, stage.now)
    host.steps_per_move = 99
    await stage.run(seconds=60, rounds=30)
    assert (await stage.job_record(1)).job.state == "queued"
    assert "build the image anew" in (await stage.job_record(1)).job.reason
    assert (await stage.store.counters())["incidents{kind=runner_too_old}"] == 1, "nobody else tries with it"
    host.images = (Image("default", "sha256:new", "2.400.0"),)
    await stage.run(seconds=2)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert REPO in {job.repo for job in stage.github.jobs.values()}
    assert runner_name(first) not in {runner.name for runner in stage.github.runners.values()}


async def test_row_20_the_latest_runner_is_asked_for_once_a_day_and_a_late_image_isnt_rolled_out(stage: Stage) -> None:
    stage.github.runner_release = Release("2.400.0", stage.now - 26 * DAY_S)
    for _ in range(30):
        await stage.hosts_move()
        await stage.look()
        stage.now += 3600
    assert stage.github.calls.count("latest_runner") == 2
    await failing(stage, 1)
    assert (await stage.job_record(1)).job.conclusion == "success", "what was in use when we began goes on"
    stage.hosts["h1"].images = (Image("default", "sha256:late", "2.336.0"),)
    await failing(stage, 2)
    reason = (await stage.job_record(2)).job.reason
    assert "isn't rolled out any more: its runner is 27 days behind 2.400.0" in reason
    stage.hosts["h1"].images = (Image("default", "sha256:fresh", "2.400.0"),)
    await failing(stage)
    assert (await stage.job_record(2)).job.conclusion == "success"
    text = (await metrics.scrape(stage.store, clock=stage.clock)).decode()
    assert "ironcd_runner_version_days_left{" not in text
    stage.hosts["h1"].images = (Image("default", "sha256:0", "2.336.0"),)
    await stage.hosts_move()
    text = (await metrics.scrape(stage.store, clock=stage.clock)).decode()
    assert 'ironcd_runner_version_days_left{host="h1",image="default",runner_version="2.336.0"} 2.' in text


async def test_row_20_a_github_without_releases_blocks_nothing(stage: Stage) -> None:
    await failing(stage, 1)
    assert (await stage.job_record(1)).job.conclusion == "success"
    stage.hosts["h1"].images = (Image("default", "sha256:other", "1.0.0"),)
    await failing(stage, 2)
    assert (await stage.job_record(2)).job.conclusion == "success"


async def test_row_13_a_guest_whose_clock_is_off_is_told_apart(stage: Stage) -> None:
    host = stage.hosts["h1"]
    host.steps_per_move = 9
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    await stage.hosts_move()
    (first,) = [record.id for record in await stage.runners()]
    host.exits(first, 0, stage.now)
    skewed = Failure("guest-clock", "its clock is more than five minutes off GitHub's")
    host.seen[first] = msgspec.structs.replace(host.seen[first], failure=skewed)
    host.steps_per_move = 99
    await stage.run(seconds=2)
    gone = await stage.store.runner(first)
    assert gone is not None
    assert gone.life.reason == "guest-clock"
    assert "guest-clock" in next(m.detail for m in (await stage.job_record(1)).job.story if m.what == "runner_failed")
    assert (await stage.job_record(1)).job.conclusion == "success"
