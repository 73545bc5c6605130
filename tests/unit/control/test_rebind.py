"""A policy that changes while a job runs: its host gets it, and nobody else is bothered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.control.github import Unavailable
from orchestrator.control.policies import PolicyBook
from orchestrator.control.records import RunnerRecord
from orchestrator.control.settings import ControlSettings
from orchestrator.core.policy import compile_policy
from orchestrator.core.wire import Desired

from .stage import POLICY, REPO, Stage

FILE = (REPO, ".ironcd/policy.yml")
ORG = "mode: enforce\nrepositories_may: narrow\nallow:\n  - host: allowed.example\n  - host: other.example\n"


@pytest.fixture
async def under_org(tmp_path: Path) -> AsyncIterator[Stage]:
    (tmp_path / "org.yml").write_text(ORG)
    settings = ControlSettings(
        app_id=1, state_dir=str(tmp_path), prefix="t:", organisation_policy_file=str(tmp_path / "org.yml")
    )
    made = Stage(tmp_path, settings=settings)
    yield made
    await made.close()


def org_file(stage: Stage) -> Path:
    return Path(stage.settings.organisation_policy_file)


async def running(stage: Stage) -> RunnerRecord:
    """The runner of a job that runs under its policy."""
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    for _ in range(3):
        await stage.look()
        await stage.hosts_move()
    for job in stage.github_assigns():
        await stage.deliver(job)
    await turn(stage)
    await turn(stage)
    (record,) = await stage.runners()
    assert record.life.phase == "RUNNING"
    assert record.life.bound == record.policy
    return record


async def turn(stage: Stage) -> RunnerRecord:
    await stage.look()
    await stage.hosts_move()
    await stage.look()
    (record,) = await stage.runners()
    return record


async def told(stage: Stage) -> tuple[str, int, set[str]]:
    """Mode, generation and allowed hosts beyond the baseline, as the host was told."""
    _, raw = await stage.store.desired("h1")
    assert raw is not None
    (runner,) = msgspec.json.decode(raw, type=Desired).runners
    compile_policy(runner.policy)
    own = {rule.host for rule in runner.policy.rules if rule.action == "allow" and not rule.id.startswith("builtin/")}
    return runner.policy.mode, runner.generation, own


async def test_a_changed_organisation_file_reaches_a_job_that_runs_at_the_next_look(under_org: Stage) -> None:
    before = await running(under_org)
    assert await told(under_org) == ("enforce", before.generation, {"allowed.example"})
    org_file(under_org).write_text(ORG + "deny:\n  - host: bad.allowed.example\n")
    after = await turn(under_org)
    assert after.policy != before.policy
    assert after.generation == before.generation + 1
    assert after.life.bound == after.policy, "the host has it in force"
    assert (await told(under_org))[1] == after.generation


async def test_nothing_is_sent_where_nothing_changed(under_org: Stage) -> None:
    before = await running(under_org)
    org_file(under_org).write_text(ORG + "# a comment changes no policy\n")
    for _ in range(5):
        under_org.now += 30
        assert (await turn(under_org)).generation == before.generation


async def test_a_changed_repository_file_is_seen_once_it_is_read_again(stage: Stage) -> None:
    before = await running(stage)
    stage.github.files[FILE] = b"mode: warn\nallow: []\n"
    assert (await turn(stage)).policy == before.policy
    reads = stage.github.calls.count("read_file")
    stage.now += stage.settings.pace.policy_s
    after = await turn(stage)
    assert await told(stage) == ("warn", before.generation + 1, set())
    assert after.life.bound == after.policy
    assert stage.github.calls.count("read_file") == reads + 1


async def test_what_the_organisation_forbids_now_leaves_the_baseline(under_org: Stage) -> None:
    before = await running(under_org)
    org_file(under_org).write_text("mode: enforce\nallow:\n  - host: other.example\n")
    after = await turn(under_org)
    assert await told(under_org) == ("enforce", before.generation + 1, set())
    assert after.bound
    assert after.story[-1].what in ("policy_withdrawn", "PolicyBound")
    assert any("isn't within" in moment.detail for moment in after.story)
    org_file(under_org).write_text(ORG)
    assert (await turn(under_org)).policy == before.policy
    assert await told(under_org) == ("enforce", before.generation + 2, {"allowed.example"})


@pytest.mark.parametrize("text", ["mode: [", "mode: nonsense\n"])
async def test_a_file_that_cannot_be_read_changes_nothing_for_a_job_that_runs(under_org: Stage, text: str) -> None:
    before = await running(under_org)
    org_file(under_org).write_text(text)
    after = await turn(under_org)
    assert (after.policy, after.generation) == (before.policy, before.generation)
    assert "stays as it was" in after.waiting
    org_file(under_org).write_text(ORG)
    assert (await turn(under_org)).waiting == ""


async def test_a_repository_file_that_is_gone_or_out_of_reach_changes_nothing_either(stage: Stage) -> None:
    before = await running(stage)
    del stage.github.files[FILE]
    stage.now += stage.settings.pace.policy_s
    assert (await turn(stage)).policy == before.policy
    stage.github.files[FILE] = POLICY

    def away(call: str, when: str) -> None:
        if (call, when) == ("read_file", "before"):
            raise Unavailable("a test")

    stage.github.trouble = away
    stage.now += stage.settings.pace.policy_s
    after = await turn(stage)
    assert (after.policy, after.generation) == (before.policy, before.generation)


async def test_a_new_worker_looks_again_too(under_org: Stage) -> None:
    before = await running(under_org)
    org_file(under_org).write_text(ORG.replace("mode: enforce", "mode: enforce\nallow_ech: false\nprofile: sandbox"))
    under_org.reconciler = under_org.fresh()
    assert (await turn(under_org)).generation == before.generation + 1


async def test_a_policy_is_asked_for_once_in_a_pass_however_many_jobs_share_it(
    under_org: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = under_org
    await stage.hosts_move()
    for number in (1, 2, 3):
        await stage.deliver(stage.job(number))
    for _ in range(3):
        await stage.look()
        await stage.hosts_move()
    for job in stage.github_assigns():
        await stage.deliver(job)
    for _ in range(4):
        await stage.look()
        await stage.hosts_move()
    assert len([record for record in await stage.runners() if record.life.bound]) == 3
    asked: list[str] = []
    original = PolicyBook.policy_of

    async def counting(book: PolicyBook, installation: int, repo: str, images, now: float):
        asked.append(repo)
        return await original(book, installation, repo, images, now)

    monkeypatch.setattr(PolicyBook, "policy_of", counting)
    await stage.look()
    assert asked == [REPO]
    org_file(stage).write_text(ORG.replace("  - host: allowed.example\n", ""))
    before = [record.policy for record in await stage.runners()]
    await stage.look()
    assert not set(before) & {record.policy for record in await stage.runners()}, "all of them have the new one"
