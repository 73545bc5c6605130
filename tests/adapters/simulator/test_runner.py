"""The runner against the simulator over HTTPS, as two processes: every way in which a job goes and ends."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import stat
import time
from pathlib import Path

import httpx
import pytest

from orchestrator.simulator.github import ResponseFault
from orchestrator.simulator.runner import write_runner
from orchestrator.system.process import CommandFailed, run

HOOK = """#!/bin/bash
echo "hook for $GITHUB_REPOSITORY $GITHUB_RUN_ID.$GITHUB_RUN_ATTEMPT $GITHUB_JOB on $RUNNER_NAME"
echo "$GITHUB_EVENT_NAME $GITHUB_ACTOR $GITHUB_WORKFLOW_REF"
test -s "$GITHUB_EVENT_PATH"
exit {status}
"""


def workflow(*steps: dict | str, **more) -> dict:
    written = [{"run": step} if isinstance(step, str) else step for step in steps]
    return {"jobs": {"build": {"runs-on": ["self-hosted", "ironcd"], "steps": written, **more}}}


def hook(folder: Path, status: int = 0) -> str:
    path = folder / f"hook-{status}.sh"
    path.write_text(HOOK.format(status=status))
    return str(path)


def wait_until(condition, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.02)


def steps_of(job: dict) -> dict[str, str]:
    return {step["name"]: step["conclusion"] for step in job["steps"]}


def test_a_job_from_registration_to_its_end(simulator, rest, start_runner, authority, tmp_path):
    run = simulator.create_run(
        "app",
        workflow(
            "echo hello; echo VALUE=one >> $GITHUB_ENV; echo /opt/extra >> $GITHUB_PATH",
            {"name": "Second", "id": "second", "run": "echo $VALUE ${PATH%%:*}; echo out=2 >> $GITHUB_OUTPUT"},
            {"run": "echo got ${{ steps.second.outputs.out }} $FROM_STEP", "env": {"FROM_STEP": "set"}},
            "echo '## Done' >> $GITHUB_STEP_SUMMARY; env | grep -c ACTIONS_RUNNER_INPUT || true; pwd",
        ),
        event="push",
    )
    job_id = run["jobs"][0]["id"]
    made = rest.register()
    started, completed = hook(tmp_path), hook(tmp_path)
    env = {"ACTIONS_RUNNER_HOOK_JOB_STARTED": started, "ACTIONS_RUNNER_HOOK_JOB_COMPLETED": completed}
    (tmp_path / "runner-0").mkdir()
    write_runner(tmp_path / "runner-0")
    (tmp_path / "runner-0/.setup_info").write_text(json.dumps([{"group": "IronCD", "detail": "sealed"}]))
    runner = start_runner(made["encoded_jit_config"], env=env)
    assert runner.ends() == 0
    for words in (
        "√ Connected to GitHub",
        "Current runner version: '2.336.0'",
        "Listening for Jobs",
        "Running job: build",
        "Job build completed with result: Succeeded",
    ):
        assert words in runner.output
    job = simulator.job(job_id)
    assert (job["status"], job["conclusion"]) == ("completed", "success")
    assert (job["runner_id"], job["runner_name"]) == (made["runner"]["id"], "runner-1")
    names = list(steps_of(job))
    assert (names[0], names[1], names[-2], names[-1]) == (
        "Set up job",
        "Set up runner",
        "Complete runner",
        "Complete job",
    )
    assert set(steps_of(job).values()) == {"success"}
    log = rest.ask("GET", f"/repos/acme/app/actions/jobs/{job_id}/logs")
    assert log.status_code == 302
    trusted = ssl.create_default_context(cafile=str(authority.ca_file))
    text = httpx.get(log.headers["location"], verify=trusted, trust_env=False).text
    for words in (
        "##[group]IronCD",
        "sealed",
        " hello\n",
        " one /opt/extra\n",
        " got 2 set\n",
        f"hook for acme/app {run['id']}.1 build on runner-1",
        "push octocat acme/app/.github/workflows/ci.yml@refs/heads/main",
        "/_work/app/app\n",
    ):
        assert words in text, text
    assert text == simulator.job_log(job_id)
    summaries = [bytes(data) for path, data in simulator.github.state.blobs.items() if path.endswith(".md")]
    assert summaries == [b"## Done\n"]
    assert simulator.runners() == []
    assert not {".runner", ".credentials", ".credentials_rsaparams"} & set(os.listdir(runner.root))


def test_webhooks_tell_of_the_job_in_order(simulator, rest, start_runner):
    simulator.webhook_url = "http://127.0.0.1:9/never"
    run = simulator.create_run("app", workflow("true"))
    made = rest.register()
    assert start_runner(made["encoded_jit_config"]).ends() == 0
    wait_until(lambda: len(simulator.deliveries()) == 3 and all(it["finished"] for it in simulator.deliveries()))
    got = [json.loads(base64.b64decode(it["request"]["body_base64"])) for it in simulator.deliveries()]
    assert [it["action"] for it in got] == ["queued", "in_progress", "completed"]
    assert {it["workflow_job"]["id"] for it in got} == {run["jobs"][0]["id"]}
    assert [it["workflow_job"]["runner_name"] for it in got] == [None, "runner-1", "runner-1"]
    assert [it["workflow_job"]["runner_id"] for it in got] == [None, made["runner"]["id"], made["runner"]["id"]]
    assert got[2]["workflow_job"]["conclusion"] == "success"
    assert got[2]["workflow_job"]["steps"][-1]["name"] == "Complete job"


def test_the_registration_is_fenced_while_its_runner_works(simulator, rest, start_runner, tmp_path):
    go = tmp_path / "go"
    run = simulator.create_run("app", workflow(f"while [ ! -e {go} ]; do sleep 0.05; done"))
    made = rest.register()
    runner = start_runner(made["encoded_jit_config"])
    runner.says("Running job")
    path = f"/orgs/acme/actions/runners/{made['runner']['id']}"
    shown = rest.ask("GET", path).json()
    assert (shown["status"], shown["busy"], shown["version"], shown["os"]) == ("online", True, "2.336.0", "linux")
    assert rest.ask("DELETE", path).status_code == 422
    wait_until(lambda: simulator.job(run["jobs"][0]["id"])["status"] == "in_progress")
    go.touch()
    assert runner.ends() == 0
    assert rest.ask("DELETE", path).status_code == 404


def test_steps_that_fail_and_what_comes_after(simulator, rest, start_runner):
    run = simulator.create_run(
        "app",
        workflow(
            {"name": "tolerated", "run": "exit 3", "continue-on-error": True},
            {"name": "after tolerated", "run": "true"},
            {"name": "fails", "run": "false\necho not reached"},
            {"name": "skipped", "run": "true"},
            {"name": "always", "run": "true", "if": "always()"},
            {"name": "on failure", "run": "true", "if": "${{ failure() }}"},
            {"name": "on cancel", "run": "true", "if": "cancelled()"},
        ),
    )
    runner = start_runner(rest.register()["encoded_jit_config"])
    assert runner.ends() == 0
    assert "completed with result: Failed" in runner.output
    job = simulator.job(run["jobs"][0]["id"])
    assert job["conclusion"] == "failure"
    assert steps_of(job) == {
        "Set up job": "success",
        "tolerated": "failure",
        "after tolerated": "success",
        "fails": "failure",
        "skipped": "skipped",
        "always": "success",
        "on failure": "success",
        "on cancel": "skipped",
        "Complete job": "success",
    }
    log = simulator.job_log(job["id"])
    assert "Process completed with exit code 3." in log
    assert " not reached\n" not in log.replace("echo not reached", "")


def test_a_job_started_hook_that_fails_fails_the_job_before_any_step(simulator, rest, start_runner, tmp_path):
    run = simulator.create_run("app", workflow({"name": "never", "run": f"touch {tmp_path}/ran"}))
    env = {"ACTIONS_RUNNER_HOOK_JOB_STARTED": hook(tmp_path, 1)}
    assert start_runner(rest.register()["encoded_jit_config"], env=env).ends() == 0
    job = simulator.job(run["jobs"][0]["id"])
    assert job["conclusion"] == "failure"
    assert (steps_of(job)["Set up runner"], steps_of(job)["never"]) == ("failure", "skipped")
    assert not (tmp_path / "ran").exists()


def test_secrets_are_in_the_environment_asked_for_and_in_no_log(simulator, rest, start_runner, tmp_path):
    seen = tmp_path / "seen"
    steps = [
        {
            "name": "Use ${{ secrets.KEY }}",
            "run": f"echo $KEY | tee {seen}; echo -n $KEY | base64",
            "env": {"KEY": "${{ secrets.KEY }}"},
        },
        "echo ::add-mask::made-up-later\necho made-up-later",
    ]
    run = simulator.create_run("app", {**workflow(*steps), "secrets": {"KEY": "correct horse battery"}})
    runner = start_runner(rest.register()["encoded_jit_config"])
    assert runner.ends() == 0
    assert seen.read_text() == "correct horse battery\n"
    job = simulator.job(run["jobs"][0]["id"])
    for text in (simulator.job_log(job["id"]), json.dumps(job), runner.output):
        assert "correct horse battery" not in text
        assert "Y29ycmVjdCBob3JzZSBiYXR0ZXJ5" not in text
        assert "made-up-later" not in text.replace("Run echo ::add-mask::made-up-later", "")


def test_cancelled_by_a_person(simulator, rest, start_runner):
    steps = [{"name": "long", "run": "sleep 60"}, {"name": "cleanup", "run": "true", "if": "always()"}]
    run = simulator.create_run("app", workflow(*steps))
    runner = start_runner(rest.register()["encoded_jit_config"])
    runner.says("Running job")
    job_id = run["jobs"][0]["id"]
    wait_until(lambda: any(step["name"] == "long" for step in simulator.job(job_id)["steps"]))
    assert rest.ask("POST", f"/repos/acme/app/actions/runs/{run['id']}/cancel").status_code == 202
    assert runner.ends() == 0
    job = simulator.job(job_id)
    assert job["conclusion"] == "cancelled"
    assert (steps_of(job)["long"], steps_of(job)["cleanup"]) == ("cancelled", "success")
    assert "completed with result: Canceled" in runner.output


def test_sigterm_cancels_the_job_and_keeps_the_registrations_files(simulator, rest, start_runner):
    run = simulator.create_run("app", workflow("sleep 60"))
    runner = start_runner(rest.register()["encoded_jit_config"])
    runner.says("Running job")
    wait_until(lambda: len(simulator.job(run["jobs"][0]["id"])["steps"]) > 1)
    runner.process.send_signal(signal.SIGTERM)
    assert runner.ends() == 0
    assert simulator.job(run["jobs"][0]["id"])["conclusion"] == "cancelled"
    assert (runner.root / ".runner").exists()


def test_sigterm_while_idle_ends_the_session(simulator, rest, start_runner):
    runner = start_runner(rest.register()["encoded_jit_config"])
    runner.says("Listening for Jobs")
    wait_until(lambda: simulator.runners()[0]["status"] == "online")
    runner.process.send_signal(signal.SIGTERM)
    assert runner.ends() == 0
    assert simulator.runners()[0]["status"] == "offline"


def test_a_runner_that_is_deleted_while_idle_ends_with_0_and_says_so(simulator, rest, start_runner):
    made = rest.register()
    runner = start_runner(made["encoded_jit_config"])
    runner.says("Listening for Jobs")
    wait_until(lambda: simulator.runners()[0]["status"] == "online")
    assert rest.ask("DELETE", f"/orgs/acme/actions/runners/{made['runner']['id']}").status_code == 204
    assert runner.ends() == 0
    assert "The runner no longer exists on the server" in runner.output


def test_a_bad_blob_and_a_registration_that_is_gone_end_with_1(simulator, rest, start_runner):
    runner = start_runner("bm90IGpzb24=")
    assert runner.ends() == 1
    made = rest.register()
    rest.ask("DELETE", f"/orgs/acme/actions/runners/{made['runner']['id']}")
    runner = start_runner(made["encoded_jit_config"])
    assert runner.ends() == 1
    assert "was not found" in runner.output
    assert made["encoded_jit_config"] not in runner.output


def test_the_same_blob_twice_is_a_session_conflict(simulator, rest, start_runner):
    made = rest.register()
    start_runner(made["encoded_jit_config"]).says("Listening for Jobs")
    patch = "listener.CONFLICT_S = 0.3; listener.CONFLICT_PAUSE_S = 0.1"
    second = start_runner(made["encoded_jit_config"], patch=patch)
    assert second.ends() == 5
    assert "A session for this runner already exists." in second.output


def test_a_version_that_is_too_old_ends_with_7_where_that_is_asked_for(simulator, rest, start_runner):
    patch = "import simrunner.services as s; s.VERSION = '2.300.0'"
    made = rest.register()
    assert start_runner(made["encoded_jit_config"], patch=patch).ends() == 1
    env = {"ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE": "1"}
    assert start_runner(made["encoded_jit_config"], env=env, patch=patch).ends() == 7


def test_the_lock_is_renewed_while_the_job_runs(simulator, rest, start_runner, tmp_path):
    enough = tmp_path / "enough"
    run = simulator.create_run("app", workflow(f"until [ -e {enough} ]; do sleep 0.1; done"))
    runner = start_runner(rest.register()["encoded_jit_config"], patch="worker.RENEW_S = 0.2")
    runner.says("Running job")
    job = simulator.github.state.jobs[run["jobs"][0]["id"]]
    for _ in range(2):
        until = job.locked_until
        wait_until(lambda until=until: job.locked_until > until)
    enough.touch()
    assert runner.ends() == 0
    assert simulator.job(job.id)["conclusion"] == "success"


def test_a_runner_that_dies_loses_its_job_when_the_lock_runs_out(simulator, rest, start_runner):
    simulator.github.engine.lock_s = 1.0
    run = simulator.create_run("app", workflow("sleep 30"))
    runner = start_runner(rest.register()["encoded_jit_config"], patch="worker.RENEW_S = 60")
    runner.says("Running job")
    job = simulator.wait_for_job(run["jobs"][0]["id"], timeout_s=120)
    assert job["conclusion"] == "failure"
    runner.process.send_signal(signal.SIGTERM)
    runner.ends()


def test_a_job_that_went_elsewhere_is_skipped_and_the_next_one_taken(simulator, rest, start_runner):
    fault = ResponseFault(
        host="run-actions-1-azure-eastus.actions.githubusercontent.com", path="/acquirejob", status=404, times=1
    )
    simulator.call(lambda: simulator.github.faults.responses.append(fault))
    simulator.github.engine.acquire_s = 1.5
    run = simulator.create_run("app", workflow("true"))
    runner = start_runner(rest.register()["encoded_jit_config"])
    assert runner.ends() == 0
    assert "Skipping message Job" in runner.output
    assert simulator.job(run["jobs"][0]["id"])["conclusion"] == "success"


def test_the_runners_own_environment_files_reach_the_steps(simulator, rest, start_runner, tmp_path):
    write_runner(tmp_path / "runner-0")
    (tmp_path / "runner-0/.env").write_text("LANG=C.UTF-8\nFROM_ENV_FILE=a=b\n")
    (tmp_path / "runner-0/.path").write_text(f"/opt/from-path-file:{os.environ['PATH']}\n")
    run = simulator.create_run("app", workflow("echo $FROM_ENV_FILE ${PATH%%:*}"))
    assert start_runner(rest.register()["encoded_jit_config"]).ends() == 0
    assert " a=b /opt/from-path-file\n" in simulator.job_log(run["jobs"][0]["id"])


def test_a_step_longer_than_its_limit_fails(simulator, rest, start_runner):
    run = simulator.create_run("app", workflow("sleep 60"))
    patch = "worker.StepRunner.program, real = lambda self, *a, **k: real(self, *a, **{**k, 'limit_s': 0.3}), worker.StepRunner.program"
    assert start_runner(rest.register()["encoded_jit_config"], patch=patch).ends() == 0
    assert simulator.job(run["jobs"][0]["id"])["conclusion"] == "failure"


def test_a_server_whose_certificate_isnt_trusted_gets_no_session(simulator, rest, start_runner):
    patch = "listener.CONFLICT_PAUSE_S = 0.1"
    runner = start_runner(rest.register()["encoded_jit_config"], env={"SSL_CERT_FILE": "/dev/null"}, patch=patch)
    runner.says("CERTIFICATE_VERIFY_FAILED")
    assert simulator.runners()[0]["status"] == "offline"


def test_warmup_version_and_a_wrong_command(tmp_path):
    write_runner(tmp_path)
    listener = str(tmp_path / "bin/Runner.Listener")
    assert run([listener, "--version"]) == "2.336.0\n"
    assert not (tmp_path / "bin/simrunner/__pycache__").exists()
    run([listener, "warmup"])
    assert any((tmp_path / "bin/simrunner/__pycache__").iterdir())
    assert Path(listener).stat().st_mode & stat.S_IXUSR
    with pytest.raises(CommandFailed) as caught:
        run([listener, "configure"])
    assert caught.value.status == 1
