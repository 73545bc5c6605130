"""Edits of a policy file: what was there stays, what was asked for is there, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import UserError
from orchestrator.core.policy_document import PolicyFile
from orchestrator.core.policy_edit import (
    NewEntry,
    changed_as_meant,
    entry_text,
    quoted,
    with_entry,
    with_mode,
    without_entry,
)
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import Presets

BLOCK = """\
# The head of the file.
mode: enforce   # for now

allow:
  # languages
  - {preset: node}
  - host: a.example.org   # why it is here
    comment: the API

  # the rest
  - {host: "*.b.example.org"}

# Never.
deny:
- {host: evil.example.org}
tests:
  - {host: a.example.org, expect: allow}
"""
FLOW = "{mode: warn, allow: [{preset: node}, {host: a.example.org}], deny: []}\n"
EMPTY = "mode: enforce\nallow: []  # nothing yet\ndeny: []\n"


def read(text: str, presets: Presets) -> PolicyFile:
    return read_policy(text, source="org.yml", presets=presets, scope="org")


def lines_kept(before: str, after: str) -> bool:
    """Every line of ``before`` is in ``after``, in its order."""
    rest = iter(after.splitlines())
    return all(line in rest for line in before.splitlines())


@pytest.mark.parametrize(
    "text", [BLOCK, BLOCK.replace("\n", "\r\n"), FLOW, EMPTY, "\ufeff" + BLOCK, BLOCK.rstrip("\n")]
)
@pytest.mark.parametrize(
    "entry",
    [
        NewEntry(host="new.example.org", comment="it: is, [needed] #1"),
        NewEntry(host="**.new.example.org"),
        NewEntry(cidr="203.0.113.0/24", ports=(22, 2222)),
        NewEntry(preset="ssh"),
        NewEntry(action="deny", host="worse.example.org"),
        NewEntry(action="expect", host="ocsp.example.org"),
    ],
)
def test_add_then_remove(text: str, entry: NewEntry, presets: Presets) -> None:
    before = read(text, presets)
    added = with_entry(text, entry)
    after = read(added, presets)
    changed_as_meant(before, after, added=entry)
    if text.startswith(("#", "\ufeff")):
        assert lines_kept(text, added), added
        assert ("\r\n" in text) == ("\r\n" in added)
        assert added.count("\n") == added.count("\r\n") or "\r\n" not in added
    mine = [
        e for e in (*(after.allow or ()), *after.deny, *after.expect) if (e.host, e.cidr) == (entry.host, entry.cidr)
    ]
    number = next(e.number for e in mine if (e.preset.name if e.preset else "") == entry.preset)
    removed = without_entry(added, number)
    changed_as_meant(after, read(removed, presets), removed=number)


def test_an_entry_goes_to_the_end_of_its_list(presets: Presets) -> None:
    added = with_entry(BLOCK, NewEntry(host="z.example.org", comment="last"))
    assert '  - {host: "*.b.example.org"}\n  - {host: z.example.org, comment: last}\n\n# Never.\n' in added


def test_each_entry_can_be_removed_and_takes_no_comment_of_others(presets: Presets) -> None:
    for number, gone in ((1, "preset: node"), (3, "b.example.org"), (4, "evil")):
        left = without_entry(BLOCK, number)
        changed_as_meant(read(BLOCK, presets), read(left, presets), removed=number)
        assert gone not in left
        for comment in ("# The head", "# for now", "# languages", "# the rest", "# Never."):
            assert comment in left
    assert "deny: []" in without_entry(BLOCK, 4)


def test_removing_the_last_of_a_list_leaves_an_empty_one(presets: Presets) -> None:
    text = "allow: # what they need\n\n  # one\n  - host: a.example.org\n# end\n"
    left = without_entry(text, 1)
    assert left == "allow: [] # what they need\n\n  # one\n# end\n"
    assert read(left, presets).allow == ()


@pytest.mark.parametrize("text", [BLOCK, FLOW, EMPTY, "allow: []\n", "# nothing but a comment\n", "  allow: []\n"])
@pytest.mark.parametrize("mode", ["warn", "enforce"])
def test_mode(text: str, mode: str, presets: Presets) -> None:
    made = with_mode(text, mode)  # type: ignore[arg-type]
    assert read(made, presets).mode == mode
    assert with_mode(made, mode) == made  # type: ignore[arg-type]
    if "# for now" in text:
        assert f"mode: {mode}   # for now\n" in made


def test_what_an_edit_cannot_understand_is_refused(presets: Presets) -> None:
    with pytest.raises(UserError, match="no such entry"):
        without_entry(BLOCK, 99)
    before = read(BLOCK, presets)
    with pytest.raises(UserError, match="layout"):
        changed_as_meant(before, read(with_mode(BLOCK, "warn"), presets))
    with pytest.raises(UserError, match="layout"):
        changed_as_meant(before, before, added=NewEntry(host="x.example.org"))
    with pytest.raises(UserError, match="layout"):
        changed_as_meant(before, read(without_entry(BLOCK, 1), presets), removed=2)
    end = "allow:\n  - {host: a.example.org}\n...\n"
    with pytest.raises(UserError):
        changed_as_meant(read(end, presets), read(with_entry(end, NewEntry(action="deny", host="b.org")), presets))


def test_nested_lists_with_dashes_on_one_line_are_left_alone() -> None:
    with pytest.raises(UserError):
        without_entry("allow:\n  - host: a.example.org\n    ports: [1,\n    2]\n  -\n    # odd\n    host: b\n", 9)


@given(
    st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Cn", "Co")), min_size=1, max_size=40)
)
def test_whatever_is_quoted_is_read_as_it_was(text: str) -> None:
    import yaml

    assert yaml.safe_load("{a: " + quoted(text) + "}") == {"a": text}


def test_entry_text() -> None:
    assert entry_text(NewEntry(host="*.x.example", comment="true")) == '{host: "*.x.example", comment: "true"}'
    assert entry_text(NewEntry(cidr="192.0.2.0/24", ports=(22,))) == "{cidr: 192.0.2.0/24, ports: [22]}"
