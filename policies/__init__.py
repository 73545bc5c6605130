"""Presets and the lists that policies are judged by: data in YAML, read once and kept."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from publicsuffixlist import PublicSuffixList

from orchestrator.core import effective
from orchestrator.core.policy import Policy
from orchestrator.core.preset_file import read_hazards, read_preset
from orchestrator.core.presets import Presets, SuffixKind


@cache
def load_presets() -> Presets:
    """Every preset of this release, by name.  Raises `PolicyErrors` where a data file is damaged."""
    folder = files(__name__)
    found = {}
    for path in sorted(folder.joinpath("presets").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".yml"):
            preset = read_preset(path.read_bytes(), source=f"policies/presets/{path.name}")
            if f"{preset.name}.yml" != path.name or preset.name in found:
                raise ValueError(f"policies/presets/{path.name} holds the preset {preset.name!r}")
            found[preset.name] = preset
    hazards = read_hazards(folder.joinpath("hazards.yml").read_bytes(), source="policies/hazards.yml")
    return Presets(by_name=found, hazards=hazards, suffix=suffix_kind)


@cache
def baseline_policy() -> Policy:
    """The sealed phase's policy: what a runner needs to get its job, and nothing else."""
    return effective.baseline_policy(load_presets().builtin)


def suffix_kind(name: str) -> SuffixKind:
    """Which section of the Public Suffix List has ``name`` as a suffix; a top-level domain that it lacks is ``icann``."""
    icann, every = _suffix_lists()
    if icann.is_public(name):
        return "icann"
    return "private" if every.is_public(name) else ""


@cache
def _suffix_lists() -> tuple[PublicSuffixList, PublicSuffixList]:
    return PublicSuffixList(only_icann=True), PublicSuffixList()
