"""The main job, end to end: a real virtual machine, real Redis, libvirt, nftables and TLS; GitHub and the outside simulated."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys

import httpx
import pytest

from orchestrator.surface.demo.report import PROOF_PARTS
from orchestrator.surface.timeline import MILESTONES

pytestmark = [pytest.mark.e2e, pytest.mark.real]

TOKENS = re.compile(
    r"gh[opsur]_[A-Za-z0-9_.\-]{16,}"
    r"|eyJ[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def test_the_job_succeeded_and_everything_holds(finished):
    (job,) = finished.report.jobs
    failed = [f"{check.name}: {check.seen}" for check in (*job.checks, *finished.report.checks) if not check.ok]
    assert failed == []
    assert job.conclusion == "success"
    assert finished.report.ok


def test_everything_is_proved_gone(finished):
    (job,) = finished.report.jobs
    assert dict.fromkeys(PROOF_PARTS, True) == dict(job.proof)


def test_every_phase_was_passed_in_its_order(finished):
    """Those that can't be seen in another order without something being wrong."""
    (job,) = finished.report.jobs
    passed = [span.phase for span in job.timeline]
    titles = dict(MILESTONES)
    must = [
        "WANTED",
        "Registered",
        "cloned",
        "chain_installed",
        "gate_opened",
        "jit_taken",
        "seed_gone",
        "runner_started",
    ]
    must += ["runner_listening", "policy_bound", "steps_released", "end_begun", "domain_gone", "all_gone"]
    assert [phase for phase in passed if phase in {titles[name] for name in must}] == [titles[name] for name in must]


def test_its_machine_was_cloned(finished):
    (job,) = finished.report.jobs
    (runner,) = finished.lab.stack.api(f"jobs/{job.id}")["made_for_it"]
    assert (runner["start"], runner["cold_because"]) == ("clone", "")


def test_the_first_attempt_served_it(finished):
    (job,) = finished.report.jobs
    story = finished.lab.stack.api(f"jobs/{job.id}")
    assert len(story["made_for_it"]) == 1, [runner["reason"] for runner in story["made_for_it"]]


def test_a_jit_configuration_was_seen_and_is_nowhere(finished):
    assert finished.seen.jits, "the watcher saw no JIT configuration, so looking for one proves nothing"
    for jit in finished.seen.jits:
        assert {".runner", ".credentials", ".credentials_rsaparams"} <= set(json.loads(base64.b64decode(jit)))


def test_no_log_has_a_secret(finished):
    assert {"control.log", "worker.log", "agent.log", "gateway.log", "redis.log"} <= set(finished.seen.logs)
    assert _places(finished.secrets, finished.seen.logs) == []
    assert [(name, m[0][:12]) for name, text in finished.seen.logs.items() for m in TOKENS.finditer(text)] == []


def test_no_process_had_a_secret_among_its_arguments(finished):
    arguments = {str(number): text for number, text in finished.seen.arguments.items()}
    assert any("qemu-system" in text and "ironcd-" in text for text in arguments.values()), "the VM's QEMU was not seen"
    assert _places(finished.secrets, arguments) == []


def test_no_file_that_is_left_has_a_secret(finished):
    """Redis' append-only file, the ledger on the host and in the control plane, records, and the settings handed over."""
    files = {name: content.decode("latin-1") for name, content in finished.seen.files.items()}
    assert any(name.startswith("redis/") and ".aof" in name for name in files)
    assert any(name.startswith("state/ledger/") for name in files)
    assert any(name.startswith("control/") for name in files)
    assert _places(finished.secrets, files) == []


def _places(secrets: dict[str, str], texts: dict[str, str]) -> list[str]:
    return [f"{what} in {name}" for what, secret in secrets.items() for name, text in texts.items() if secret in text]


def test_the_ledger_of_the_host_and_of_the_control_plane_agree(finished):
    (job,) = finished.report.jobs
    shipped = finished.lab.stack.api("egress", job=job.id, limit=10_000)["events"]
    written = [
        json.loads(line)
        for name, content in finished.seen.files.items()
        if name.startswith("state/ledger/")
        for line in content.splitlines()
        if line.startswith(b"{") and b'"event"' in line
    ]
    mine = [event for event in written if event.get("who", {}).get("job_id") == job.id]
    assert sorted(event["seq"] for event in shipped) == sorted(event["seq"] for event in mine)


def test_metrics_and_health_are_served(finished):
    url = f"http://{finished.lab.settings.control.listen}"
    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert "ironcd_store_up 1.0" in metrics
    assert 'ironcd_deliveries_total{result="accepted"}' in metrics


def test_a_stranger_is_told_nothing(finished):
    url = f"http://{finished.lab.settings.control.listen}"
    for path in ("/api/v1/jobs", "/api/v1/egress", "/host/v1/desired"):
        assert httpx.get(url + path, trust_env=False).status_code == 401
    unsigned = httpx.post(f"{url}/webhook", content=b"{}", headers={"X-GitHub-Event": "ping"}, trust_env=False)
    assert unsigned.status_code == 401


@pytest.mark.parametrize(
    "argv",
    [("jobs", "list"), ("jobs", "show", "JOB"), ("runners", "list", "--gone"), ("hosts", "list"), ("audit", "egress")],
)
def test_the_command_shows_it(finished, argv):
    (job,) = finished.report.jobs
    words = [str(job.id) if word == "JOB" else word for word in argv]
    command = [sys.executable, "-m", "orchestrator.surface", "--config", str(finished.lab.config_file), *words]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    asked = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=60).stdout
    expected = {"hosts": finished.lab.prefix, "runners": job.runner, "audit": "evil.example"}.get(argv[0], str(job.id))
    assert expected in shown
    assert expected in asked
    assert [json.loads(line) for line in asked.splitlines()] if argv[0] == "audit" else json.loads(asked)


def test_blocked_attempts_can_be_asked_for(finished):
    command = [sys.executable, "-m", "orchestrator.surface", "--config", str(finished.lab.config_file)]
    command += ["audit", "egress", "--verdict", "blocked", "--host", "evil.example", "--since", "1h", "--json"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert events
    assert {(event["host"], event["verdict"]) for event in events} == {("evil.example", "blocked")}
