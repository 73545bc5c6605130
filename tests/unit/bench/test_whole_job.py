"""Durations are taken between milestones of the demo's timeline, which the bench knows by their names."""

from __future__ import annotations

import msgspec
import pytest

from bench.whole_job import between
from orchestrator.surface.timeline import MILESTONES, timeline

PASSED = {MILESTONES[0][0]: 100.0, "steps_released": 130.5, "JobCompleted": 150.0, "GONE": 153.25}


def spans() -> list[dict[str, object]]:
    return [msgspec.structs.asdict(span) for span in timeline(PASSED)]


def test_from_delivery_to_first_step_and_from_end_to_proof() -> None:
    assert between(spans(), MILESTONES[0][0], "steps_released") == 30.5
    assert between(spans(), "JobCompleted", "GONE") == 3.25


def test_a_run_that_did_not_get_there_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="GONE"):
        between(spans()[:-1], "JobCompleted", "GONE")


def test_milestones_in_the_wrong_order_are_no_figure() -> None:
    with pytest.raises(RuntimeError, match="before"):
        between(spans(), "GONE", "JobCompleted")
