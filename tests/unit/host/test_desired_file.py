from __future__ import annotations

from pathlib import Path

from orchestrator.core.wire import Desired
from orchestrator.host.desired_file import REMOVALS_S, as_kept, read, with_known_orders

NOW = 1_800_000_000.0


def _desired(since: float = 0.0, **removed: float) -> Desired:
    return Desired("h1", 1, (), templates_since=since, templates_removed=removed)


def test_a_control_plane_that_has_forgotten_an_order_takes_none_back(tmp_path: Path) -> None:
    ordered = _desired(NOW - 5, a=NOW - 4, b=NOW - 3)
    path = tmp_path / "desired.json"
    path.write_bytes(as_kept(with_known_orders(ordered, None, NOW)))
    known = with_known_orders(_desired(), read(path), NOW)
    assert known == ordered
    path.write_bytes(as_kept(known))
    assert with_known_orders(_desired(), read(path), NOW) == ordered, "nor the next time"


def test_the_later_order_counts() -> None:
    found = with_known_orders(_desired(NOW, a=NOW - 9, c=NOW), _desired(NOW - 5, a=NOW - 4, b=NOW - 3), NOW)
    assert found == _desired(NOW, a=NOW - 4, b=NOW - 3, c=NOW)


def test_removals_are_forgotten_in_the_end() -> None:
    assert with_known_orders(_desired(), _desired(1.0, a=NOW - REMOVALS_S - 1), NOW) == _desired(1.0)


def test_what_isnt_there_or_cant_be_read_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "desired.json") is None
    (tmp_path / "desired.json").write_text("{")
    assert read(tmp_path / "desired.json") is None
