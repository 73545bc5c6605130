from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.listening import GAP_S, Listening, noted, silence


def test_a_gap_begins_anew() -> None:
    first = noted(None, 100.0)
    assert first == Listening(100.0, 100.0)
    assert noted(first, 100.0 + GAP_S) == Listening(100.0, 100.0 + GAP_S)
    assert noted(first, 101.0 + GAP_S) == Listening(101.0 + GAP_S, 101.0 + GAP_S)


def test_silence_counts_only_while_somebody_listens() -> None:
    assert silence(50.0, None, 100.0) == 50.0
    assert silence(50.0, Listening(10.0, 100.0), 100.0) == 50.0
    assert silence(50.0, Listening(90.0, 100.0), 100.0) == 10.0
    assert silence(50.0, Listening(10.0, 50.0), 100.0) == 0.0


def test_a_clock_that_was_set_back_is_a_gap_and_keeps_nobody_alive_for_long() -> None:
    before = Listening(4000.0, 5000.0)
    assert silence(4990.0, before, 1400.0) == 0.0, "until it is noted that somebody listens, nothing is known"
    after = noted(before, 1400.0)
    assert after == Listening(1400.0, 1400.0)
    assert silence(4990.0, noted(after, 1410.0), 1410.0) == 10.0, "heard before the clock was set"
    assert silence(1410.5, noted(after, 1410.0), 1410.0) == -0.5, "another process' clock may be a bit ahead"


@given(st.lists(st.floats(0.1, 100), max_size=30), st.floats(0, 50))
def test_it_never_exceeds_what_was_listened_to(gaps: list[float], last: float) -> None:
    now, known, begun = 0.0, None, 0.0
    for gap in gaps:
        begun = now + gap if known is None or gap > GAP_S else begun
        now += gap
        known = noted(known, now)
    assert silence(0.0, known, now + last) <= now + last - (begun if known is not None else 0.0)
