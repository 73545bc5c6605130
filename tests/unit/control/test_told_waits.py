"""A job's story has a line for each thing that the job waited for, also where nobody asked while it did."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.control.github import Installation, Unavailable
from orchestrator.control.github_fake import When
from orchestrator.control.policy_archive import PolicyArchive
from orchestrator.control.settings import ControlSettings
from orchestrator.control.told_waits import tell_wait
from orchestrator.control.world import World
from orchestrator.core.inbox import InstallationNews
from orchestrator.core.machine import Capacity
from orchestrator.core.policy import Policy
from orchestrator.core.sharing import Share, Sharing

from .stage import INSTALLATION, ORG, Host, Stage, runner_name


async def turns(stage: Stage, number: int, seconds: float = 10.0) -> None:
    for _ in range(number):
        await stage.hosts_move()
        await stage.look()
        stage.now += seconds


async def waits(stage: Stage, job: int) -> list[str]:
    """What the story says it waited for, in order."""
    story = (await stage.job_record(job)).job.story
    for moment in story:
        assert moment.detail or not moment.what.startswith("waits_for_"), moment
    return [moment.what.removeprefix("waits_for_") for moment in story if moment.what.startswith("waits_for_")]


async def set_app(stage: Stage, *, suspended: bool) -> None:
    stage.github.apps[INSTALLATION] = Installation(INSTALLATION, ORG, organization=True, suspended=suspended)
    news = InstallationNews(INSTALLATION, "suspend" if suspended else "unsuspend", ORG)
    await stage.deliver_installation(news)


async def test_a_wait_for_a_person_is_told(stage: Stage) -> None:
    held = msgspec.structs.replace(stage.job(1), state="waiting")
    stage.github.jobs[1] = held
    await stage.deliver(held, "waiting")
    await turns(stage, 3)
    assert await waits(stage, 1) == ["approval"]


async def test_a_wait_for_the_policy_is_told(stage: Stage) -> None:
    def trouble(call: str, when: When) -> None:
        if (call, when) == ("read_file", "before"):
            raise Unavailable("503")

    stage.github.trouble = trouble
    await stage.deliver(stage.job(1))
    await turns(stage, 3)
    assert await waits(stage, 1) == ["policy"]
    assert "503" in (await stage.job_record(1)).job.story[-1].detail


async def test_a_registration_that_github_doesnt_grant_yet_is_told(stage: Stage) -> None:
    def trouble(call: str, when: When) -> None:
        if (call, when) == ("generate_jit", "before"):
            raise Unavailable("503")

    await turns(stage, 1)
    stage.github.trouble = trouble
    await stage.deliver(stage.job(1))
    await turns(stage, 3)
    assert await waits(stage, 1) == ["github"]


async def test_each_suspension_is_told(stage: Stage) -> None:
    """The first one has a line of its own; before, the story said nothing of any later one."""
    await stage.deliver(stage.job(1))
    await set_app(stage, suspended=True)
    stage.hosts.clear()
    await turns(stage, 3)
    assert await waits(stage, 1) == []
    assert (await stage.job_record(1)).job.story[-1].what == "app_suspended"
    await set_app(stage, suspended=False)
    await turns(stage, 12)
    await set_app(stage, suspended=True)
    await turns(stage, 3)
    assert await waits(stage, 1) == ["room", "app"]


async def test_a_wait_that_became_another_within_the_minute_is_told_after_it(tmp_path: Path) -> None:
    """Before, it never was: the story said for what it had waited first, for as long as it waited."""
    settings = ControlSettings(
        app_id=1, state_dir=str(tmp_path), prefix="t:", sharing=Sharing(repository=Share(runners=1))
    )
    stage = Stage(tmp_path, hosts=[Host("h1", vcpus=1)], settings=settings)
    await stage.deliver(stage.job(1))
    await stage.deliver(stage.job(2))
    await turns(stage, 2)
    assert await waits(stage, 2) == ["room"]
    stage.hosts["h1"].capacity = Capacity(2, 64 * 1024, 500)
    await turns(stage, 3)
    assert await waits(stage, 2) == ["room"]
    await turns(stage, 4)
    assert await waits(stage, 2) == ["room", "quota"]
    await stage.close()


async def test_where_no_policy_can_be_kept_every_job_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looked at what jobs wait for while the control plane's disk was full."""

    def full(_archive: PolicyArchive, _policies: object) -> None:
        raise OSError(28, "No space left on device")

    await turns(stage, 1)
    monkeypatch.setattr(PolicyArchive, "put", full)
    await stage.deliver(stage.job(1))
    await turns(stage, 3)
    assert await waits(stage, 1) == ["archive"]
    assert "No space left" in (await stage.job_record(1)).job.reason
    assert await stage.runners() == []
    monkeypatch.undo()
    await stage.run()
    assert (await stage.job_record(1)).job.conclusion == "success"


async def test_a_job_whose_runner_was_taken_says_that_it_waits_for_its_turn(stage: Stage) -> None:
    """GitHub gave it to another job, whose own runner comes to this one."""
    await turns(stage, 1)
    await stage.deliver(stage.job(1))
    await turns(stage, 1)
    await stage.deliver(stage.job(2))
    await turns(stage, 1)
    first = (await stage.job_record(1)).runners[0]
    await stage.deliver(stage.github.give(2, runner_name(first)))
    await stage.look()
    assert (await waits(stage, 1))[-1:] == ["turn"]


async def test_a_wait_that_begins_again_in_the_same_words_is_told_again(stage: Stage) -> None:
    """A runner came for the job in between and was taken by another one, which only the runner's story says."""
    await stage.deliver(stage.job(1))
    await turns(stage, 1)
    world = World(await stage.store.snapshot(), stage.settings, Policy("enforce", ()), stage.now)
    for kind in ("room", "", "room"):
        tell_wait(world, 1, kind, "no host has room")
    story = [moment.what for moment in world.jobs[1].job.story]
    assert story[-2:] == ["waits_for_room", "waits_for_room"]


async def test_a_wait_of_its_delivery_for_github_is_told_once_it_can_be_read(stage: Stage) -> None:
    """A new worker has no list of installations yet; nobody knows the job until it has."""

    def trouble(call: str, when: When) -> None:
        if (call, when) == ("installations", "before"):
            raise Unavailable("503")

    await turns(stage, 1)
    stage.reconciler = stage.fresh()
    stage.github.trouble = trouble
    came = stage.now
    await stage.deliver(stage.job(1))
    await turns(stage, 3)
    stage.github.trouble = lambda *_: None
    await turns(stage, 3)
    story = (await stage.job_record(1)).job.story
    told = [moment for moment in story if moment.what == "waits_for_github"]
    assert [moment.at for moment in told] == [came]
    assert "where the App is installed" in told[0].detail
    assert [moment.what for moment in story[:3]] == ["queued", "waits_for_github", "class_matched"]


async def test_a_delivery_that_is_read_at_once_waited_for_nothing(stage: Stage) -> None:
    await stage.deliver(stage.job(1))
    await turns(stage, 3)
    assert await waits(stage, 1) == []
