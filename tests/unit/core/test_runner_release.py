from __future__ import annotations

import pytest

from orchestrator.core.runner_release import DAY_S, KEPT, Releases, admit, age_of, learn, why_not

NOW = 1e9


def at(days_ago: float, version: str = "2.336.0", releases: Releases | None = None) -> Releases:
    return learn(releases or Releases(), version, NOW - days_ago * DAY_S, NOW)


@pytest.mark.parametrize(
    ("days", "standing"),
    [(0, "behind"), (6.9, "behind"), (7, "warn"), (24.9, "warn"), (25, "blocked"), (29.9, "blocked"), (30, "refused")],
)
def test_row_20_a_version_ages_from_the_day_a_newer_one_is_out(days: float, standing: str) -> None:
    age = age_of("2.335.1", at(days), NOW)
    assert age.standing == standing
    assert age.days_left == pytest.approx(30 - days)
    assert bool(age.text) is (days >= 7)
    assert age_of("2.336.0", at(days), NOW).standing == "current"
    assert age_of("2.337.0", at(days), NOW).standing == "current"


def test_row_20_what_counts_is_the_first_newer_release() -> None:
    known = at(1, "2.338.0", at(8, "2.337.0", at(26, "2.336.0")))
    age = age_of("2.335.0", known, NOW)
    assert (age.standing, age.newer) == ("blocked", "2.338.0")
    assert "26 days behind 2.338.0; GitHub refuses it in 4 days" in age.text
    assert age_of("2.336.0", known, NOW).standing == "warn"
    assert age_of("2.9.0", known, NOW).standing == "blocked", "by number, not by letter"


def test_row_20_what_isnt_known_blocks_nothing() -> None:
    assert age_of("2.335.0", Releases(), NOW).standing == "unknown"
    for odd in ("", "test", "2.x", "2.²"):
        assert age_of(odd, at(99), NOW).standing == "unknown"
        assert why_not(at(99), "d", odd, NOW) == ""
    assert learn(Releases(), "", 0.0, NOW) == Releases(asked_at=NOW)


def test_row_20_a_late_image_isnt_rolled_out_and_one_in_use_stays() -> None:
    releases = admit(at(10), {"old": "2.335.0"}, NOW)
    later = NOW + 16 * DAY_S
    releases = admit(releases, {"old": "2.335.0", "new": "2.335.0", "fresh": "2.336.0"}, later)
    assert set(releases.in_use) == {"old", "fresh"}
    assert why_not(releases, "old", "2.335.0", later) == ""
    assert "isn't rolled out any more" in why_not(releases, "new", "2.335.0", later)
    assert set(admit(releases, {"new": "2.335.0"}, later, all_of_them=True).in_use) == {"old", "fresh", "new"}


def test_row_20_memory_is_bounded() -> None:
    releases = Releases()
    for number in range(100):
        releases = learn(releases, f"2.{number}.0", NOW + number, NOW)
    assert (len(releases.published), "2.99.0" in releases.published) == (KEPT, True)
