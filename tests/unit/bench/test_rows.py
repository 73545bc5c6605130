"""A figure is judged by its bar, and what couldn't be measured is a failed row."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from rich.console import Console

from bench.rows import Bench, Figure, Row, collect, failed, holds, in_turns, middle, middle_pair, percentile, row

SPEED = Figure("speed", "1/s", bar=">= 1.5")
LOST = Figure("lost", "deliveries", bar="<= 0")


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize(
    ("bar", "figure", "expected"),
    [(">= 1.5", 1.5, True), (">= 1.5", 1.49, False), ("<= 0", 0, True), ("<= 0", 1, False), ("", -7, True)],
)
def test_a_bar_holds_from_its_own_figure_on(bar: str, figure: float, expected: bool) -> None:
    assert holds(bar, figure) is expected


@pytest.mark.parametrize("bar", ["1.5", "> 1", ">= many", ">=1", ">= 1.5 or so"])
def test_a_bar_that_cannot_be_read_is_an_error_and_not_met(bar: str) -> None:
    with pytest.raises(ValueError, match="no bar"):
        holds(bar, 2)


def test_the_middle_pair_is_of_one_round_and_never_the_better_of_two() -> None:
    assert middle_pair([10, 30, 5], [20, 30, 50]) == (10, 20)
    assert middle_pair([10, 30], [20, 30]) == (10, 20)


def test_the_ratio_is_value_over_peer_and_judged() -> None:
    good = row(SPEED, 300, peer="other", peer_value=150)
    assert (good.ratio, good.passed) == (2.0, True)
    assert row(SPEED, 150, peer="other", peer_value=150).passed is False


def test_without_a_peer_the_value_itself_is_judged() -> None:
    assert row(LOST, 0).passed is True
    assert row(LOST, 1).passed is False


def test_a_peer_that_did_nothing_is_no_success() -> None:
    assert row(SPEED, 10, peer="other", peer_value=0.0).passed is False


def test_a_peer_without_its_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="together"):
        row(SPEED, 1, peer="other")
    with pytest.raises(ValueError, match="together"):
        row(SPEED, 1, peer_value=1)


def test_an_error_fails_the_figures_that_it_kept_from_being_measured_and_no_others() -> None:
    def measure(_console: Console) -> Iterable[Row]:
        yield row(LOST, 0)
        raise RuntimeError("no redis-server here")

    rows = collect(Bench((SPEED, LOST), measure), quiet())
    assert rows == [row(LOST, 0), failed(SPEED, "RuntimeError: no redis-server here")]
    assert rows[1].passed is False
    assert rows[1].value is None


def test_a_figure_that_was_promised_and_left_out_fails() -> None:
    rows = collect(Bench((SPEED, LOST), lambda _: [row(LOST, 0)]), quiet())
    assert [one.passed for one in rows] == [True, False]


def test_turns_alternate_who_comes_first() -> None:
    assert [index for index, _ in in_turns(3, [lambda: "a", lambda: "b"])] == [0, 1, 1, 0, 0, 1]


def test_one_disturbed_round_moves_the_median_little_and_percentiles_are_by_nearest_rank() -> None:
    assert middle([10, 11, 900]) == 11
    assert percentile(range(1, 101), 99) == 99
    assert percentile([5.0], 99) == 5.0
    assert percentile([1.0, 2.0], 50) == 1.0
    with pytest.raises(ValueError, match="no figures"):
        percentile([], 50)
