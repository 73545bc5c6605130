"""What a job was kept from reaching, or would be in ``enforce``, in words for its commit: each target, why, and the line
that would open it.

A line is offered only for what a policy can open: not for the floor, plain HTTP or QUIC, and not for a host that is known to
be dangerous, which wants a person's acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from orchestrator.core.flow import Event
from orchestrator.core.policy_edit import NewEntry, entry_text
from orchestrator.core.seen import Seen, seen_by_jobs

DESCRIPTION_LIMIT = 140
"""GitHub's, of a commit status."""
TARGETS_LIMIT = 100
PASSED = ", let through by `mode: warn`"


class Blocked(msgspec.Struct, frozen=True):
    target: str
    """``evil.example``, ``203.0.113.7:22``"""
    reason: str
    count: int
    line: str = ""
    """The entry of ``allow`` that would open it; empty where there is none to offer."""
    passed: bool = False
    """It got through, for the mode was ``warn``."""


def blocked_targets(events: Iterable[Event], is_dangerous: Callable[[str], bool]) -> tuple[Blocked, ...]:
    """What was blocked, then what would be, each in the order in which it was first tried; what the policy expects to be
    blocked is left out.

    No line is offered for the hosts that ``is_dangerous``.
    """
    found: dict[tuple[str, str], Blocked] = {}
    for seen in seen_by_jobs(events):
        if seen.verdict != "allowed" and "expected" not in seen.flags:
            made = Blocked(seen.shown, seen.reason, seen.count, _line(seen, is_dangerous), seen.verdict == "warn")
            known = found.get((made.target, made.reason))
            count = made.count + (known.count if known is not None else 0)
            found[made.target, made.reason] = msgspec.structs.replace(made, count=count)
    return tuple(sorted(found.values(), key=lambda one: one.passed))


def description(targets: Sequence[Blocked]) -> str:
    """One line of at most 140 characters for a commit status."""
    first = targets[0]
    others = f" and {len(targets) - 1} more" if len(targets) > 1 else ""
    whole = f"{'would be blocked in enforce' if first.passed else 'blocked'}: {first.target}{others}"
    if first.line and len(with_line := f"{whole}; if meant, add to allow: - {first.line}") <= DESCRIPTION_LIMIT:
        return with_line
    return whole if len(whole) <= DESCRIPTION_LIMIT else whole[: DESCRIPTION_LIMIT - 1] + "\u2026"


def report(targets: Sequence[Blocked], policy_path: str) -> str:
    """Markdown for a check run.  Targets come from the job: each stands as code, and can't end it."""
    lines = ["| target | why | times |", "| --- | --- | --- |"]
    lines += [
        f"| {_code(one.target)} | {_code(one.reason)}{PASSED if one.passed else ''} | {one.count} |"
        for one in targets[:TARGETS_LIMIT]
    ]
    if len(targets) > TARGETS_LIMIT:
        lines.append(f"\n{len(targets) - TARGETS_LIMIT} more are on record.")
    offered = [f"  - {one.line}" for one in targets[:TARGETS_LIMIT] if one.line]
    if offered:
        lines += ["", f"If they were meant, add to `{policy_path}`:", "", "```yaml", "allow:", *offered, "```"]
    return "\n".join(lines)


def _line(seen: Seen, is_dangerous: Callable[[str], bool]) -> str:
    if not seen.is_ruled or seen.reason == "denied":
        return ""
    if seen.host:
        return "" if is_dangerous(seen.host) else entry_text(NewEntry(host=seen.host))
    if seen.address and seen.protocol == "tcp" and seen.port:
        return entry_text(NewEntry(cidr=f"{seen.address}/32", ports=(seen.port,)))
    return ""


def _code(text: str) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return "`" + shown.replace("`", "'").replace("|", "\\|") + "`"
