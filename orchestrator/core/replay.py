"""Which past jobs a policy would have stood in the way of: every attempt on record, decided again by that policy.

What the record can't say isn't made up: attempts that were only counted, and blocks that no rule is about (the floor, a
broken hello, limits), are as they were.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from orchestrator.core.floor import floor_reason
from orchestrator.core.flow import Identity
from orchestrator.core.policy import Policy, compile_policy, decide
from orchestrator.core.seen import Seen


class Target(msgspec.Struct, frozen=True):
    name: str
    count: int
    reason: str
    """Why the policy blocks it: ``not_allowed`` or ``denied``."""
    rule: str = ""
    before: str = ""
    """The rule that allowed it then; empty where none did."""


class Replayed(msgspec.Struct, frozen=True):
    """One job.  ``blocked``: it reached these, and wouldn't have; ``opened``: it didn't, and would have."""

    who: Identity
    first: float
    blocked: tuple[Target, ...]
    opened: tuple[Target, ...]
    still_blocked: int
    same: int
    """Targets that were let through then and would be now."""


def replay(policy: Policy, attempts: Iterable[Seen]) -> list[Replayed]:
    """One `Replayed` for each job in ``attempts``, the earliest first.  A would-block counts as a block."""
    compiled = compile_policy(policy)
    jobs: dict[tuple[str, int, int], list[Seen]] = {}
    for seen in attempts:
        jobs.setdefault((seen.who.repo, seen.who.run_id, seen.who.job_id), []).append(seen)
    made = []
    for found in jobs.values():
        blocked, opened, still, same = [], [], 0, 0
        for seen in found:
            if seen.verdict == "blocked" and not seen.is_ruled:
                still += 1
                continue
            decision = decide(compiled, seen.flow)
            passes, passed = decision.verdict == "allowed", seen.verdict != "blocked"
            target = Target(seen.shown, seen.count, decision.reason, decision.rule, seen.rule if passed else "")
            if passed and not passes:
                blocked.append(target)
            elif passes and not passed and not _on_the_floor(seen):
                opened.append(target)
            elif passes:
                same += 1
            else:
                still += 1
        made.append(Replayed(found[0].who, found[0].first, tuple(blocked), tuple(opened), still, same))
    return sorted(made, key=lambda job: job.first)


def _on_the_floor(seen: Seen) -> bool:
    return bool(seen.address) and floor_reason(seen.address) is not None
