"""Presets of a small world, so that a test of the format doesn't change with the shipped ones."""

from __future__ import annotations

import pytest

from orchestrator.core.presets import Hazard, PolicyTest, Preset, PresetEntry, Presets, SuffixKind


def suffix_kind(name: str) -> SuffixKind:
    if name in ("com", "example", "co.uk"):
        return "icann"
    return "private" if name == "pages.example" else ""


def entry(host: str, *, multi_tenant: bool = False) -> PresetEntry:
    return PresetEntry(source="a page", host=host, multi_tenant=multi_tenant)


@pytest.fixture(scope="session")
def presets() -> Presets:
    """Built in: ``github``.  Others: ``node`` (with hosts from the image), ``ssh`` (a range)."""
    github = Preset(
        name="github",
        version=1,
        description="the baseline",
        entries=(entry("github.com", multi_tenant=True), entry("**.actions.githubusercontent.com")),
        builtin=True,
    )
    node = Preset(
        name="node",
        version=3,
        description="Node.js",
        entries=(entry("nodejs.org"), entry("*.yarn.example")),
        tests=(PolicyTest(expect="allow", host="nodejs.org"),),
        from_image=True,
        aka=("npm",),
    )
    ssh = Preset(
        name="ssh",
        version=1,
        description="git over SSH",
        entries=(PresetEntry(source="a page", cidr="192.0.2.0/24", ports=(22,)),),
    )
    hazards = (
        Hazard("dns.resolver.test", "doh", "a resolver"),
        Hazard("**.tunnel.example", "tunnel", "tunnels"),
        Hazard("drop.example", "drop", "a drop box"),
        Hazard("**.store.example", "multi_tenant", "buckets"),
        Hazard("store.example", "multi_tenant", "every bucket"),
    )
    return Presets(by_name={"github": github, "node": node, "ssh": ssh}, hazards=hazards, suffix=suffix_kind)
