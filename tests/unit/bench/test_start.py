"""What is made of the times of many starts."""

from __future__ import annotations

import pytest

from bench import start, start_jobs, start_memory


def made(base: float, runner: float, step: float) -> dict[str, float]:
    return {
        "queued": base, "accepted": base + 0.2, "runner_started": base + runner, "steps_released": base + step,
        "JobCompleted": base + 30, "GONE": base + 31,
    }  # fmt: skip


STARTS = {
    "cold": [made(0, 30, 40)] * 3,
    "clone": [made(100 * n, 5 + n, 9) for n in range(3)],
    "warm": [made(0, 4, 7)] * 3,
}


def rows() -> dict[str, object]:
    return {row.name: row for row in start.rows_of(STARTS)}


def test_every_figure_that_is_announced_is_measured():
    running = start_memory.rows_of(start_memory.Taken(350, 1), start_memory.Taken(800, 4))
    assert rows().keys() | {row.name for row in running} == {figure.name for figure in start.BENCH.figures}


def test_each_kind_stands_beside_the_one_that_it_must_beat():
    found = rows()
    clone, warm = found["start_clone_to_runner_p50"], found["start_warm_to_runner_p50"]
    assert (clone.value, clone.peer_value, clone.bar, clone.passed) == (6, 30, "<= 0.30", True)
    assert (warm.value, warm.peer_value, warm.bar, warm.passed) == (4, 6, "<= 0.9", True)
    assert found["start_cold_to_runner_p50"].peer == ""
    assert found["start_clone_to_runner_p99"].value == 7
    assert found["start_clone_to_runner_p99"].bar == ""


def test_a_clone_that_is_no_quicker_fails_its_bar():
    slow = {**STARTS, "clone": [made(0, 20, 30)]}
    found = {row.name: row for row in start.rows_of(slow)}
    assert not found["start_clone_to_runner_p50"].passed


def test_phases_are_told_in_their_order_and_add_up():
    text = start_jobs.phases(STARTS["warm"], "steps_released")
    assert text == "ms to each phase: accepted 200, runner_started 3800, steps_released 3000"


def test_kinds_take_turns():
    order = start_jobs.order_of({"cold": 2, "clone": 4, "warm": 4})
    assert sorted(order) == ["clone"] * 4 + ["cold"] * 2 + ["warm"] * 4
    assert order[:2].count("clone") == 1
    assert "cold" in order[:5]
    assert "cold" in order[5:]


def test_a_milestone_that_was_not_passed_is_said():
    with pytest.raises(RuntimeError, match="has no runner_started"):
        start_jobs.span({"queued": 1.0}, "queued", "runner_started")


@pytest.mark.parametrize(("asked", "clones"), [("", 30), ("5", 5)])
def test_how_many_can_be_asked_for(asked, clones):
    assert start.counts_of(asked)["clone"] == clones


@pytest.mark.parametrize("asked", ["0", "-1", "many"])
def test_a_count_must_be_one(asked):
    with pytest.raises(ValueError, match=asked):
        start.counts_of(asked)


ROLLUP = """55d0-7ffd ---p 00000000 00:00 0    [rollup]
Rss:              900000 kB
Pss:              400000 kB
Pss_Dirty:        300000 kB
Shared_Clean:     400000 kB
Private_Clean:      1024 kB
Private_Dirty:    357376 kB
Referenced:       900000 kB
"""


def test_what_a_machine_has_to_itself_are_its_private_pages():
    assert start_memory.private_mib_in(ROLLUP) == 350.0


def test_a_clone_that_shares_little_while_it_runs_fails_its_bar():
    def passed(clone: float) -> bool:
        row, _ = start_memory.rows_of(start_memory.Taken(clone, 1), start_memory.Taken(800, 4))
        return row.passed

    assert passed(350)
    assert not passed(700)
