"""How long one decision takes with ten rules, a thousand and a hundred thousand: it must not grow with their number."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console

from bench.rows import Bench, Figure, Row, middles, row
from orchestrator.core.flow import Flow
from orchestrator.core.policy import CompiledPolicy, Policy, Rule, compile_policy, decide

SIZES = (10, 1_000, 100_000)
ROUNDS = 9
CALLS = 20_000
ASKED = 200

FIGURES = (
    Figure("decide_10_rules", "us"),
    Figure("decide_1000_rules", "us", bar="<= 1.5"),
    Figure("decide_100000_rules", "us", bar="<= 2.0"),
)


def measure(console: Console) -> Iterable[Row]:
    policies = [compile_policy(Policy("enforce", rules(size))) for size in SIZES]
    asked = [flows(size) for size in SIZES]
    takes = [
        lambda policy=policy, flows=flows: _time(policy, flows) for policy, flows in zip(policies, asked, strict=True)
    ]
    base, *larger = found = middles(ROUNDS, takes)
    console.print(f"  {', '.join(f'{size} rules: {one:.2f} us' for size, one in zip(SIZES, found, strict=True))}")
    yield row(
        FIGURES[0],
        base,
        note=f"median of {ROUNDS} rounds of {CALLS} decisions, every second one on a name that no rule has",
    )
    for figure, value in zip(FIGURES[1:], larger, strict=True):
        yield row(figure, value, peer="the same with 10 rules", peer_value=base)


def rules(size: int) -> tuple[Rule, ...]:
    """``size`` allow rules: names, one-label and any-depth wildcards, and one range in ten."""
    return tuple(_rule(number) for number in range(size))


def _rule(number: int) -> Rule:
    if number % 10 == 9:
        return Rule(
            f"org#{number}", cidr=f"203.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/32", ports=(22,)
        )
    prefix = ("", "*.", "**.")[number % 3]
    return Rule(f"org#{number}", host=f"{prefix}service{number}.region{number % 7}.example")


def flows(size: int) -> list[Flow]:
    """Attempts spread over all rules: each second one to a name that no rule has."""
    return [Flow("tls", 443, name=_name(call * size // ASKED, known=call % 2 == 0)) for call in range(ASKED)]


def _name(number: int, *, known: bool) -> str:
    prefix = ("", "a.", "b.a.")[number % 3]
    return f"{prefix}service{number}.region{number % 7}.{'example' if known else 'invalid'}"


def _time(policy: CompiledPolicy, asked: list[Flow]) -> float:
    """Microseconds a decision."""
    began = time.perf_counter()
    for _ in range(CALLS // len(asked)):
        for flow in asked:
            decide(policy, flow)
    return (time.perf_counter() - began) / CALLS * 1e6


BENCH = Bench(FIGURES, measure)
