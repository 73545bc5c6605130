"""The policies that the bench asks really have the size they claim, and the names match as it says."""

from __future__ import annotations

from bench.policy import flows, rules
from orchestrator.core.policy import Policy, compile_policy, decide


def test_half_of_the_names_have_a_rule_or_nearly() -> None:
    policy = compile_policy(Policy("enforce", rules(1000)))
    assert len(policy.policy.rules) == 1000
    passed = [decide(policy, flow).passes for flow in flows(1000)]
    assert not any(passed[1::2])
    assert sum(passed[::2]) >= 80
