"""How a run is shared among its tiers, what their plans hold, and how the reports become one.  Nothing is run here but plans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.simulator.github.catalogue import CATALOGUE
from orchestrator.surface.timeline import MILESTONES
from orchestrator.surface.up import PROCESSES
from tests.chaos import vm_plan
from tests.chaos.__main__ import main
from tests.chaos.tiers import BadShares, as_json, plans, shares, together
from tests.chaos.vm_city import Seen
from tests.chaos.vm_oracle import End, kind_of
from tests.chaos.vm_plan import NO_RERUN, RERUN, Kill, VmJob, VmPlan, plan
from tests.chaos.vm_play import Play

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("jobs", "named", "wanted"),
    [
        (None, {}, {"crowd": 173, "real": 24, "vms": 3}),
        (200, {}, {"crowd": 173, "real": 24, "vms": 3}),
        (200, {"vms": 0}, {"crowd": 176, "real": 24}),
        (200, {"vms": 5, "real": 0}, {"crowd": 195, "vms": 5}),
        (5, {}, {"crowd": 5}),
        (None, {"real": 24}, {"real": 24}),
        (None, {"vms": 3}, {"vms": 3}),
        (None, {"crowd": 60, "vms": 1}, {"crowd": 60, "vms": 1}),
    ],
)
def test_jobs_are_shared_among_the_tiers(
    jobs: int | None, named: dict[str, int | None], wanted: dict[str, int]
) -> None:
    assert shares(jobs, named) == wanted


@pytest.mark.parametrize(
    ("jobs", "named"), [(10, {"vms": 11}), (10, {"crowd": 11}), (0, {}), (None, {"vms": 0}), (None, {"real": -1})]
)
def test_shares_that_dont_fit_are_refused(jobs: int | None, named: dict[str, int | None]) -> None:
    with pytest.raises(BadShares):
        shares(jobs, named)


def test_what_cant_be_run_like_this_ends_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(sys, "argv", ["chaos", "--jobs", "3", "--crowd", "9"])
    assert main() == 2
    shown = capsysbinary.readouterr()
    assert (shown.out, b"error: 3 jobs in all" in shown.err) == (b"", True)


def test_the_plan_of_every_tier_comes_from_the_seed_alone() -> None:
    """Another process, which orders sets in another way, has the same; another seed hasn't."""
    here = json.loads(as_json({"seed": 5, "tiers": plans(shares(None, {}), 5)}))
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "tests.chaos", "--plan", "--seed", "5"]
    there = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=120, check=True)
    assert json.loads(there.stdout) == here
    assert list(here["tiers"]) == ["crowd", "real", "vms"]
    other = plans(shares(None, {}), 6)
    assert all(plans(shares(None, {}), 5)[tier] != other[tier] for tier in other)


def test_a_plan_with_machines_kills_every_process_and_a_qemu_or_a_host_and_drains() -> None:
    known = {name for name, _ in MILESTONES} | set(vm_plan.OWN_MARKS)
    assert set(vm_plan.PROCESSES) == set(PROCESSES)
    assert set(vm_plan.FAULTS) <= set(CATALOGUE)
    ways = set()
    for seed in range(30):
        made = plan(3, seed)
        assert [(job.role, job.repository) for job in made.jobs if job.role != "whole"] == [
            ("crash", RERUN),
            ("drain", RERUN),
        ]
        crashed = {kill.process for kill in made.kills} - set(PROCESSES)
        assert crashed in ({"qemu"}, {"host"})
        ways |= crashed
        assert {kill.mark for kill in made.kills} <= known
        assert "going" not in {kill.mark for kill in made.kills if kill.process == "gateway"}
    assert ways == {"qemu", "host"}
    assert [job.role for job in plan(1, 1).jobs] == ["crash"]
    assert {(job.role, job.repository) for job in plan(4, 1).jobs} >= {("crash", RERUN), ("crash", NO_RERUN)}


CRASH, LEFT, WHOLE, DRAIN = (
    VmJob("a", "crash", RERUN), VmJob("b", "crash", NO_RERUN), VmJob("c", "whole", NO_RERUN), VmJob("d", "drain", RERUN),
)  # fmt: skip


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (End(WHOLE, ("success",), False, False, False, 1), "served"),
        (End(WHOLE, ("failure",), False, False, False, 1), "lost"),
        (End(WHOLE, ("success",), True, False, False, 1), "lost"),
        (End(WHOLE, ("success",), False, False, False, 2), "served_twice"),
        (End(WHOLE, ("success", "success"), False, False, False, 1), "lost"),
        (End(CRASH, ("failure", "success"), True, False, False, 1), "served_after_loss"),
        (End(CRASH, ("failure", "success"), False, False, False, 1), "lost"),
        (End(CRASH, ("failure",), True, False, False, 1), "lost"),
        (End(LEFT, ("failure",), True, False, False, 1), "infrastructure"),
        (End(LEFT, ("failure", "success"), True, False, False, 1), "lost"),
        (End(DRAIN, ("cancelled",), False, True, True, 1), "drained"),
        (End(DRAIN, ("success",), False, True, True, 1), "lost"),
        (End(DRAIN, ("cancelled",), False, False, True, 1), "lost"),
        (End(DRAIN, ("cancelled",), False, True, False, 1), "lost"),
        (End(DRAIN, ("cancelled", "success"), False, True, True, 1), "lost"),
    ],
)
def test_a_job_that_didnt_end_as_its_role_has_it_is_lost(end: End, kind: str) -> None:
    assert kind_of(end) == kind


