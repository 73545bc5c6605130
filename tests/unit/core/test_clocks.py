from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.clocks import skew_of_answerer, skew_of_sender

moments = st.floats(0, 1e6)
ways = st.floats(0, 30)
skews = st.floats(-100, 100)


@given(moments, ways, ways, skews)
def test_a_senders_skew_is_never_overstated(sent: float, way: float, longer: float, skew: float) -> None:
    found = skew_of_sender(sent + skew, sent + way, way + longer)
    assert abs(found) <= abs(skew) + 1e-6
    assert found == 0 or abs(found) < 1e-6 or (found > 0) == (skew > 0)
    assert abs(found) >= abs(skew) - (way + longer) - 1e-6, "no more than the way is given away"


@given(moments, ways, ways, skews)
def test_an_answerers_skew_is_never_overstated(asked: float, there: float, back: float, skew: float) -> None:
    stamp = float(int(asked + there + skew + 200)) - 200
    found = skew_of_answerer(stamp, asked, asked + there + back)
    assert abs(found) <= abs(skew) + 1e-6
    assert abs(found) >= abs(skew) - (there + back) - 1 - 1e-6


@pytest.mark.parametrize(
    ("stamp", "received", "way", "skew"),
    [(100.0, 100.3, 0.5, 0.0), (100.0, 107.0, 0.5, -6.5), (107.0, 100.0, 0.5, 7.0), (100.0, 100.0, 0.0, 0.0)],
)
def test_only_what_the_way_cant_explain_is_skew(stamp: float, received: float, way: float, skew: float) -> None:
    assert skew_of_sender(stamp, received, way) == skew
