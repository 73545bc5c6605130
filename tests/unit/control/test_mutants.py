"""The model finds faults that are planted in the product.  All of them: ``python -m tests.unit.control.mutants``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .histories import CI_HISTORIES, Theatre, theatre
from .mutants import MUTANTS, hunt, planted

SAMPLE = (
    "a_busy_runner_counts_as_given_back",
    "a_registration_isnt_removed",
    "a_machine_is_called_gone_without_proof",
    "a_guest_with_a_job_is_ended_since_github_forgot_it",
    "a_machine_without_a_record_takes_no_room",
    "runners_on_their_way_arent_counted",
    "a_quota_isnt_kept",
)
"""Those that are found soon."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Theatre]:
    with theatre() as made:
        yield made


@pytest.mark.parametrize("name", SAMPLE)
def test_it_is_found(name: str, stage: Theatre) -> None:
    assert hunt(stage, name, CI_HISTORIES) is not None


def test_what_was_planted_is_taken_out() -> None:
    for name in MUTANTS:
        with planted(name):
            pass
        first = [
            (target, key, target[key] if isinstance(target, dict) else getattr(target, key))
            for target, key, _ in MUTANTS[name]()
        ]
        with planted(name):
            pass
        again = [target[key] if isinstance(target, dict) else getattr(target, key) for target, key, _ in first]
        assert [value for _, _, value in first] == again, name
