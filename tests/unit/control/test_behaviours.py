"""What goes wrong with jobs, and what is done about it.  Numbers are rows of the failure table in the docs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.control.github import GroupFull, Missing, RateLimited, Refused, RunnerScope, Unavailable
from orchestrator.control.policy_archive import PolicyArchive
from orchestrator.control.views import host_view
from orchestrator.core.inbox import InstallationNews
from orchestrator.core.machine import MachineClass
from orchestrator.core.wire import Desired, Failure, GuestClaim

from .stage import INSTALLATION, ORG, REPO, Host, Stage, runner_name


async def ready(stage: Stage, *jobs: int) -> list[str]:
    """Jobs delivered, and their runners listening; the ULIDs of these, by the job that they are meant for."""
    await stage.hosts_move()
    for number in jobs:
        await stage.deliver(stage.job(number))
    for _ in range(3):
        await stage.look()
        await stage.hosts_move()
    await stage.look()
    runners = {record.life.meant_for: record for record in await stage.runners()}
    assert {record.life.phase for record in runners.values()} == {"READY"}
    return [runners[number].id for number in jobs]


async def finish(stage: Stage, *jobs: int) -> None:
    await stage.run(seconds=2.0)
    for number in jobs:
        assert (await stage.job_record(number)).job.state == "completed"
    assert all(len(had) == 1 for had in stage.started.values())
    assert await stage.leftovers() == {}


async def reason(stage: Stage, job_id: int) -> str:
    return (await stage.job_record(job_id)).job.reason


def named(stage: Stage) -> set[str]:
    return {runner.name for runner in stage.github.runners.values()}


# Deliveries


async def test_doubled_deliveries_serve_once(stage: Stage) -> None:  # 3
    await stage.hosts_move()
    job = stage.job(1)
    for guid in ("a", "b", "c"):
        await stage.deliver(job, guid=guid)
    await stage.look()
    assert len(await stage.runners()) == 1
    await finish(stage, 1)


async def test_completed_before_queued(stage: Stage) -> None:  # 4
    await stage.hosts_move()
    queued = stage.job(1)
    await stage.deliver(stage.github.end(1, "cancelled"))
    await stage.look()
    await stage.deliver(queued)
    await stage.look()
    assert await stage.runners() == []
    record = await stage.job_record(1)
    assert (record.job.state, record.job.conclusion, record.runners) == ("completed", "cancelled", ())


async def test_in_progress_before_queued(stage: Stage) -> None:  # 4
    await stage.hosts_move()
    queued = stage.job(1)
    elsewhere = msgspec.structs.replace(queued, state="in_progress", runner_name="somebody's", runner_id=99)
    await stage.deliver(elsewhere)
    await stage.deliver(queued)
    await stage.look()
    assert await stage.runners() == []
    assert (await stage.job_record(1)).job.served == "elsewhere"


async def test_a_foreign_installation(stage: Stage) -> None:  # 5
    await stage.hosts_move()
    foreign = msgspec.structs.replace(stage.job(1), installation=666, repo="evil/repo", org="evil")
    stage.github.jobs.clear()
    await stage.deliver(foreign)
    await stage.look()
    assert (await stage.job_record(1)).job.served == "ignored"
    assert await stage.runners() == []
    assert await stage.store.lengths() == {"inbox": 0, "dead": 1}
    assert await stage.redis.exists(f"{stage.store.names.foreign}666")


async def test_a_payload_without_installation_is_looked_up(stage: Stage) -> None:
    await stage.hosts_move()
    await stage.deliver(msgspec.structs.replace(stage.job(1), installation=0))
    await finish(stage, 1)
    assert (await stage.job_record(1)).job.installation == INSTALLATION


async def test_a_new_installation_is_known_at_once(stage: Stage) -> None:
    app = stage.github.apps.pop(INSTALLATION)
    await stage.hosts_move()
    await stage.look()
    stage.github.apps[INSTALLATION] = app
    await stage.deliver_installation(InstallationNews(INSTALLATION, "created", ORG))
    await stage.deliver(stage.job(1))
    await finish(stage, 1)


async def test_deliveries_wait_while_github_is_away(stage: Stage) -> None:  # 11
    await stage.hosts_move()
    stage.github.trouble = _raise(lambda: Unavailable("503"))
    await stage.deliver(stage.job(1))
    await stage.look()
    assert (await stage.store.lengths())["inbox"] == 1
    stage.github.trouble = lambda *_: None
    stage.now += 30
    await finish(stage, 1)


def _raise(make, *names: str):  # type: ignore[no-untyped-def]
    def trouble(call: str, when: str) -> None:
        if when == "before" and (not names or call in names):
            raise make()

    return trouble


# Who is served


async def test_jobs_that_arent_ours_are_ignored(stage: Stage) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1, labels=("ubuntu-latest",)))
    await stage.deliver(stage.job(2, labels=("ironcd-hugge",)))
    await stage.deliver(stage.job(3, labels=("ironcd", "windows")))
    await stage.look()
    assert await stage.runners() == []
    for number, why in ((1, "no label of ours"), (2, "no class is called 'ironcd-hugge'"), (3, "windows")):
        record = await stage.job_record(number)
        assert record.job.served == "ignored"
        assert why in record.job.reason


async def test_sizes(stage: Stage) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1, labels=("self-hosted", "ironcd-4cpu-16gb")))
    await stage.look()
    (runner,) = await stage.runners()
    assert (runner.life.machine.vcpus, runner.life.machine.memory_mib) == (4, 16384)
    assert set(runner.life.labels) == {"self-hosted", "linux", "x64", "ironcd-4cpu-16gb"}
    await finish(stage, 1)


async def test_approval_gates_boot_nothing(stage: Stage) -> None:  # 8
    await stage.hosts_move()
    job = stage.job(1)
    stage.github.jobs[1] = waiting = msgspec.structs.replace(job, state="waiting")
    await stage.deliver(waiting, "queued")
    await stage.deliver(waiting)
    await stage.look()
    assert await stage.runners() == []
    stage.github.jobs[1] = job
    await stage.deliver(job)
    await finish(stage, 1)


async def test_a_persons_account_has_runners_per_repository(stage: Stage) -> None:
    stage.github.apps[INSTALLATION] = msgspec.structs.replace(stage.github.apps[INSTALLATION], organization=False)
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    (runner,) = await stage.runners()
    assert (runner.life.org, runner.life.repo) == ("", REPO)
    assert {account for account, _ in stage.github.runners} == {REPO}
    await finish(stage, 1)


# Policies


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (None, "no .ironcd/policy.yml"),
        (b"mode: enforce\nalow: []\n", ".ironcd/policy.yml:2:1"),
        (b"mode: [", ".ironcd/policy.yml:1"),
        (b"mode: enforce\nallow:\n  - host: '*'\n", ".ironcd/policy.yml:3"),
    ],
)
async def test_no_policy_no_runner(policy: bytes | None, said: str, stage: Stage) -> None:
    if policy is None:
        del stage.github.files[REPO, ".ironcd/policy.yml"]
    else:
        stage.github.files[REPO, ".ironcd/policy.yml"] = policy
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    assert await stage.runners() == []
    record = await stage.job_record(1)
    assert record.job.served == "refused"
    assert said in record.job.reason
    ((repo, sha, state, description),) = stage.github.statuses
    assert (repo, sha, state) == (REPO, record.job.head_sha, "failure")
    assert said in description
    assert policy is not None or description.endswith("commit one that says `mode: warn` to start")
    ((_, _, name, conclusion, title, summary),) = stage.github.check_runs
    assert (name, conclusion, title) == ("ironcd/policy", "failure", description)
    assert record.job.reason in summary
    assert policy is not None or "allow:\n  - preset: node\n" in summary
    stage.github.files[REPO, ".ironcd/policy.yml"] = b"mode: enforce\nallow: []\n"
    stage.now += 61
    await finish(stage, 1)
    assert [state for *_, state, _ in stage.github.statuses] == ["failure", "success"]
    assert [conclusion for *_, conclusion, _, _ in stage.github.check_runs] == ["failure", "success"]


@pytest.mark.parametrize(
    ("optional", "served"), [("repository_file: optional\n", "yes"), ("repository_file: required\n", "refused")]
)
async def test_the_organisations_policy_in_place_of_none(
    optional: str, served: str, stage: Stage, tmp_path: Path
) -> None:
    del stage.github.files[REPO, ".ironcd/policy.yml"]
    file = tmp_path / "org.yml"
    file.write_text(f"mode: enforce\n{optional}allow:\n  - host: allowed.example\n")
    stage.settings = msgspec.structs.replace(stage.settings, organisation_policy_file=str(file))
    stage.reconciler = stage.fresh()
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    if served == "yes":
        await finish(stage, 1)
        policies = PolicyArchive(Path(stage.settings.state_dir) / "policies")
        (gone,) = [one for one in await stage.store.latest_gone_runners(9) if one.bound]
        policy = policies.get(gone.policy)
        assert policy is not None
        assert [rule.id for rule in policy.rules if rule.host == "allowed.example"] == ["org#1"]
        assert stage.github.statuses == []
        return
    await stage.look()
    record = await stage.job_record(1)
    assert (record.job.served, await stage.runners()) == ("refused", [])
    ((*_, state, description),) = stage.github.statuses
    assert state == "failure"
    assert description.endswith("commit one that says `mode: enforce` to start")
    assert len(description) <= 140


async def test_a_policy_broken_after_queueing_fails_the_job_in_its_hook(stage: Stage) -> None:
    (runner,) = await ready(stage, 1)
    stage.github.files[REPO, ".ironcd/policy.yml"] = b"mode: maybe\n"
    stage.now += 61
    await finish(stage, 1)
    record = await stage.job_record(1)
    assert record.job.conclusion == "failure"
    gone = await stage.store.runner(runner)
    assert gone is not None
    assert ".ironcd/policy.yml:1" in gone.refused
    assert not gone.bound
    assert gone.policy == stage.reconciler._means.book.baseline.digest
    assert stage.github.statuses[-1][2] == "failure"


async def test_the_policy_is_bound_on_the_guests_hint_when_github_agrees(stage: Stage) -> None:
    (runner,) = await ready(stage, 1)
    stage.github.give(1, runner_name(runner))
    stage.hosts["h1"].claims(runner, GuestClaim(repository=REPO, run_id=1001, run_attempt=1), stage.now)
    await stage.hosts_move()
    await stage.look()
    await stage.hosts_move()
    await stage.look()
    (record,) = await stage.runners()
    assert (record.life.phase, record.life.job_id, record.identity.repo) == ("RUNNING", 1, REPO)
    assert record.life.bound == record.policy != stage.reconciler._means.book.baseline.digest


@pytest.mark.parametrize(
    "claim",
    [
        GuestClaim(repository="acme/secret", run_id=1002, run_attempt=1),
        GuestClaim(repository="evil/app", run_id=1001, run_attempt=1),
        GuestClaim(repository="../../app", run_id=1001, run_attempt=1),
        GuestClaim(repository=REPO, run_id=-1),
    ],
)
async def test_a_guests_word_alone_widens_nothing(claim: GuestClaim, stage: Stage) -> None:
    stage.github.files["acme/secret", ".ironcd/policy.yml"] = b"mode: warn\nallow: []\n"
    (runner,) = await ready(stage, 1)
    secret = msgspec.structs.replace(stage.job(2, repo="acme/secret"), state="in_progress", runner_name="another")
    stage.github.jobs[2] = secret
    stage.hosts["h1"].claims(runner, claim, stage.now)
    for _ in range(4):
        await stage.hosts_move()
        await stage.look()
        stage.now += 3
    record = next(r for r in await stage.runners() if r.id == runner)
    assert (record.life.phase, record.bound) == ("READY", False)
    assert record.policy == stage.reconciler._means.book.baseline.digest
    if claim.repository != "acme/secret":
        assert "run_jobs" not in stage.github.calls


# Who gets which job


async def test_a_stolen_job_swaps_the_debts(stage: Stage) -> None:  # 6
    first, second = await ready(stage, 1, 2)
    await stage.deliver(stage.github.give(2, runner_name(first)))
    await stage.look()
    by_id = {record.id: record for record in await stage.runners()}
    assert (by_id[first].life.job_id, by_id[first].life.meant_for) == (2, 1)
    assert by_id[second].life.phase == "READY"
    assert len(by_id) == 2
    stage.started[2] = [first]
    await finish(stage, 1, 2)
    assert (await stage.job_record(2)).job.runner == first
    assert stage.started[1] == [second]


async def test_a_job_taken_by_a_runner_that_isnt_ours_frees_ours(stage: Stage) -> None:  # 6
    await ready(stage, 1)
    stage.github.jobs[1] = taken = msgspec.structs.replace(
        stage.github.jobs[1], state="in_progress", runner_name="other", runner_id=5
    )
    await stage.deliver(taken)
    await stage.run(rounds=6)
    assert await stage.runners() == []
    assert named(stage) == set()


async def test_cancelled_before_a_runner_started(stage: Stage) -> None:  # 7
    (runner,) = await ready(stage, 1)
    await stage.deliver(stage.github.end(1, "cancelled"))
    await finish(stage, 1)
    gone = await stage.store.runner(runner)
    assert gone is not None
    assert (gone.life.phase, gone.life.reason) == ("GONE", "surplus")


async def test_cancelled_while_another_waits_hands_the_runner_over(stage: Stage) -> None:  # 7
    (runner,) = await ready(stage, 1)
    await stage.deliver(stage.github.end(1, "cancelled"))
    await stage.deliver(stage.job(2))
    await stage.look()
    assert [record.id for record in await stage.runners()] == [runner]
    await finish(stage, 1, 2)
    assert stage.started == {2: [runner]}


async def test_the_fence_finds_a_job_that_got_in_first(stage: Stage) -> None:  # 7, 14
    (runner,) = await ready(stage, 1)
    job_2 = stage.job(2)
    stage.github.give(2, runner_name(runner))
    stage.started[2] = [runner]
    await stage.deliver(stage.github.end(1, "cancelled"))
    await stage.look()
    (record,) = await stage.runners()
    assert (record.life.phase, record.life.fencing) == ("READY", "")
    await stage.deliver(job_2)
    await stage.deliver(stage.github.jobs[2])
    await finish(stage, 1, 2)


async def test_an_idle_runner_is_fenced_and_given_back(stage: Stage) -> None:  # 14
    (runner,) = await ready(stage, 1)
    stage.github_assigns = list  # type: ignore[method-assign]
    await stage.run(seconds=60, rounds=8)
    gone = await stage.store.runner(runner)
    assert gone is not None
    assert (gone.life.phase, gone.life.reason) == ("GONE", "idle")


async def test_a_group_that_gives_no_jobs_is_noticed(stage: Stage) -> None:
    await ready(stage, 1)
    stage.github_assigns = list  # type: ignore[method-assign]
    await stage.run(seconds=60, rounds=60)
    record = await stage.job_record(1)
    assert "runner group" in record.permanent
    assert len(record.runners) == 4
    assert await stage.runners() == []


async def test_a_lost_completed_is_asked_for(stage: Stage) -> None:  # 17
    (runner,) = await ready(stage, 1)
    await stage.deliver(stage.github.give(1, runner_name(runner)))
    stage.github.end(1)
    await stage.run(seconds=30, rounds=8, deliver=False)
    assert (await stage.job_record(1)).job.conclusion == "success"
    assert await stage.leftovers() == {}


async def test_an_exited_runner_needs_no_completed(stage: Stage) -> None:  # 17
    (runner,) = await ready(stage, 1)
    await stage.deliver(stage.github.give(1, runner_name(runner)))
    await stage.look()
    stage.github.end(1, "failure")
    stage.hosts["h1"].exits(runner, 0, stage.now)
    await stage.run(seconds=5, rounds=6, deliver=False)
    gone = await stage.store.runner(runner)
    assert gone is not None
    assert gone.life.reason == "runner_exited"
    assert (await stage.job_record(1)).job.conclusion == "failure"


# Registration


async def test_a_lost_answer_costs_no_second_registration(stage: Stage) -> None:  # 9
    lost = iter([True])

    def trouble(call: str, when: str) -> None:
        if (call, when) == ("generate_jit", "after") and next(lost, False):
            raise Unavailable("the answer was lost")

    stage.github.trouble = trouble
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    assert len(stage.github.runners) == 1
    stage.now += 5
    await finish(stage, 1)
    assert stage.github.calls.count("generate_jit") == 3


@pytest.mark.parametrize("error", [Refused("403 Resource not accessible"), Missing("404 Not Found")])
async def test_a_registration_that_never_succeeds(error: Exception, stage: Stage) -> None:  # 9
    stage.github.trouble = _raise(lambda: error, "generate_jit")
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    for _ in range(5):
        await stage.look()
        stage.now += 100
    assert stage.github.calls.count("generate_jit") == 1
    assert await stage.runners() == []
    assert str(error) in await reason(stage, 1)


async def test_a_group_that_is_full_is_waited_for(stage: Stage) -> None:  # 9
    stage.github.trouble = _raise(lambda: GroupFull("422 max limit of 10000 runners"), "generate_jit")
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    assert "takes no more runners" in await reason(stage, 1)
    assert not (await stage.job_record(1)).permanent
    stage.github.trouble = lambda *_: None
    stage.now += 5
    await finish(stage, 1)


async def test_rate_limits_are_waited_out(stage: Stage) -> None:  # 10
    stage.github.trouble = _raise(lambda: RateLimited("403", 120.0), "generate_jit")
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    for _ in range(10):
        await stage.look()
        await stage.hosts_move()
        stage.now += 10
    assert stage.github.calls.count("generate_jit") == 1
    assert "rate limit" in await reason(stage, 1)
    stage.github.trouble = lambda *_: None
    stage.now += 60
    await finish(stage, 1)


async def test_the_jit_is_sealed_and_forgotten(stage: Stage) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.look()
    (runner,) = await stage.runners()
    everything = stage.redis.data.everything()
    await stage.hosts_move()
    jit = stage.hosts["h1"].jits[runner.id]
    assert jit.encode() not in everything
    await stage.look()
    await stage.look()
    assert await stage.store.sealed_jits([runner.id]) == {}


# Hosts


async def test_reasons_to_wait_can_be_read(stage: Stage) -> None:
    await stage.deliver(stage.job(1))
    await stage.look()
    assert await reason(stage, 1) == "no host has reported yet"
    host = stage.hosts["h1"]
    host.images = ()
    host.problems = (Failure("image-missing", "image 'default' isn't built"),)
    await stage.hosts_move()
    await stage.look()
    assert "has no image 'default'" in await reason(stage, 1)
    host.problems = (Failure("libvirt-away", "libvirtd doesn't answer"),)
    await stage.hosts_move()
    await stage.look()
    assert "host h1 reports libvirt-away: libvirtd doesn't answer" in await reason(stage, 1)
    host.problems = (Failure("wall-drifted", "another program changed the filter"),)
    await stage.hosts_move()
    await stage.look()
    assert "host h1 reports wall-drifted" in await reason(stage, 1)
    host.problems, host.images = (), Host().images
    stage.now += 20
    await stage.look()
    assert "is away" in await reason(stage, 1)
    await finish(stage, 1)


async def test_a_problem_that_is_over_is_shown_and_keeps_no_job_waiting(stage: Stage) -> None:
    stage.hosts["h1"].problems = (Failure("wall-drifted", "another program changed the filter", over=True),)
    await stage.deliver(stage.job(1))
    await stage.hosts_move()
    (view,) = [host_view("h1", seen, (), stage.now) for seen in (await stage.store.sightings()).values()]
    assert (view["state"], [problem["code"] for problem in view["problems"]]) == ("up", ["wall-drifted"])
    await finish(stage, 1)


async def test_a_full_host_makes_jobs_wait_their_turn(tmp_path) -> None:  # type: ignore[no-untyped-def]
    stage = Stage(tmp_path, hosts=[Host("h1", vcpus=4)])
    await ready(stage, 1, 2)
    await stage.deliver(stage.job(3))
    await stage.look()
    assert "host h1 is full: needs 2 vCPUs, has 0" in await reason(stage, 3)
    assert len([r for r in await stage.runners() if r.life.host]) == 2
    await finish(stage, 1, 2, 3)
    await stage.close()


async def test_a_class_too_large_for_any_host(stage: Stage) -> None:
    await stage.hosts_move()
    await stage.deliver(stage.job(1, labels=("ironcd-64cpu-4gb",)))
    await stage.look()
    assert "is too small: needs 64 vCPUs, has 8" in await reason(stage, 1)
    await stage.deliver(stage.github.end(1, "cancelled"))
    await finish(stage, 1)


async def test_a_vm_that_fails_is_replaced_on_another_host(tmp_path) -> None:  # type: ignore[no-untyped-def]
    bad, good = Host("a-bad", vcpus=2), Host("z-good", vcpus=8)  # 12
    bad.fails = lambda _runner: Failure("guest-silent", "the guest never spoke")
    stage = Stage(tmp_path, hosts=[bad, good])
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await finish(stage, 1)
    record = await stage.job_record(1)
    assert record.job.replacements == 1
    hosts = [(await stage.store.runner(runner)).life.host for runner in record.runners]  # type: ignore[union-attr]
    assert hosts == ["a-bad", "z-good"]
    assert any("guest-silent: the guest never spoke" in moment.detail for moment in record.job.story)
    await stage.close()


async def test_a_job_whose_vms_all_fail_is_given_up_with_the_reason(stage: Stage) -> None:  # 12
    stage.hosts["h1"].fails = lambda _runner: Failure("guest-silent", "the guest never spoke")
    await stage.hosts_move()
    await stage.deliver(stage.job(1))
    await stage.run(seconds=30)
    record = await stage.job_record(1)
    assert "4 runners failed; the last one: h1: guest-silent" in record.job.reason
    assert await stage.runners() == []
    assert named(stage) == set()
    assert (await stage.store.counters())["incidents{kind=job_given_up}"] == 1, "an alarm"


async def test_a_lost_host_is_an_infrastructure_loss(tmp_path) -> None:  # type: ignore[no-untyped-def]
    lost, other = Host("a", vcpus=2), Host("b", vcpus=8)  # 15
    stage = Stage(tmp_path, hosts=[lost, other])
    (runner,) = await ready(stage, 1)
    await stage.deliver(stage.github.give(1, runner_name(runner)))
    await stage.look()
    del stage.hosts["a"]
    await stage.run(seconds=30, rounds=8)
    (record,) = [r for r in await stage.runners() if r.id == runner]
    assert (record.life.phase, record.life.reason, record.life.vm) == ("DESTROYING", "host_lost", "asked")
    stage.github.end(1, "failure")
    stage.hosts["a"] = lost
    await stage.run(seconds=30, rounds=8)
    assert await stage.runners() == []
    assert (await stage.job_record(1)).job.conclusion == "failure"
    await stage.close()


async def test_no_runner_is_gone_without_proof(stage: Stage) -> None:
    (runner,) = await ready(stage, 1)
    await stage.deliver(stage.github.give(1, runner_name(runner)))
    await stage.look()
    stage.hosts["h1"].move = lambda *_: None  # type: ignore[method-assign]
    await stage.deliver(stage.github.end(1))
    for _ in range(50):
        await stage.look()
        stage.now += 2
    (record,) = await stage.runners()
    assert (record.life.phase, record.life.registration, record.life.vm) == ("DESTROYING", "gone", "asked")
    assert record.life.alarms >= 1


async def test_lifetime(tmp_path) -> None:  # type: ignore[no-untyped-def]
    stage = Stage(tmp_path)  # 19
    stage.settings.classes["ironcd"] = MachineClass("ironcd", lifetime_s=100)
    (runner,) = await ready(stage, 1)
    await stage.deliver(stage.github.give(1, runner_name(runner)))
    await stage.look()
    (record,) = await stage.runners()
    _, raw = await stage.store.desired("h1")
    assert f'"end_by":{record.life.deadline}'.encode() in (raw or b"")
    stage.now += 101
    await stage.hosts_move()
    await stage.look()
    (record,) = await stage.runners()
    assert (record.life.phase, record.life.reason) == ("DESTROYING", "lifetime")
    await stage.close()


# Redis emptied


async def test_an_emptied_redis_is_rebuilt(stage: Stage) -> None:  # 18
    running, idle = await ready(stage, 1, 2)
    await stage.deliver(stage.github.give(1, runner_name(running)))
    stage.started[1] = [running]
    stage.hosts["h1"].claims(running, GuestClaim(repository=REPO, run_id=1001, run_attempt=1), stage.now)
    for _ in range(3):
        await stage.look()
        await stage.hosts_move()
    bound = stage.hosts["h1"].seen[running].policy
    await stage.redis.flushall()
    stage.reconciler = stage.fresh()
    await stage.hosts_move()
    await stage.look()
    by_id = {record.id: record for record in await stage.runners()}
    assert set(by_id) == {running, idle}
    assert (by_id[running].life.phase, by_id[running].life.job_id) == ("RUNNING", 1)
    assert by_id[idle].life.phase == "READY"
    await stage.hosts_move()
    assert stage.hosts["h1"].seen[running].policy == bound
    assert stage.hosts["h1"].ended == set()
    await finish(stage, 1, 2)


async def test_while_github_is_away_an_emptied_redis_destroys_nothing(stage: Stage) -> None:  # 18
    await ready(stage, 1)
    await stage.redis.flushall()
    stage.reconciler = stage.fresh()
    stage.github.trouble = _raise(lambda: Unavailable("503"))
    for _ in range(5):
        await stage.hosts_move()
        await stage.look()
        stage.now += 5
    assert await stage.store.desired("h1") == (0, None)
    assert stage.hosts["h1"].ended == set()
    stage.github.trouble = lambda *_: None
    stage.now += 10
    await finish(stage, 1)


async def test_a_machine_that_nobody_knows_is_ended(stage: Stage) -> None:
    (runner,) = await ready(stage, 1)
    stranger = "01J0000000000000000000000A"
    host = stage.hosts["h1"]
    host.seen[stranger] = msgspec.structs.replace(host.seen[runner], id=stranger)
    await stage.store.put_sighting(await _sighting(stage))
    await stage.look()
    await stage.hosts_move()
    assert host.ended == {stranger}
    await finish(stage, 1)


async def _sighting(stage: Stage):  # type: ignore[no-untyped-def]
    from orchestrator.control.records import Sighting

    return Sighting(stage.now, stage.hosts["h1"].report(stage.now))


async def test_orphaned_registrations_are_removed_and_others_left(stage: Stage) -> None:  # 18
    await ready(stage, 1)
    scope, old = RunnerScope(INSTALLATION, org=ORG), "ironcd-01hf7yat000000000000000000"
    await stage.github.generate_jit(scope, old, ("ironcd", "ironcd-by-1"))
    kept = {"ironcd-01hf7yat000000000000000001": ("ironcd", "ironcd-by-2"), "somebody-elses": ("ironcd-by-1",)}
    kept["ironcd-01hf7yat000000000000000002"] = ("ironcd-by-1",)
    for name, labels in kept.items():
        await stage.github.generate_jit(scope, name, labels)
    busy = next(key for key, seen in stage.github.runners.items() if seen.name == "ironcd-01hf7yat000000000000000002")
    stage.github.runners[busy] = msgspec.structs.replace(stage.github.runners[busy], busy=True)
    stage.now += 599
    await stage.fresh().look()
    assert old in named(stage)
    stage.now += 2
    await stage.hosts_move()
    await stage.fresh().look()
    assert old not in named(stage)
    assert set(kept) <= named(stage)


async def test_keys_of_others_in_the_same_redis_stay(stage: Stage) -> None:
    theirs = {"theirs": b"1", "t": b"2", "t2:jobs": b"3", "rq:job:t:1": b"4", "ironcd-t:runners": b"5"}
    for key, value in theirs.items():
        await stage.redis.set(key, value)
    await stage.deliver(stage.job(1))
    await finish(stage, 1)
    for _ in range(3):
        stage.now += 86400 * 2
        await stage.fresh().look()
    assert {key: await stage.redis.get(key) for key in theirs} == theirs


async def test_hosts_are_told_of_every_class(stage: Stage) -> None:
    stage.settings.classes["ironcd-large"] = MachineClass("ironcd-large", vcpus=8)
    await stage.hosts_move()
    await stage.look()
    _, raw = await stage.store.desired("h1")
    assert raw is not None
    assert set(msgspec.json.decode(raw, type=Desired).classes) == set(stage.settings.classes.values())
