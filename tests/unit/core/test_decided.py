"""Of two decisions the later one counts, whoever says it and however often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.decided import Decided, Drain, later

DRAIN = Drain(1.0, 2.0, "new kernel")
DECISIONS = st.builds(
    Decided,
    cordoned=st.sampled_from([None, "", "disk"]),
    cordoned_at=st.sampled_from([0.0, 1.0, 2.0]),
    drain=st.sampled_from([None, DRAIN]),
    drained_at=st.sampled_from([0.0, 1.0, 2.0]),
)


def test_each_of_the_two_goes_by_its_own_time():
    known = Decided("disk", 5.0, DRAIN, 5.0)
    assert later(known, Decided(None, 6.0, None, 4.0)) == Decided(None, 6.0, DRAIN, 5.0)
    assert later(known, Decided("fan", 4.0, None, 6.0)) == Decided("disk", 5.0, None, 6.0)


def test_who_knows_of_no_decision_takes_none_back():
    known = Decided("disk", 5.0, DRAIN, 5.0)
    assert later(known, Decided()) == known
    assert later(Decided(), known) == known


@given(mine=DECISIONS, theirs=DECISIONS)
def test_saying_it_again_changes_nothing(mine, theirs):
    once = later(mine, theirs)
    assert later(once, theirs) == once
    assert (once.cordoned_at, once.drained_at) >= (mine.cordoned_at, mine.drained_at)
