"""A job's story becomes phases with durations."""

from __future__ import annotations

import pytest

from orchestrator.surface.timeline import MILESTONES, milestones_of, timeline


def test_a_phase_is_the_time_between_two_milestones():
    spans = timeline({"queued": 100.0, "WANTED": 100.5, "domain_started": 103.0})
    assert [(span.duration_s, span.since_start_s) for span in spans] == [(0.0, 0.0), (0.5, 0.5), (2.5, 3.0)]
    assert spans[-1].phase == "VM made by libvirt, paused"


def test_phases_come_in_the_order_of_time_and_then_of_life():
    late = timeline({"chain_installed": 5.0, "domain_started": 4.0, "queued": 5.0})
    assert [span.at for span in late] == [4.0, 5.0, 5.0]
    assert late[1].phase == dict(MILESTONES)["queued"]


def test_what_is_no_milestone_is_left_out():
    assert timeline({"gossip": 1.0}) == []


@pytest.fixture
def job():
    return {
        "runner": "R2",
        "story": [
            {"at": 1.0, "who": "job", "what": "queued"},
            {"at": 2.0, "who": "R1", "what": "WANTED"},
            {"at": 3.0, "who": "R1", "what": "GONE"},
            {"at": 4.0, "who": "R2", "what": "WANTED"},
            {"at": 5.0, "who": "R2", "what": "jit_taken"},
            {"at": 9.0, "who": "job", "what": "queued"},
        ],
        "made_for_it": [{"id": "R1", "marks": {"all_gone": 2.9}}, {"id": "R2", "marks": {"jit_taken": 4.8}}],
    }


def test_only_the_last_runner_counts_and_its_host_knows_best(job):
    assert milestones_of(job) == {"queued": 1.0, "WANTED": 4.0, "jit_taken": 4.8}
