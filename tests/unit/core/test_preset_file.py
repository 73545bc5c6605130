"""Our own data files are read as strictly as a stranger's."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import PolicyErrors
from orchestrator.core.preset_file import read_hazards, read_preset
from orchestrator.core.presets import Hazard

PRESET = """\
name: sample
version: 2
description: One line.
aka: [specimen]
source: "https://example.com/hosts"
entries:
  - {host: API.example.com, comment: why}
  - {cidr: 192.0.2.0/24, ports: [22], source: elsewhere, multi_tenant: true, verified: false}
tests:
  - {host: api.example.com, expect: allow}
"""


def test_a_preset_is_read_whole() -> None:
    preset = read_preset(PRESET, source="sample.yml")
    assert (preset.name, preset.version, preset.aka) == ("sample", 2, ("specimen",))
    first, second = preset.entries
    assert (first.host, first.source, first.comment, first.verified) == (
        "api.example.com",
        "https://example.com/hosts",
        "why",
        True,
    )
    assert (second.cidr, second.ports, second.source, second.multi_tenant, second.verified) == (
        "192.0.2.0/24",
        (22,),
        "elsewhere",
        True,
        False,
    )
    assert [rule.id for rule in preset.rules()] == ["preset/sample@2#1", "preset/sample@2#2"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 2\n", "", "has version"),
        ("version: 2", "version: two", "whole number"),
        ('source: "https://example.com/hosts"\n', "", "an entry has a source"),
        ("comment: why", "coment: why", "'coment' isn't a key"),
        ("host: API.example.com", "host: https://api.example.com", "URL"),
        ("host: API.example.com", "hots: api.example.com", "one of host and cidr"),
        ("expect: allow", "expect: alow", "allow or block"),
    ],
)
def test_a_damaged_preset_is_refused(old: str, new: str, message: str) -> None:
    assert old in PRESET
    with pytest.raises(PolicyErrors) as caught:
        read_preset(PRESET.replace(old, new, 1), source="sample.yml")
    assert any(message in error.message for error in caught.value.errors)


def test_a_preset_without_entries_reads_them_off_the_image_or_is_refused() -> None:
    text = "name: a\nversion: 1\ndescription: x\nentries: []\n"
    with pytest.raises(PolicyErrors, match="has entries"):
        read_preset(text, source="a.yml")
    assert read_preset(text + "from_image: true\n", source="a.yml").entries == ()


def test_hazards_are_read_whole_or_refused() -> None:
    assert read_hazards("- {host: dns.example.com, kind: doh, why: a resolver}\n", source="h.yml") == (
        Hazard("dns.example.com", "doh", "a resolver"),
    )
    for text in ("- {host: a.example.com, kind: doh}\n", "- {host: a.example.com, kind: dho, why: x}\n", ""):
        with pytest.raises(PolicyErrors):
            read_hazards(text, source="h.yml")
