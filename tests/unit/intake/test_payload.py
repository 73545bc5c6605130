"""The odd ones among real payloads, and payloads of any shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.inbox import InstallationNews
from orchestrator.core.job import Job
from orchestrator.intake.payload import Unusable, read

from .conftest import EXAMPLES

JOBS = EXAMPLES["workflow_job"]
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def job_of(payload: dict[str, Any]) -> Job:
    job = read("workflow_job", json.dumps(payload).encode())
    assert isinstance(job, Job)
    return job


def test_the_oldest_has_no_run_attempt_and_no_installation() -> None:
    job = job_of(JOBS[0])
    assert (job.attempt, job.created_at, job.workflow, job.installation) == (1, 0.0, "", 0)
    assert (job.state, job.org, job.runner_name) == ("in_progress", "octo-org", "my runner")


def test_queued_that_waits_for_approval_is_waiting() -> None:
    job = job_of(JOBS[6])
    assert (job.state, job.labels, job.runner_id) == ("waiting", ("self-hosted", "k8s"), 0)


def test_queued_whose_job_is_in_progress() -> None:
    payload = json.loads(json.dumps(JOBS[5]))
    payload["workflow_job"]["status"] = "in_progress"
    assert job_of(payload).state == "in_progress"


def test_row_15_whether_it_deploys_is_told_by_the_deployment() -> None:
    assert [job_of(payload).deploys for payload in JOBS[:8]] == [False] * 6 + [True, False]


def test_a_repository_is_known_by_its_id() -> None:
    job = job_of(JOBS[5])
    assert job.repo_id == JOBS[5]["repository"]["id"]
    assert job.public is (not JOBS[5]["repository"]["private"])


def test_times_are_seconds_since_the_epoch() -> None:
    assert job_of(JOBS[6]).created_at == 1681938732.0


def test_a_persons_account_is_no_organisation() -> None:
    assert job_of(JOBS[4]).org == ""
    payload = json.loads(json.dumps(JOBS[4]))
    payload["repository"]["owner"]["type"] = "Organization"
    assert job_of(payload).org == payload["repository"]["owner"]["login"]


@pytest.mark.parametrize("index", range(7))
def test_installations(index: int) -> None:
    payload = EXAMPLES["installation"][index]
    news = read("installation", json.dumps(payload).encode())
    assert isinstance(news, InstallationNews)
    assert news.id == payload["installation"]["id"]


@given(st.sampled_from(range(8)), st.sampled_from(sorted(JOBS[5]["workflow_job"])), _values)
def test_any_field_may_hold_anything(index: int, field: str, value: Any) -> None:
    payload = json.loads(json.dumps(JOBS[index]))
    payload["workflow_job"][field] = value
    try:
        job = job_of(payload)
    except Unusable:
        assert field == "id"
    else:
        assert job.id > 0


@given(st.binary(max_size=200) | _values.map(lambda value: json.dumps(value).encode()))
def test_nothing_else_is_raised(body: bytes) -> None:
    for event in ("workflow_job", "installation"):
        for form in (False, True):
            with pytest.raises(Unusable):
                read(event, body, form=form)
