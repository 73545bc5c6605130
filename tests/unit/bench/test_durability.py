"""The kill falls where it should, once, and the deliveries are ones that the control plane takes for its own."""

from __future__ import annotations

import json

import pytest

from bench.deliveries import Deliveries
from bench.durability import BURST, KILLED, Countdown
from orchestrator.surface.up import PROCESSES


@pytest.mark.parametrize("count", [0, 1, 49])
def test_the_kill_comes_once_after_its_number_of_answers(count: int) -> None:
    killed_at = []
    passed = 0
    countdown = Countdown(count, lambda: killed_at.append(passed))
    for _ in range(BURST):
        countdown.passed(202)
        passed += 1
    assert killed_at == [count]


def test_what_passes_is_unchanged() -> None:
    assert [Countdown(9, lambda: None).passed(status) for status in (0, 202, 503)] == [0, 202, 503]


def test_every_process_that_is_killed_exists() -> None:
    assert set(KILLED) <= set(PROCESSES)


def test_deliveries_are_of_the_repository_that_was_asked_for() -> None:
    (delivery,) = Deliveries("key", repo="acme/app", installation=7).make(1)
    payload = json.loads(delivery.body)
    assert payload["repository"]["full_name"] == "acme/app"
    assert payload["repository"]["owner"]["type"] == "Organization"
    assert payload["installation"]["id"] == 7
    assert payload["workflow_job"]["id"] == delivery.job
