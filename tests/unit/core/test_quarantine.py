from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.quarantine import LASTS_S, WINDOW_S, Fault, Ward, condemn, judged, note, of_host, of_image

NOW = 1e6


def ward(*faults: tuple[float, str, str]) -> Ward:
    return Ward(
        tuple(Fault(str(n), NOW + at, host, image, "guest-silent") for n, (at, host, image) in enumerate(faults))
    )


def held(ward: Ward, now: float = NOW, lifted: dict[str, float] | None = None) -> set[str]:
    return set(judged(ward, lifted or {}, now).held)


def test_three_failures_of_a_host() -> None:
    assert held(ward((-2, "a", "x"), (-1, "a", "y"))) == set()
    after = judged(ward((-2, "a", "x"), (-1, "a", "y"), (0, "a", "x")), {}, NOW)
    assert set(after.held) == {of_host("a")}
    assert after.held[of_host("a")].until == NOW + LASTS_S
    assert "3 starts failed within 10 minutes; the last one: guest-silent" in after.held[of_host("a")].reason


def test_three_failures_of_an_image_are_no_hosts_fault() -> None:
    assert held(ward((-2, "a", "x"), (-1, "b", "x"), (0, "a", "x"))) == {of_image("x")}
    many = [(-n, "a", "x") for n in range(5)] + [(-n, "b", "x") for n in range(5)]
    assert held(ward(*many)) == {of_image("x")}


def test_with_one_host_and_one_image_the_host_stands_for_both() -> None:
    assert held(ward((-2, "a", "x"), (-1, "a", "x"), (0, "a", "x"))) == {of_host("a")}


def test_failures_long_ago_count_no_more() -> None:
    assert held(ward((-WINDOW_S, "a", "x"), (-1, "a", "x"), (0, "a", "x"))) == set()


def test_it_ends_by_itself_and_what_led_to_it_is_forgiven() -> None:
    after = judged(ward((-2, "a", "x"), (-1, "a", "x"), (0, "a", "x")), {}, NOW)
    assert held(after, NOW + LASTS_S - 1) == {of_host("a")}
    over = judged(after, {}, NOW + LASTS_S)
    assert over.held == {}
    for number in range(2):
        over = note(over, Fault(f"r{number}", NOW + LASTS_S + number, "a", "x", "again"))
    assert held(over, NOW + LASTS_S + 2) == set()


def test_a_persons_word_ends_it_and_forgives() -> None:
    after = judged(ward((-2, "a", "x"), (-1, "a", "x"), (0, "a", "x")), {}, NOW)
    lifted = {of_host("a"): NOW + 5}
    assert held(after, NOW + 6, lifted) == set()
    again = note(judged(after, lifted, NOW + 6), Fault("r", NOW + 7, "a", "x", "again"))
    assert held(again, NOW + 8, lifted) == set()


def test_an_image_that_github_refuses_stays_out_until_a_person_says_otherwise() -> None:
    after = condemn(Ward(), "x", "its runner is too old", NOW)
    assert held(after, NOW + 1e7) == {of_image("x")}
    assert condemn(after, "x", "again", NOW + 9) == after
    assert held(after, NOW + 10, {of_image("x"): NOW + 9}) == set()
    assert condemn(Ward(), "", "which image it was isn't known", NOW) == Ward()


FAULTS = st.builds(
    Fault,
    st.uuids().map(str),
    st.floats(NOW - 900, NOW),
    st.sampled_from("abc"),
    st.sampled_from(["", "x", "y"]),
    st.just("w"),
)


@given(st.lists(FAULTS, max_size=12), st.floats(0, 3000))
def test_judging_twice_is_judging_once_and_nobody_is_held_without_three_failures(
    faults: list[Fault], later: float
) -> None:
    once = judged(Ward(tuple(faults)), {}, NOW)
    assert judged(once, {}, NOW) == once
    for subject in once.held:
        mine = [f for f in faults if subject in (of_host(f.host), of_image(f.image)) and NOW - f.at < WINDOW_S]
        assert len(mine) >= 3
    if later >= LASTS_S + WINDOW_S:
        assert judged(once, {}, NOW + later) == Ward()
