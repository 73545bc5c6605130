"""Which entries would undo a policy."""

from __future__ import annotations

import pytest

from orchestrator.core.hazards import RangeProblem, floor_problem, host_danger, read_range
from orchestrator.core.presets import Presets


@pytest.mark.parametrize(
    ("pattern", "refused", "multi_tenant"),
    [
        ("*.com", True, False),
        ("**.co.uk", True, False),
        ("*.example", True, False),
        ("*.pages.example", False, True),
        ("**.pages.example", False, True),
        ("dns.resolver.test", False, False),
        ("*.resolver.test", False, False),
        ("x.tunnel.example", False, True),
        ("x.y.tunnel.example", False, True),
        ("drop.example", False, True),
        ("store.example", False, True),
        ("*.store.example", False, True),
        ("*.eu.store.example", False, True),
    ],
)
def test_a_dangerous_pattern(presets: Presets, pattern: str, refused: bool, multi_tenant: bool) -> None:
    danger = host_danger(pattern, presets)
    assert danger is not None
    assert (danger.refused, danger.multi_tenant) == (refused, multi_tenant)


@pytest.mark.parametrize(
    "pattern",
    [
        "example.com",
        "*.example.com",
        "pages.example",
        "mine.pages.example",
        "mine.store.example",
        "tunnel.example",
        "other.resolver.test",
    ],
)
def test_a_harmless_pattern(presets: Presets, pattern: str) -> None:
    assert host_danger(pattern, presets) is None


def test_a_range_has_one_form() -> None:
    assert read_range("203.0.113.7") == "203.0.113.7/32"
    assert read_range("10.0.0.0/255.0.0.0") == "10.0.0.0/8"


@pytest.mark.parametrize(
    "text", ["", "x", "1.2.3", "203.0.113.0/33", "203.0.113.1/24", "::/0", "0.0.0.0/0", "10.0.0.0/7", "1.2.3.4/x"]
)
def test_a_range_that_cannot_be_used(text: str) -> None:
    with pytest.raises(RangeProblem) as caught:
        read_range(text)
    assert caught.value.remedy


def test_a_range_on_the_floor_needs_lifting_as_a_whole() -> None:
    assert floor_problem("203.0.113.0/24", ()) is None
    assert floor_problem("10.1.0.0/16", ("10.0.0.0/8",)) is None
    assert floor_problem("10.0.0.0/8", ("10.1.0.0/16",)) is not None
    assert floor_problem("169.254.169.254/32", ("0.0.0.0/0",)) is not None
    assert floor_problem("100.100.100.200/32", ("100.64.0.0/10",)) is not None
