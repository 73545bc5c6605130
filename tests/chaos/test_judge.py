"""What the judge excuses, it excuses only where it really was so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.chronicle import Window, longest_outside_s
from tests.chaos.guest import Guest
from tests.chaos.oracle import Oracle

LOCK_S = 600.0
HEARD = 1000.0
"""The runner's last word."""
OUT = HEARD + LOCK_S


def ended(job: dict[str, Any], *deaf: tuple[float, float], lost: str = "") -> bool:
    """Whether GitHub may have ended the job because it was away at ``deaf``."""
    oracle = Oracle.__new__(Oracle)
    oracle.city = SimpleNamespace(  # type: ignore[assignment]
        losses={7: lost} if lost else {},
        github=SimpleNamespace(engine=SimpleNamespace(lock_s=LOCK_S)),
        chronicle=SimpleNamespace(deaf=[Window(*window) for window in deaf]),
        rules=object(),
    )
    known: Any = SimpleNamespace(
        **{"id": 7, "conclusion": "failure", "locked_until": OUT, "completed_at": OUT + 2} | job
    )
    return oracle._was_unheard(known)


def test_two_outages_in_a_row_keep_a_runner_from_being_heard() -> None:
    assert ended({}, (HEARD + 30, HEARD + 300), (HEARD + 310, OUT + 20))


def test_one_that_might_have_been_heard_in_between_is_not_excused() -> None:
    assert not ended({}, (HEARD + 30, HEARD + 300), (HEARD + 300 + 2 * Guest.retry_s, OUT + 20))
    assert not ended({}, (HEARD + 30, HEARD + 300))
    assert not ended({})


@pytest.mark.parametrize(
    "job",
    [{"completed_at": OUT - 1}, {"completed_at": None}, {"conclusion": "cancelled"}],
    ids=["early", "never", "other"],
)
def test_what_didnt_end_by_its_lock_is_not_excused(job: dict[str, Any]) -> None:
    assert not ended(job, (HEARD, OUT + 20))


def test_nor_one_whose_machine_was_ended_meanwhile() -> None:
    assert not ended({}, (HEARD, OUT + 20), lost="destroyed on h1")


def test_the_longest_stretch_outside_windows() -> None:
    windows = [Window(30.0, 40.0), Window(10.0, 20.0), Window(35.0, 60.0)]
    assert longest_outside_s(windows, 0.0, 65.0) == 10.0
    assert longest_outside_s(windows, 12.0, 15.0) == 0.0
    assert longest_outside_s([], 12.0, 15.0) == 3.0
    assert longest_outside_s([Window(0.0, 100.0)], 10.0, 50.0) == 0.0
    assert longest_outside_s([Window(80.0, 100.0)], 10.0, 50.0) == 40.0
