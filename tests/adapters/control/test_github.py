"""One contract for the port to GitHub: the one in memory, and githubkit against the simulated GitHub."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from orchestrator.control.github import (
    GitHub,
    GroupFull,
    Installation,
    Missing,
    NameTaken,
    RateLimited,
    Refused,
    Release,
    RunnerGroup,
    RunnerScope,
    Unavailable,
)
from orchestrator.control.github_fake import FakeGitHub
from orchestrator.control.github_kit import KitGitHub
from orchestrator.core.job import Job
from orchestrator.simulator.github import GitHub as SimulatedGitHub
from orchestrator.simulator.github.faults import ResponseFault
from orchestrator.simulator.github.identity import pem_of
from orchestrator.simulator.github.jit import new_key

LABELS = ("ironcd", "linux", "self-hosted", "x64")
POLICY = b"mode: enforce\nallow: []\n"
WORKFLOW = {"jobs": {"build": {"runs-on": ["ironcd"], "steps": [{"run": "true"}]}}}


class Place:
    """A GitHub with the organisation ``acme``, its repository ``app``, and one queued job."""

    def __init__(
        self,
        github: GitHub,
        installation: int,
        job: int,
        run: int,
        *,
        give: Callable[[int], None],
        end: Callable[[str], object],
    ) -> None:
        self.github = github
        self.installation = installation
        self.job = job
        self.run = run
        self.give = give
        """A registered runner (by id) gets the job."""
        self.end = end
        """The job ends with a conclusion."""
        self.org = RunnerScope(installation, org="acme")
        self.repo = RunnerScope(installation, repo="acme/app")


@pytest.fixture(scope="session")
def key() -> Any:
    return new_key()


@pytest.fixture(params=["fake", "simulated"])
async def place(request: pytest.FixtureRequest, key: Any) -> AsyncIterator[Place]:
    made = _fake() if request.param == "fake" else _simulated(key)
    yield made
    await made.github.close()


def _fake() -> Place:
    github = FakeGitHub()
    github.apps[7] = Installation(7, "acme", organization=True)
    github.files["acme/app", ".ironcd/policy.yml"] = POLICY
    github.jobs[1] = Job(1, 7, "acme", "acme/app", "queued", labels=("ironcd",), run_id=5, name="build")

    def give(runner: int) -> None:
        github.give(1, next(seen.name for (_, number), seen in github.runners.items() if number == runner))

    return Place(github, 7, 1, 5, give=give, end=lambda conclusion: github.end(1, conclusion))


def simulated_github(key: Any) -> SimulatedGitHub:
    simulated = SimulatedGitHub(org="acme", repositories=("app",), private_key=key)
    simulated.rest.spare_keys = [key]
    simulated.put_file("app", ".ironcd/policy.yml", POLICY)
    return simulated


def kit_of(simulated: SimulatedGitHub, key: Any) -> KitGitHub:
    return KitGitHub(
        simulated.app_record.id,
        pem_of(key),
        api_url="http://github.test",
        transport=httpx.ASGITransport(simulated.app),
    )


def _simulated(key: Any) -> Place:
    simulated = simulated_github(key)
    run = simulated.create_run("app", WORKFLOW)
    job = next(iter(simulated.state.jobs.values()))

    def give(runner: int) -> None:
        registered = simulated.state.runners[runner]
        session = simulated.engine.open_session(registered, registered.name)
        session.polled_at = simulated.state.now()
        simulated.engine.assign()
        simulated.engine.acquire(job)

    def end(conclusion: str) -> None:
        simulated.engine.complete(job, conclusion)

    return Place(kit_of(simulated, key), simulated.installation_id, job.id, run.id, give=give, end=end)


async def test_a_runner_from_registration_to_removal(place: Place) -> None:
    held = await place.github.generate_jit(place.org, "ironcd-a", LABELS)
    assert held.jit
    assert held.jit not in repr(held)
    seen = await place.github.get_runner(place.org, held.github_id)
    assert seen is not None
    assert (seen.name, seen.online, seen.busy, set(seen.labels)) == ("ironcd-a", False, False, set(LABELS))
    assert await place.github.find_runner(place.org, "ironcd-a") == seen
    assert await place.github.find_runner(place.org, "ironcd-b") is None
    assert await place.github.list_runners(place.org) == [seen]
    assert await place.github.delete_runner(place.org, held.github_id) == "deleted"
    assert await place.github.delete_runner(place.org, held.github_id) == "absent"
    assert await place.github.get_runner(place.org, held.github_id) is None


async def test_row_15_a_job_is_run_again_once_its_run_has_ended(place: Place) -> None:
    where = (place.installation, "acme/app")
    held = await place.github.generate_jit(place.org, "ironcd-a", LABELS)
    place.give(held.github_id)
    assert await place.github.rerun_job(*where, place.job) is False
    place.end("failure")
    assert await place.github.run_jobs(*where, place.run, 2) == []
    assert await place.github.rerun_job(*where, place.job) is True
    (again,) = await place.github.run_jobs(*where, place.run, 2)
    assert (again.state, again.attempt, again.name) == ("queued", 2, "build")
    assert again.id != place.job
    with pytest.raises(Missing):
        await place.github.rerun_job(*where, 999)


async def test_row_20_the_latest_runner(key: Any) -> None:
    simulated = simulated_github(key)
    simulated.state.runner_release = ("2.400.0", 1_700_000_000.0)
    github = kit_of(simulated, key)
    assert await github.latest_runner(simulated.installation_id) == Release("2.400.0", 1_700_000_000.0)
    simulated.faults.responses.append(ResponseFault(path="/repos/actions/runner/releases/latest", status=404))
    assert await github.latest_runner(simulated.installation_id) is None
    await github.close()


async def test_the_runner_group(key: Any) -> None:
    simulated = simulated_github(key)
    github, group = kit_of(simulated, key), simulated.state.groups[1]
    assert await github.runner_group(simulated.installation_id, "acme") == RunnerGroup(
        "Default", "all", allows_public=True
    )
    app = simulated.state.find_repository("acme/app")
    assert app is not None
    group.visibility, group.allows_public_repositories, group.repository_ids = "selected", False, {app.id}
    assert await github.runner_group(simulated.installation_id, "acme") == RunnerGroup(
        "Default", "selected", allows_public=False, repositories=frozenset({"acme/app"})
    )
    await github.close()


async def test_a_repository_keeps_its_id_when_it_is_renamed(key: Any) -> None:
    simulated = simulated_github(key)
    github, app = kit_of(simulated, key), simulated.state.find_repository("acme/app")
    assert app is not None
    assert await github.repository_name(simulated.installation_id, app.id) == "acme/app"
    simulated.rename_repository(app, "renamed")
    assert await github.repository_name(simulated.installation_id, app.id) == "acme/renamed"
    assert await github.repository_name(simulated.installation_id, 1) is None
    await github.close()


async def test_row_15_running_again_takes_a_permission(key: Any) -> None:
    simulated = simulated_github(key)
    simulated.state.installations[simulated.installation_id].permissions["actions"] = "read"
    run = simulated.create_run("app", WORKFLOW)
    simulated.engine.cancel(run)
    github = kit_of(simulated, key)
    with pytest.raises(Refused, match="Resource not accessible"):
        await github.rerun_job(simulated.installation_id, "acme/app", run.jobs[0].id)
    await github.close()


async def test_repositories_have_runners_too(place: Place) -> None:
    held = await place.github.generate_jit(place.repo, "ironcd-a", LABELS)
    assert await place.github.get_runner(place.repo, held.github_id) is not None
    assert await place.github.delete_runner(place.repo, held.github_id) == "deleted"


async def test_a_name_is_taken_once(place: Place) -> None:
    await place.github.generate_jit(place.org, "ironcd-a", LABELS)
    with pytest.raises(NameTaken):
        await place.github.generate_jit(place.org, "ironcd-a", LABELS)


async def test_a_runner_with_a_job_cant_be_deleted(place: Place) -> None:
    held = await place.github.generate_jit(place.org, "ironcd-a", LABELS)
    place.give(held.github_id)
    assert await place.github.delete_runner(place.org, held.github_id) == "busy"
    job = await place.github.get_job(place.installation, "acme/app", place.job)
    assert job is not None
    assert (job.runner_id, job.runner_name) == (held.github_id, "ironcd-a")
    (same,) = await place.github.run_jobs(place.installation, "acme/app", place.run, 1)
    assert (same.id, same.runner_name) == (job.id, "ironcd-a")


async def test_jobs(place: Place) -> None:
    job = await place.github.get_job(place.installation, "acme/app", place.job)
    assert job is not None
    assert (job.state, job.labels, job.repo, job.run_id) == ("queued", ("ironcd",), "acme/app", place.run)
    assert await place.github.get_job(place.installation, "acme/app", place.job + 999) is None
    assert await place.github.run_jobs(place.installation, "acme/app", place.run + 999, 1) == []
    for run in (place.run, place.run + 999):
        assert await place.github.pending_environments(place.installation, "acme/app", run) == frozenset()
    queued = await place.github.queued_jobs(place.installation, "acme/app")
    assert [found.id for found in queued] == [place.job]


async def test_files_of_the_default_branch(place: Place) -> None:
    found = await place.github.read_file(place.installation, "acme/app", ".ironcd/policy.yml")
    assert found is not None
    assert found.text == POLICY
    assert found.url.startswith("http")
    blob = hashlib.sha1(b"blob %d\0" % len(POLICY) + POLICY, usedforsecurity=False).hexdigest()
    assert (found.branch, found.blob) == ("main", blob)
    assert await place.github.read_file(place.installation, "acme/app", ".ironcd/other.yml") is None


async def test_where_the_app_is_installed(place: Place) -> None:
    (installation,) = await place.github.installations()
    assert (installation.id, installation.account, installation.organization) == (place.installation, "acme", True)
    assert await place.github.installation_of("acme/app") == installation
    assert await place.github.installation_of("nobody/nothing") is None
    assert await place.github.repositories(place.installation) == ["acme/app"]


async def test_an_installation_that_isnt(place: Place) -> None:
    with pytest.raises(Missing):
        await place.github.repositories(place.installation + 1)
    with pytest.raises(Missing):
        await place.github.generate_jit(RunnerScope(place.installation + 1, org="acme"), "ironcd-a", LABELS)


# What only the real client has to stand up to


@pytest.fixture
async def simulated(key: Any) -> SimulatedGitHub:
    return simulated_github(key)


@pytest.fixture
async def kit(simulated: SimulatedGitHub, key: Any) -> AsyncIterator[KitGitHub]:
    made = kit_of(simulated, key)
    yield made
    await made.close()


def fault(simulated: SimulatedGitHub, path: str, **changes: Any) -> None:
    simulated.faults.responses.append(ResponseFault(path=path, **changes))


JIT = ".*/generate-jitconfig"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"status": 500}, Unavailable),
        ({"status": 502, "body": "<html>"}, Unavailable),
        ({"status": 403, "body": {"message": "Resource not accessible by integration"}}, Refused),
        ({"status": 422, "body": {"message": "Invalid runner group"}}, Refused),
        ({"status": 404, "body": {"message": "Not Found"}}, Missing),
        ({"status": 409, "body": {"message": "Already exists"}}, NameTaken),
        ({"status": 422, "body": {"message": "Runner group has reached the max limit of 10000 runners"}}, GroupFull),
        ({"status": 429, "headers": {"retry-after": "30"}}, RateLimited),
        ({"status": 403, "body": {"message": "You have exceeded a secondary rate limit"}}, RateLimited),
        ({"status": 403, "headers": {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "99999999999"}}, RateLimited),
    ],
)
async def test_failures_are_sorted_by_what_to_do(
    changes: dict[str, Any], kind: type[Exception], simulated: SimulatedGitHub, kit: KitGitHub
) -> None:
    fault(simulated, JIT, **changes)
    with pytest.raises(kind):
        await kit.generate_jit(RunnerScope(simulated.installation_id, org="acme"), "ironcd-a", LABELS)


async def test_the_wait_is_the_one_that_github_asks_for(simulated: SimulatedGitHub, kit: KitGitHub) -> None:
    fault(simulated, JIT, status=429, headers={"retry-after": "30"})
    with pytest.raises(RateLimited) as limited:
        await kit.generate_jit(RunnerScope(simulated.installation_id, org="acme"), "ironcd-a", LABELS)
    assert limited.value.retry_after == 30


async def test_registration_is_sent_once(simulated: SimulatedGitHub, kit: KitGitHub) -> None:
    scope = RunnerScope(simulated.installation_id, org="acme")
    fault(simulated, JIT, status=502, after=True, times=1)
    with pytest.raises(Unavailable):
        await kit.generate_jit(scope, "ironcd-a", LABELS)
    assert await kit.find_runner(scope, "ironcd-a") is not None
    posts = [n for (method, route, _), n in kit.gauge.calls.items() if method == "POST" and "jitconfig" in route]
    assert sum(posts) == 1


async def test_many_ask_for_one_token(simulated: SimulatedGitHub, kit: KitGitHub) -> None:
    installation = simulated.installation_id
    await asyncio.gather(*(kit.repositories(installation) for _ in range(20)))
    assert kit.gauge.calls["POST", "/app/installations/{id}/access_tokens", "201"] == 1


async def test_a_revoked_token_is_replaced(simulated: SimulatedGitHub, kit: KitGitHub) -> None:
    installation = simulated.installation_id
    await kit.repositories(installation)
    fault(simulated, "/installation/repositories", status=401, times=1)
    assert await kit.repositories(installation) == ["acme/app"]
    assert kit.gauge.calls["POST", "/app/installations/{id}/access_tokens", "201"] == 2


async def test_a_key_that_isnt_the_apps(simulated: SimulatedGitHub) -> None:
    stranger = kit_of(simulated, new_key())
    with pytest.raises(Refused):
        await stranger.installations()
    await stranger.close()


async def test_no_server(key: Any) -> None:
    github = KitGitHub(1, pem_of(key), api_url="http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        await github.installations()
    await github.close()


async def test_statuses_and_limits(simulated: SimulatedGitHub, kit: KitGitHub) -> None:
    sha = simulated.repository("acme/app").head_sha
    await kit.set_commit_status(
        simulated.installation_id, "acme/app", sha, state="failure", context="ironcd/policy", description="x" * 200
    )
    (status,) = simulated.repository("acme/app").statuses[sha]
    assert (status.state, status.context, status.description) == ("failure", "ironcd/policy", "x" * 140)
    limit = kit.gauge.limits[simulated.installation_id, "core"]
    assert 0 < limit.remaining < limit.limit
    assert kit.gauge.limits[0, "core"].remaining < kit.gauge.limits[0, "core"].limit
