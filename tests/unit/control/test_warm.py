"""Machines that wait on hosts: which runner becomes one of them, and which offers of a host are not believed."""

from __future__ import annotations

import msgspec
import pytest
from ulid import ULID

from orchestrator.core.machine import MachineClass
from orchestrator.core.wire import Desired, Failure, Observed, ObservedWarm

from .stage import Host, Stage

NAME = "ironcd"
"""Of the default class."""


class WarmHost(Host):
    def __init__(self, name: str = "h1", vcpus: int = 8) -> None:
        super().__init__(name, vcpus)
        self.warm: list[ObservedWarm] = []

    def report(self, now: float) -> Observed:
        waits = tuple(machine for machine in self.warm if machine.id not in self.seen)
        return msgspec.structs.replace(super().report(now), warm=waits)

    def waits(self, now: float, ulid: str = "", machine_class: str = NAME) -> str:
        made = ulid or str(ULID.from_timestamp(now))
        self.warm.append(ObservedWarm(made, machine_class, now))
        return made


@pytest.fixture
def hosts(stage: Stage) -> dict[str, WarmHost]:
    made = {name: WarmHost(name) for name in ("h1", "h2")}
    stage.hosts = dict(made)
    return made


async def wanted(stage: Stage, *job_ids: int) -> dict[str, str]:
    """Runner to host, after a look that saw these jobs for the first time."""
    await stage.hosts_move()
    for job_id in job_ids:
        await stage.deliver(stage.job(job_id))
    await stage.look()
    return {record.id: record.life.host for record in await stage.runners()}


async def test_a_new_runner_is_the_machine_that_waits(stage: Stage, hosts: dict[str, WarmHost]) -> None:
    ulid = hosts["h2"].waits(stage.now)
    assert await wanted(stage, 1) == {ulid: "h2"}
    await stage.run()
    assert stage.github.jobs[1].conclusion == "success"
    assert stage.started == {1: [ulid]}


async def test_each_is_given_once_and_the_longest_waiting_first(stage: Stage, hosts: dict[str, WarmHost]) -> None:
    late = hosts["h1"].waits(stage.now - 5)
    early = hosts["h2"].waits(stage.now - 50)
    runners = await wanted(stage, 1)
    assert runners == {early: "h2"}
    runners = await wanted(stage, 2, 3)
    assert {late, early} < runners.keys()
    assert len(runners) == 3


async def test_one_of_another_class_is_left_waiting(stage: Stage, hosts: dict[str, WarmHost]) -> None:
    ulid = hosts["h1"].waits(stage.now, machine_class="ironcd-large")
    assert ulid not in await wanted(stage, 1)


@pytest.mark.parametrize("why", ["away", "cordoned", "full", "complains", "no image"])
async def test_one_on_a_host_that_takes_no_job_is_left_waiting(
    stage: Stage, hosts: dict[str, WarmHost], why: str
) -> None:
    ulid = hosts["h1"].waits(stage.now)
    match why:
        case "away":
            await stage.hosts_move()
            stage.now += stage.settings.pace.host_away_s + 1
            del stage.hosts["h1"]
        case "cordoned":
            await stage.store.cordon("h1", "new kernel")
        case "full":
            hosts["h1"].capacity = msgspec.structs.replace(hosts["h1"].capacity, vcpus=1)
        case "complains":
            hosts["h1"].problems = (Failure("libvirt-away", "libvirt doesn't answer"),)
        case "no image":
            hosts["h1"].images = ()
    runners = await wanted(stage, 1)
    assert list(runners.values()) == ["h2"]
    assert ulid not in runners


async def test_a_host_on_which_the_job_failed_before_is_avoided(stage: Stage, hosts: dict[str, WarmHost]) -> None:
    first = hosts["h1"].waits(stage.now)
    hosts["h1"].fails = lambda _runner: Failure("libvirt-failed", "no")
    await wanted(stage, 1)
    second = hosts["h1"].waits(stage.now)
    await stage.run(rounds=40, seconds=5.0)
    assert stage.github.jobs[1].conclusion == "success"
    assert hosts["h1"].seen.keys().isdisjoint({second})
    assert first not in stage.started[1]


@pytest.mark.parametrize("offer", ["not a ulid", "../../../../etc/passwd", "01JZZZZZZZZZZZZZZZZZZZZZZ1", "9" * 26])
async def test_an_id_that_is_none_or_was_made_long_ago_is_not_believed(
    stage: Stage, hosts: dict[str, WarmHost], offer: str
) -> None:
    hosts["h1"].waits(stage.now, offer)
    runners = await wanted(stage, 1)
    assert len(runners) == 1
    assert offer not in runners


async def test_an_id_of_the_future_is_not_believed(stage: Stage, hosts: dict[str, WarmHost]) -> None:
    offer = hosts["h1"].waits(stage.now, str(ULID.from_timestamp(stage.now + 3600)))
    assert offer not in await wanted(stage, 1)


async def test_an_id_that_two_hosts_offer_is_neithers(stage: Stage, hosts: dict[str, WarmHost]) -> None:
    offer = hosts["h1"].waits(stage.now)
    hosts["h2"].waits(stage.now, offer)
    assert offer not in await wanted(stage, 1)


async def test_no_host_can_offer_a_runner_that_there_is_or_was(stage: Stage, hosts: dict[str, WarmHost]) -> None:
    (live,) = await wanted(stage, 1)
    hosts["h2"].waits(stage.now, live)
    assert len(await wanted(stage, 1, 2)) == 2
    await stage.run()
    assert await stage.runners() == []
    del stage.hosts["h1"]
    hosts["h2"].seen.clear()
    assert live not in await wanted(stage, 3)


async def test_machines_that_wait_take_no_room(stage: Stage, hosts: dict[str, WarmHost]) -> None:
    hosts["h1"].capacity = hosts["h2"].capacity = msgspec.structs.replace(hosts["h1"].capacity, vcpus=2)
    for _ in range(4):
        hosts["h1"].waits(stage.now, machine_class="ironcd-large")
    assert set((await wanted(stage, 1, 2)).values()) == {"h1", "h2"}


async def test_one_that_was_lost_in_between_is_a_runner_like_any_other(
    stage: Stage, hosts: dict[str, WarmHost]
) -> None:
    ulid = hosts["h1"].waits(stage.now)
    await stage.hosts_move()
    hosts["h1"].warm.clear()
    await stage.deliver(stage.job(1))
    await stage.look()
    assert {record.id: record.life.host for record in await stage.runners()} == {ulid: "h1"}
    await stage.run()
    assert stage.github.jobs[1].conclusion == "success"


async def test_a_cordoned_host_is_told_to_keep_none_waiting(stage: Stage, hosts: dict[str, WarmHost]) -> None:
    stage.settings.classes[NAME] = MachineClass(NAME, warm=2)
    await stage.store.cordon("h2", "new kernel")
    await stage.hosts_move()
    await stage.look()
    told = {}
    for name in hosts:
        _, raw = await stage.store.desired(name)
        assert raw is not None
        told[name] = {machine.name: machine.warm for machine in msgspec.json.decode(raw, type=Desired).classes}
    assert (told["h1"][NAME], told["h2"][NAME]) == (2, 0)
