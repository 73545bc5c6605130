"""The rule that decides, and what a person is told of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.effective import effective_policy
from orchestrator.core.explain import Explanation, Target, explain, explain_files, flow_of, target_of
from orchestrator.core.policy import compile_policy, decide
from orchestrator.core.policy_file import read_policy
from orchestrator.core.presets import Presets

REPO = """\
mode: enforce
allow:
  - {preset: node}
  - {host: "*.a.example.org", comment: the reason}
  - {host: x.a.example.org}
  - {cidr: 203.0.113.0/24, ports: [22]}
deny:
  - {host: bad.a.example.org}
expect:
  - {host: ocsp.example.org}
"""


def ask(presets: Presets, what: str, port: int = 443, repo: str = REPO, org: str | None = None) -> Explanation:
    above = read_policy(org, source="org.yml", presets=presets, scope="org") if org else None
    own = read_policy(repo, source="repo.yml", presets=presets)
    return explain_files(above, own, target_of(what, port), presets)


@pytest.mark.parametrize(
    ("what", "port", "verdict", "rule", "said"),
    [
        ("Y.a.example.org", 443, "allowed", "repo#2", "repo#2 (repo.yml:4) allows *.a.example.org"),
        ("x.a.example.org", 443, "allowed", "repo#3", "repo.yml:5"),
        ("bad.a.example.org", 443, "blocked", "repo#5", "repo#5 (repo.yml:8) denies bad.a.example.org"),
        ("nodejs.org", 443, "allowed", "preset/node@3#1", "preset node, version 3; repo.yml:3"),
        ("github.com", 443, "allowed", "builtin/github@1#1", "preset github"),
        ("nowhere.example.org", 443, "blocked", "", "no rule names it"),
        ("nowhere.example.org", 80, "blocked", "", "plain HTTP"),
        ("x.a.example.org", 8443, "blocked", "", "another port"),
        ("203.0.113.9", 22, "allowed", "repo#4", "repo#4"),
        ("203.0.113.9", 443, "blocked", "", "names no host"),
        ("169.254.169.254", 443, "blocked", "", "the floor (metadata)"),
        ("10.1.2.3", 22, "blocked", "", "the floor (private)"),
    ],
)
def test_what_decides(presets: Presets, what: str, port: int, verdict: str, rule: str, said: str) -> None:
    made = ask(presets, what, port)
    assert made.decision.verdict == verdict
    assert (made.rule.id if made.rule else "") == rule
    assert said in made.because


def test_the_others_that_name_it_are_told(presets: Presets) -> None:
    assert [rule.id for rule in ask(presets, "bad.a.example.org").also] == ["repo#2"]
    assert [rule.id for rule in ask(presets, "x.a.example.org").also] == ["repo#2"]
    assert "expected" in ask(presets, "ocsp.example.org").decision.flags


@pytest.mark.parametrize(
    ("what", "port", "entry"),
    [
        ("new.example.org", 443, "{host: new.example.org}"),
        ("192.0.2.5", 22, "{preset: ssh}"),
        ("198.51.100.5", 22, "{cidr: 198.51.100.5/32, ports: [22]}"),
        ("198.51.100.5", 443, "{cidr: 198.51.100.5/32}"),
        ("drop.example", 443, "{host: drop.example, acknowledge: REASON}"),
        ("new.example.org", 80, ""),
        ("10.0.0.1", 22, ""),
        ("bad.a.example.org", 443, ""),
        ("x.a.example.org", 443, ""),
    ],
)
def test_what_would_allow_it(presets: Presets, what: str, port: int, entry: str) -> None:
    made = ask(presets, what, port)
    assert made.to_allow == entry
    if made.to_allow and "REASON" not in made.to_allow:
        text = REPO.replace("deny:", f"  - {made.to_allow}\ndeny:")
        assert ask(presets, what, port, text).decision.verdict == "allowed"


def test_a_preset_that_has_it_is_named(presets: Presets) -> None:
    made = ask(presets, "nodejs.org", repo="mode: enforce\nallow: []\n")
    assert (made.presets, made.to_allow) == (("node",), "{preset: node}")


def test_warn_would_block(presets: Presets) -> None:
    made = ask(presets, "new.example.org", repo="mode: warn\nallow: []\n")
    assert made.decision.would_block
    assert "would-block" in made.because


def test_the_organisations_part_in_it(presets: Presets) -> None:
    org = "mode: enforce\nallow: [{host: one.example.org}]\ndeny: [{host: two.example.org}]\n"
    own = "allow: []\n"
    assert "org#1 (org.yml:2) would allow it" in ask(presets, "one.example.org", repo=own, org=org).notes[0]
    assert ask(presets, "two.example.org", repo=own, org=org).rule.id == "org#2"  # type: ignore[union-attr]
    assert "must name it first" in ask(presets, "three.example.org", repo=own, org=org).notes[0]
    wide = org + "repositories_may: widen\n"
    assert ask(presets, "three.example.org", repo=own, org=wide).notes == ()


@given(st.sampled_from(["a.example.org", "x.a.example.org", "b.x.a.example.org", "nodejs.org"]), st.integers(1, 65535))
def test_the_answer_is_always_decides_own(presets: Presets, host: str, port: int) -> None:
    policy = effective_policy(None, read_policy(REPO, source="r", presets=presets), presets.builtin)
    target = Target(port, host=host)
    assert explain(policy, target, presets).decision == decide(compile_policy(policy), flow_of(target))
