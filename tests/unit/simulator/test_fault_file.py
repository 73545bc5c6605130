"""A file of faults, and what is said of one with mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.core.errors import PolicyErrors
from orchestrator.simulator.github.catalogue import CATALOGUE, Order
from orchestrator.simulator.github.fault_file import read_faults, seconds_of

PAGE = Path(__file__).parents[3] / "docs/operations/rehearse.md"


def test_what_a_file_says():
    text = "faults:\n  - fault: outage\n    in: 2m\n    for: 1h\n  - {fault: errors, chance: 20%, count: 3, by: 9, repository: acme/app}\n"
    assert read_faults(text, source="f.yml") == [
        Order("outage", in_s=120.0, for_s=3600.0),
        Order("errors", chance=0.2, count=3, by_s=9.0, repository="acme/app"),
    ]


@pytest.mark.parametrize(
    ("text", "place", "said", "remedy"),
    [
        ("", "1:1", "nothing in it", "begin with"),
        ("faults:\n  - fault: outrage\n", "2:12", "outrage", "did you mean outage?"),
        ("faults:\n  - fault: outage\n    duration: 5m\n", "3:5", "duration", "write for"),
        ("faults:\n  - fault: outage\n    fro: 5m\n", "3:5", "fro", "did you mean for?"),
        ("faults:\n  - fault: outage\n    for: 5 weeks\n", "3:10", "5 weeks", "90s, 5m or 1h"),
        ("faults:\n  - fault: outage\n    for: 25h\n", "3:10", "25h", "a day at most"),
        ("faults:\n  - fault: errors\n    chance: 2\n", "3:13", "a share", "0.2 or 20%"),
        ("faults:\n  - fault: errors\n    count: 0\n", "3:12", "from 1", "number"),
        ("faults:\n  - fault: errors\n    repository: app\n", "3:17", "owner/name", "acme/app"),
        ("faults:\n  - in: 5m\n", "2:5", "names no fault", "faults list"),
        ("fault: outage\n", "1:1", "isn't a key", "faults"),
        ("faults: outage\n", "1:9", "must be a list", "- "),
    ],
)
def test_every_mistake_has_its_place_and_its_remedy(text, place, said, remedy):
    with pytest.raises(PolicyErrors) as refused:
        read_faults(text, source="f.yml")
    first = refused.value.errors[0]
    assert first.message.startswith(f"f.yml:{place}: ")
    assert said in first.message
    assert remedy in first.remedy


def test_all_mistakes_are_told_at_once():
    with pytest.raises(PolicyErrors) as refused:
        read_faults("faults:\n  - fault: outrage\n    for: x\n  - {}\n", source="f.yml")
    assert len(refused.value.errors) == 3


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("1d", None), ("", None), ("-5", None)])  # fmt: skip
def test_times(text, seconds):
    assert seconds_of(text) == seconds


def test_the_page_lists_every_fault_and_its_sample_can_be_read():
    page = PAGE.read_text()
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)) == set(CATALOGUE)
    (sample,) = re.findall(r"^```\n(faults:.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(read_faults(sample, source="page")) == 4
