"""Messages about a job arrive late, twice and out of order, and the same is known in the end."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.job import STORY_LIMIT, Job, JobState, may_move, merge, state_of, tell


def job(state: JobState, **facts: object) -> Job:
    return Job(id=1, installation=2, org="acme", repo="acme/app", state=state, **facts)  # type: ignore[arg-type]


MESSAGES = (
    job("queued", labels=("ironcd",), name="build"),
    job("in_progress", runner_id=4, runner_name="ironcd-x", started_at=5.0),
    job("completed", runner_id=4, conclusion="success", completed_at=9.0),
)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_order_of_messages_ends_in_the_same_job(order: tuple[int, ...]) -> None:
    known: Job | None = None
    for index in order:
        known = merge(known, MESSAGES[index])
        known = merge(known, MESSAGES[index])
    assert known == job(
        "completed",
        labels=("ironcd",),
        name="build",
        runner_id=4,
        runner_name="ironcd-x",
        started_at=5.0,
        completed_at=9.0,
        conclusion="success",
    )


@given(st.lists(st.sampled_from(["waiting", "queued", "in_progress", "completed"]), min_size=1, max_size=12))
def test_a_job_that_started_never_waits_again(states: list[JobState]) -> None:
    known: Job | None = None
    started = False
    for state in states:
        known = merge(known, job(state))
        started |= state in ("in_progress", "completed")
        assert started == (known.state in ("in_progress", "completed"))
    assert ("completed" in states) == (known is not None and known.over)


def test_waiting_and_queued_may_alternate_until_the_job_starts() -> None:
    assert may_move("queued", "waiting")
    assert may_move("waiting", "queued")
    assert not may_move("in_progress", "queued")


@pytest.mark.parametrize(
    ("action", "status", "state"),
    [
        ("queued", "queued", "queued"),
        ("queued", "waiting", "waiting"),  # seen in a real payload: an environment that asks for approval
        ("queued", "in_progress", "in_progress"),
        ("in_progress", "completed", "completed"),
        ("completed", "in_progress", "completed"),
        ("waiting", "waiting", "waiting"),
        ("someday", "queued", "queued"),
        ("someday", "unheard_of", "waiting"),
    ],
)
def test_the_higher_of_action_and_status_counts(action: str, status: str, state: JobState) -> None:
    assert state_of(action, status) == state


def test_our_own_notes_survive_a_message() -> None:
    known = tell(job("queued", served="yes", runner="X"), 1.0, "placed", "host a")
    merged = merge(known, job("in_progress"))
    assert (merged.served, merged.runner, merged.story) == ("yes", "X", known.story)


def test_a_story_is_bounded_and_does_not_stutter() -> None:
    told = job("queued")
    for index in range(STORY_LIMIT + 50):
        told = tell(tell(told, index, "waits", f"{index}"), index + 0.5, "waits", f"{index}")
    assert len(told.story) == STORY_LIMIT
    assert told.story[-1].detail == str(STORY_LIMIT + 49)
