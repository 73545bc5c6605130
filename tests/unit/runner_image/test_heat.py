"""What a machine that waits runs, and what it says of it."""

from __future__ import annotations

import subprocess

from runner_image.guest import heat


def run_with(monkeypatch, statuses: dict[str, object], ticks: list[float]) -> tuple[list[tuple[str, str]], list[str]]:
    """Programs that were run, with their users, and what is told to have failed.  ``ticks``: what the clock tells, one by one."""
    ran: list[tuple[str, str]] = []

    def run(argv, *, user, **_rest):
        ran.append((argv[0].rsplit("/", 1)[-1], user))
        status = statuses.get(ran[-1][0], 0)
        if isinstance(status, Exception):
            raise status
        return subprocess.CompletedProcess(argv, status)

    monkeypatch.setattr(heat.subprocess, "run", run)
    monkeypatch.setattr(heat.time, "monotonic", lambda: ticks.pop(0) if len(ticks) > 1 else ticks[0])
    return ran, heat.heat()


def test_cloud_init_and_the_runner_are_run_as_for_a_job(monkeypatch) -> None:
    ran, failed = run_with(monkeypatch, {}, [0.0])
    assert ran[:2] == [("unshare", "root"), ("Runner.Listener", "runner")]
    assert failed == []


def test_what_fails_is_named_and_the_rest_is_run(monkeypatch) -> None:
    trouble: dict[str, object] = {"unshare": 1, "Runner.Listener": subprocess.TimeoutExpired("warmup", 1.0), "nc": 1}
    ran, failed = run_with(monkeypatch, trouble, [0.0])
    assert failed == ["cloud-init", "the runner"]
    assert len(ran) == 5


def test_no_more_is_begun_when_its_time_is_up(monkeypatch) -> None:
    ran, failed = run_with(monkeypatch, {}, [0.0, 1.0, heat.WITHIN_S + 1])
    assert ran == [("unshare", "root")]
    assert failed == ["the runner"]