class _City:
    """What a play looks at: one job."""

    def __init__(self, job: VmJob) -> None:
        self.jobs = {job.key: Seen(job, ids=[1])}
        self.killed: list[str] = []
        self.refuses = 0

    def told(self, _what: str) -> None:
        pass

    def kill(self, process: str) -> bool:
        self.refuses -= 1
        if self.refuses < 0:
            self.killed.append(process)
        return self.refuses < 0


def test_a_process_dies_once_its_mark_was_seen_and_is_asked_again_between_two_lives() -> None:
    city: Any = _City(WHOLE)
    play = Play(
        city, VmPlan((WHOLE,), (Kill("c", "at_work", 0.0, "agent"), Kill("c", "going", 60.0, "redis")), (), 1.0)
    )
    play._kill_some()
    assert city.killed == []
    city.jobs["c"].passed |= {"at_work": 1.0, "going": 1e12}
    city.refuses = 1
    play._kill_some()
    assert city.killed == []
    play._kill_some()
    play._kill_some()
    assert city.killed == ["agent"]


def test_the_gateway_isnt_killed_while_a_job_tries_the_ways_out() -> None:
    city: Any = _City(WHOLE)
    city.jobs["a"] = Seen(CRASH, ids=[2], passed={"delivered": 1.0})
    play = Play(
        city,
        VmPlan((CRASH, WHOLE), (Kill("a", "delivered", 0.0, "gateway"), Kill("a", "delivered", 0.0, "agent")), (), 1.0),
    )
    city.jobs["c"].went_on = True
    play._kill_some()
    assert city.killed == ["agent"]
    city.jobs["c"].story = {"state": "completed", "made_for_it": []}
    play._kill_some()
    assert city.killed == ["agent", "gateway"]


def _story(*runners: tuple[str, int]) -> dict[str, Any]:
    return {"state": "completed", "made_for_it": [{"phase": phase, "job_id": job} for phase, job in runners]}


def test_a_job_is_over_though_the_machine_made_for_it_works_at_another() -> None:
    """GitHub gives a job to whichever runner asks first: the other one's job may be the one that waits for this end."""
    seen = Seen(WHOLE, ids=[1])
    assert not seen.over
    for runners, over in (
        ((("GONE", 1), ("RUNNING", 2)), True),
        ((("GONE", 1), ("DESTROYING", 1)), False),
        ((("GONE", 2), ("BOOTING", 0)), False),
    ):
        seen.story = _story(*runners)
        assert seen.over == over, runners
    seen.story["state"] = "in_progress"
    assert not seen.over


def test_nothing_else_begins_beside_a_job_whose_host_reboots() -> None:
    city: Any = _City(CRASH)
    begun: list[str] = []
    city.jobs, city.begin = {"a": Seen(CRASH, ids=[1]), "c": Seen(WHOLE)}, lambda job: begun.append(job.key)
    play = Play(city, VmPlan((CRASH, WHOLE), (Kill("a", "at_work", 0.0, "host"),), (), 1.0))
    play._begin_some()
    assert begun == []
    city.jobs["a"].lost = "vm-crashed"
    play._begin_some()
    assert begun == ["c"]


def report(**more: Any) -> dict[str, Any]:
    counts = {
        "jobs": 4,
        "served": 3,
        "lost": 0,
        "served_twice": 0,
        "leaked": {"disks": 0},
        "faults": {"errors": 1},
        "kills": 2,
    }
    return {**counts, "ok": True, **more}


def test_one_report_has_the_sums_and_each_tiers_own() -> None:
    tiers = {"crowd": report(), "vms": report(leaked={"disks": 1, "links": 0}, faults={"ghost": 1}, ok=False)}
    made = together(tiers, 7)
    sums = ["jobs", "served", "lost", "served_twice", "unreasoned", "starved", "leaked", "faults", "kills"]
    assert list(made) == [*sums, "seed", "ok", "tiers"]
    assert (made["jobs"], made["served"], made["kills"], made["seed"], made["ok"]) == (8, 6, 4, 7, False)
    assert made["leaked"] == {"disks": 1, "links": 0}
    assert made["faults"] == {"errors": 1, "ghost": 1}
    assert made["tiers"] == tiers
    assert together({"crowd": report()}, 7)["ok"]


def test_a_tier_that_broke_is_no_success() -> None:
    made = together({"crowd": report(), "real": {"jobs": 5, "ok": False, "kills": 0, "error": "it broke"}}, 1)
    assert (made["ok"], made["jobs"], made["served"]) == (False, 9, 3)
