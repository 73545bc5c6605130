"""What a job would get now, and what one got: asked by the API, answered by the worker, kept by digest."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
import pytest
from fastapi import HTTPException

from orchestrator.control.admin_api import AdminApi
from orchestrator.control.github import Unavailable
from orchestrator.control.policy_archive import PolicyArchive
from orchestrator.control.policy_questions import PolicyAnswers, Question, ask, is_repo
from orchestrator.core.policy import Policy
from orchestrator.core.wire import Desired
from policies import load_presets

from .stage import REPO, Stage

FILE = (REPO, ".ironcd/policy.yml")


def answers(stage: Stage) -> PolicyAnswers:
    return PolicyAnswers(stage.store, stage.github, stage.settings, load_presets(), clock=lambda: stage.now)


def api(stage: Stage) -> AdminApi:
    policies = PolicyArchive(Path(stage.settings.state_dir) / "policies")
    return AdminApi(stage.store, policies=policies, clock=lambda: stage.now)


async def asked(stage: Stage, repo: str = REPO) -> dict:
    """What the API answers while a worker answers it."""
    worker = asyncio.create_task(answers(stage).round(5.0))
    answer = await api(stage).policy(repo)
    assert await worker
    return msgspec.json.decode(answer.body)


def hosts(told: dict) -> set[str]:
    rules = msgspec.convert(told["policy"], Policy).rules
    return {rule.host for rule in rules if not rule.id.startswith("builtin/")}


async def test_what_the_default_branch_says_now(stage: Stage) -> None:
    text = stage.github.files[FILE]
    told = await asked(stage)
    blob = hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()
    assert (told["repo"], told["branch"], told["blob"]) == (REPO, "main", blob)
    assert (hosts(told), told["text"]) == ({"allowed.example"}, text.decode())
    stage.github.files[FILE] = b"mode: enforce\nallow: [{host: new.example}]\n"
    told = await asked(stage)
    assert (hosts(told), told["blob"] == blob) == ({"new.example"}, False)
    assert msgspec.convert(told["policy"], Policy).digest == told["digest"]


async def test_one_worker_reads_it_each_time(stage: Stage) -> None:
    worker = answers(stage)
    first = await worker.answer(REPO)
    stage.github.files[FILE] = b"mode: enforce\nallow: []\n"
    second = await worker.answer(REPO)
    assert first.policy is not None
    assert second.policy is not None
    assert (first.blob == second.blob, first.policy.digest == second.policy.digest) == (False, False)


async def test_under_the_organisations_policy_of_now(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "org.yml"
    stage.settings = msgspec.structs.replace(stage.settings, organisation_policy_file=str(file))
    file.write_text("mode: enforce\nallow: [{host: allowed.example}]\n")
    assert hosts(await asked(stage)) == {"allowed.example"}
    file.write_text("mode: enforce\nallow: [{host: other.example}]\n")
    told = await asked(stage)
    assert told.get("policy") is None
    assert "allowed.example" in told["reason"]
    assert told["remedy"]


async def test_no_file_no_installation_and_no_github(stage: Stage) -> None:
    del stage.github.files[FILE]
    told = await asked(stage)
    assert (told.get("policy"), told.get("blob", "")) == (None, "")
    assert ".ironcd/policy.yml" in told["reason"]
    assert "isn't installed" in (await asked(stage, "elsewhere/app"))["reason"]

    def away(call: str, when: str) -> None:
        raise Unavailable("no answer")

    stage.github.trouble = away
    with pytest.raises(HTTPException) as failed:
        await asked(stage)
    assert failed.value.status_code == 503


@pytest.mark.parametrize("repo", ["", "x", "a/b/c", "../x", "acme/a b", "a/" + "b" * 101, "acme/x\n"])
async def test_what_is_no_repository_is_asked_of_nobody(repo: str, stage: Stage) -> None:
    with pytest.raises(HTTPException) as refused:
        await api(stage).policy(repo)
    assert refused.value.status_code == 400
    assert not is_repo(repo)
    names = stage.store.names
    await stage.store.push(names.questions, msgspec.json.encode(Question("x", repo, stage.now + 9)), lasts_s=9)
    assert await answers(stage).round(0.1)
    assert await stage.redis.exists(names.answer("x")) == 0


async def test_a_question_that_nobody_waits_for_any_more_isnt_answered(stage: Stage) -> None:
    question = Question("x", REPO, stage.now - 1)
    await stage.store.push(stage.store.names.questions, msgspec.json.encode(question), lasts_s=9)
    assert await answers(stage).round(0.1)
    assert await stage.redis.exists(stage.store.names.answer("x")) == 0
    assert "read_file" not in stage.github.calls


async def test_a_worker_that_is_away_leaves_nothing(stage: Stage) -> None:
    assert await ask(stage.store, REPO, stage.now, wait_s=0.1) is None
    stage.now += 1.0
    assert await stage.redis.exists(stage.store.names.questions) == 0


async def ran(stage: Stage) -> Policy:
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run()
    (runner,) = [one for one in await stage.store.latest_gone_runners(9) if one.bound]
    policy = PolicyArchive(Path(stage.settings.state_dir) / "policies").get(runner.policy)
    assert policy is not None
    return policy


async def test_what_a_job_got_is_told_long_after(stage: Stage) -> None:
    policy = await ran(stage)
    stage.github.files[FILE] = b"mode: enforce\nallow: []\n"
    await stage.redis.delete(stage.store.names.policies)
    told = msgspec.json.decode((await api(stage).policy(job=1)).body)
    assert (told["repo"], told["job"], told["digest"]) == (REPO, 1, policy.digest)
    assert hosts(told) == {"allowed.example"}


async def test_jobs_that_are_unknown_or_got_none(stage: Stage) -> None:
    with pytest.raises(HTTPException) as unknown:
        await api(stage).policy(job=77)
    assert unknown.value.status_code == 404
    del stage.github.files[FILE]
    await stage.deliver(stage.job(2))
    await stage.look()
    told = msgspec.json.decode((await api(stage).policy(job=2)).body)
    assert told.get("policy") is None
    assert told["reason"]


async def test_a_kept_policy_that_was_touched_is_none(stage: Stage) -> None:
    policy = await ran(stage)
    folder = Path(stage.settings.state_dir) / "policies"
    archive, path = PolicyArchive(folder), folder / f"{policy.digest.removeprefix('sha256:')}.json"
    path.write_bytes(path.read_bytes().replace(b"allowed.example", b"evil.example"))
    assert archive.get(policy.digest) is None
    path.write_bytes(b"{")
    assert archive.get(policy.digest) is None
    assert archive.get("sha256:../../x") is None


async def test_a_policy_is_kept_before_any_host_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no room")

    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    with monkeypatch.context() as patch:
        patch.setattr(PolicyArchive, "put", full)
        await stage.look()
        assert await stage.runners() == []
        _, raw = await stage.store.desired("h1")
        assert raw is None or msgspec.json.decode(raw, type=Desired).runners == ()
    await stage.look()
    assert len(await stage.runners()) == 1
