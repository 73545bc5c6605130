"""What the documents and messages tell people to write is accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.core import policy_document, policy_file
from orchestrator.core.policy_file import read_policy
from orchestrator.core.preset_file import read_preset
from policies import load_presets

ROOT = Path(__file__).resolve().parents[3]
FENCED = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REFERENCE = (ROOT / "docs/reference/policy.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [*FENCED.findall(REFERENCE), policy_document.STARTER])
def test_an_example_is_a_policy_without_a_warning(text: str) -> None:
    assert read_policy(text, source="example", presets=load_presets()).warnings == ()


def test_the_example_of_a_preset_is_one() -> None:
    (text,) = FENCED.findall((ROOT / "policies/README.md").read_text(encoding="utf-8"))
    assert read_preset(text, source="example").name == "example"


def test_every_key_is_described() -> None:
    for key in (*policy_file.KEYS, *policy_file.ORG_KEYS):
        assert f"| `{key}` |" in REFERENCE
    for key in {key for keys in policy_file.ENTRY_KEYS.values() for key in keys}:
        assert f"{key}" in REFERENCE
