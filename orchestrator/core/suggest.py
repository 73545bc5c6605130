"""The smallest policy that would have let through what was seen, without what nobody should let through unasked.

1. What a rule denies, what lies on the floor, what no rule can open (plain HTTP, QUIC) and what is expected to be blocked
   is left out, each with the reason.
2. A dangerous host (tunnels, drop boxes, DNS over HTTPS, places for rent) is left out too, unless it is asked for; then
   it comes with an ``acknowledge:`` that a person must write.
3. A preset stands for its hosts where enough of them were seen, or all: the one that opens least beside them.
4. Names are taken as they were seen; no wildcard is made up.

A list of hosts that were seen is a proposal: whoever could run code in a job could have it look for any host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from orchestrator.core.explain import Target, names
from orchestrator.core.floor import floor_reason
from orchestrator.core.hazards import host_danger
from orchestrator.core.host_pattern import HostProblem, read_name
from orchestrator.core.policy import CompiledPolicy, Policy, compile_policy, decide
from orchestrator.core.policy_edit import NewEntry, entry_text
from orchestrator.core.policy_entries import NEVER_OPEN
from orchestrator.core.presets import Preset, Presets
from orchestrator.core.seen import Seen

PRESET_HOSTS = 2
ACKNOWLEDGE = "say here why this is needed"


class Proposed(msgspec.Struct, frozen=True):
    """An entry of ``allow``, and the targets that it is for."""

    entry: NewEntry
    targets: tuple[str, ...]
    count: int
    jobs: int
    careful: str = ""
    """What is known against it."""

    @property
    def note(self) -> str:
        """Why it is proposed, on one line."""
        seen = f"seen {self.count} times in {self.jobs} job{'' if self.jobs == 1 else 's'}"
        which = (
            f": {', '.join(self.targets[:6])}{', ...' if len(self.targets) > 6 else ''}" if self.entry.preset else ""
        )
        return seen + which + (f"; careful: {self.careful}" if self.careful else "")


class LeftOut(msgspec.Struct, frozen=True):
    target: str
    count: int
    why: str


class Suggestion(msgspec.Struct, frozen=True):
    proposed: tuple[Proposed, ...]
    left_out: tuple[LeftOut, ...]
    allowed: int
    """Targets that the policy at hand lets through."""


class _Wanted(msgspec.Struct):
    target: Target
    shown: str
    count: int = 0
    jobs: set[int] = msgspec.field(default_factory=set)
    careful: str = ""


def suggest(
    seen: Iterable[Seen],
    presets: Presets,
    *,
    present: Policy,
    images: Mapping[str, Sequence[str]] | None = None,
    preset_hosts: int = PRESET_HOSTS,
    hazards: bool = False,
) -> Suggestion:
    """What to add to ``present`` (the baseline, where there is no policy yet) so that it lets through what was ``seen``."""
    compiled = compile_policy(present)
    wanted: dict[tuple[str, str, int], _Wanted] = {}
    left: dict[tuple[str, str], int] = {}
    allowed: set[str] = set()
    for one in seen:
        if decide(compiled, one.flow).verdict == "allowed":
            allowed.add(one.shown)
            continue
        target, careful, why = _judged(one, compiled, presets, hazards=hazards)
        if target is None:
            left[one.shown, why] = left.get((one.shown, why), 0) + one.count
            continue
        known = wanted.setdefault((target.host, target.address, target.port), _Wanted(target, one.shown))
        known.count, known.careful = known.count + one.count, careful
        known.jobs.add(one.who.job_id)
    proposed = _proposed(list(wanted.values()), presets, compiled, images or {}, preset_hosts)
    return Suggestion(
        proposed=tuple(proposed),
        left_out=tuple(LeftOut(name, count, why) for (name, why), count in sorted(left.items())),
        allowed=len(allowed),
    )


def whole_policy(made: Suggestion, *, mode: str = "enforce") -> str:
    """The suggestion as a policy file of its own."""
    lines = [f"mode: {mode}", "allow:" if made.proposed else "allow: []"]
    for one in made.proposed:
        lines += [f"  # {one.note}", f"  - {entry_text(one.entry)}"]
    return "\n".join([*lines, *left_out_lines(made)]) + "\n"


def left_out_lines(made: Suggestion) -> list[str]:
    """What was left out, as comments."""
    if not made.left_out:
        return []
    return ["# Seen and left out:", *(f"#   {one.target} ({one.count} times): {one.why}" for one in made.left_out)]


def _judged(one: Seen, compiled: CompiledPolicy, presets: Presets, *, hazards: bool) -> tuple[Target | None, str, str]:
    """What to allow and what is known against it; or None, and why it is left out."""
    why = _stays_shut(one, compiled)
    if why:
        return None, "", why
    if not one.host:
        return Target(one.port, address=one.address), "an address can be given to another tomorrow", ""
    try:
        host = read_name(one.host)
    except HostProblem as problem:
        return None, "", problem.message
    danger = host_danger(host, presets)
    if danger is not None and (danger.refused or not hazards):
        return None, "", danger.why
    return Target(443, host=host), danger.why if danger is not None else "", ""


def _stays_shut(one: Seen, compiled: CompiledPolicy) -> str:
    """Why no new rule should, or could, let it through; empty where one could."""
    decision = decide(compiled, one.flow)
    floor = floor_reason(one.address) if one.address else None
    reasons = (
        (one.verdict == "blocked" and not one.is_ruled, _why_not(one)),
        ("expected" in one.flags, "its blocks are expected"),
        (one.protocol == "icmp", "a ping has no rule of its own: it goes where a host or cidr rule lets something go"),
        (decision.reason == "denied", f"{decision.rule} denies it"),
        (floor is not None, f"it lies on the floor ({(floor or '').replace('_', ' ')})"),
        (one.port in NEVER_OPEN, NEVER_OPEN.get(one.port, "")),
        (not one.host and not one.address, "there was no address to write down"),
        (bool(one.host) and one.port != 443, "a host rule is HTTPS on port 443; another port needs a cidr rule"),
    )
    return next((why for applies, why in reasons if applies), "")


def _why_not(one: Seen) -> str:
    words = {
        "http": "plain HTTP is never allowed; use https",
        "icmp": "ICMP is not for the profile runner; with sandbox, pings go where a rule lets something go",
        "quic": "QUIC is never allowed; clients go on with TLS over TCP",
        "ech": "its hello was encrypted (ECH); allow_ech: true lets such hellos pass",
        "name_budget": "too many names under one wildcard",
    }
    return words.get(one.reason, f"no rule is about it ({one.reason.replace('_', ' ')})")


def _proposed(
    wanted: list[_Wanted],
    presets: Presets,
    compiled: CompiledPolicy,
    images: Mapping[str, Sequence[str]],
    preset_hosts: int,
) -> list[Proposed]:
    """Presets first, then the rest by name."""
    rest, found = list(wanted), []
    there = {rule.id.partition("@")[0] for rule in compiled.policy.rules}
    left = [p for p in presets.by_name.values() if not p.builtin and f"preset/{p.name}" not in there]
    while (best := _best_preset(rest, left, compiled, images, preset_hosts)) is not None:
        preset, held = best
        found.append(_one(NewEntry(preset=preset.name), held))
        rest = [one for one in rest if one not in held]
        left.remove(preset)
    for one in sorted(rest, key=lambda one: (one.target.host.split(".")[::-1], one.shown)):
        target = one.target
        acknowledge = ACKNOWLEDGE if one.careful and target.host else ""
        ports = (target.port,) if target.address and target.port != 443 else ()
        cidr = f"{target.address}/32" if target.address else ""
        found.append(_one(NewEntry(host=target.host, cidr=cidr, ports=ports, acknowledge=acknowledge), [one]))
    return found


def _best_preset(
    rest: list[_Wanted],
    left: list[Preset],
    compiled: CompiledPolicy,
    images: Mapping[str, Sequence[str]],
    preset_hosts: int,
) -> tuple[Preset, list[_Wanted]] | None:
    """The preset that holds most of ``rest``, and of those the one that opens least beside it; None where none is worth it."""
    ranked = []
    for preset in left:
        rules = preset.rules(images.get(preset.name, ()))
        held = [one for one in rest if any(names(rule, one.target) for rule in rules)]
        unused = [
            rule
            for rule in rules
            if not any(names(rule, one.target) for one in held)
            and not (rule.host and compiled.host_rule("allow", rule.host) is not None)
        ]
        if held and (len(held) >= preset_hosts or not unused):
            ranked.append((-len(held), len(unused), preset.name, preset, held))
    if not ranked:
        return None
    _, _, _, preset, held = min(ranked, key=lambda item: item[:3])
    return preset, held


def _one(entry: NewEntry, held: Sequence[_Wanted]) -> Proposed:
    return Proposed(
        entry=entry,
        targets=tuple(sorted(one.shown for one in held)),
        count=sum(one.count for one in held),
        jobs=len({job for one in held for job in one.jobs}),
        careful="" if entry.preset else held[0].careful,
    )
