"""Names derive from one ULID and lead back to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.names import is_tap, names_of, ulid_of

ULIDS = st.builds(
    lambda first, rest: first + rest,
    st.sampled_from("01234567"),
    st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=25, max_size=25),
)


@given(ULIDS)
def test_every_name_leads_back(ulid: str) -> None:
    names = names_of(ulid)
    for name in (names.runner, names.domain, names.disk, names.seed, names.channel):
        assert ulid_of(name) == ulid
    assert is_tap(names.tap)
    assert len(names.tap) <= 15
    assert len(names.runner) <= 64


@pytest.mark.parametrize(
    "name", ["ironcd", "ironcd-", "web-01", "ironcd-../../etc/passwd", "ironcd-backup.qcow2", "tap0"]
)
def test_what_is_not_ours_has_no_ulid(name: str) -> None:
    assert ulid_of(name) is None
    assert not is_tap(name)


@pytest.mark.parametrize("bad", ["", "x", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "../../../../../etc/passwd0"])
def test_what_is_no_ulid_gets_no_names(bad: str) -> None:
    with pytest.raises(ValueError, match="not a ULID"):
        names_of(bad)
