"""Why a policy lets something through or doesn't: the rule that decides, those beside it, and what would have to be written.

The answer is `orchestrator.core.policy.decide`'s own; nothing here decides a second time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network

import msgspec

from orchestrator.core.effective import effective_policy
from orchestrator.core.errors import UserError
from orchestrator.core.flow import Flow
from orchestrator.core.hazards import host_danger
from orchestrator.core.host_pattern import matches, read_name
from orchestrator.core.policy import Decision, Mode, Policy, Rule, compile_policy, decide
from orchestrator.core.policy_document import PolicyFile
from orchestrator.core.policy_edit import NewEntry, entry_text
from orchestrator.core.policy_entries import NEVER_OPEN
from orchestrator.core.presets import Presets


class Target(msgspec.Struct, frozen=True):
    """One of ``host`` and ``address`` is set."""

    port: int = 443
    host: str = ""
    address: str = ""

    @property
    def shown(self) -> str:
        return self.host or self.address


class Explanation(msgspec.Struct, frozen=True):
    target: Target
    mode: Mode
    decision: Decision
    rule: Rule | None
    """The one that decides, where one does."""
    also: tuple[Rule, ...]
    """Others that name the target and don't decide."""
    because: str
    """In a sentence, for a person."""
    presets: tuple[str, ...]
    """Presets that hold it and aren't in the policy."""
    danger: str
    """What is known against allowing it; empty for nothing."""
    to_allow: str
    """The entry of ``allow:`` that would let it through; empty where none could, or none is needed."""
    notes: tuple[str, ...] = ()


def target_of(text: str, port: int) -> Target:
    """What a person names: a host or an IPv4 address.  Raises `HostProblem`."""
    try:
        return Target(port, address=str(IPv4Address(text)))
    except AddressValueError:
        return Target(port, host=read_name(text))


def explain(
    policy: Policy, target: Target, presets: Presets, images: Mapping[str, Sequence[str]] | None = None
) -> Explanation:
    """Why ``policy`` decides as it does about a connection to ``target``."""
    decision = decide(compile_policy(policy), flow_of(target))
    naming = [rule for rule in policy.rules if names(rule, target)]
    winner = next((rule for rule in naming if rule.id == decision.rule), None)
    opened = decision.verdict == "allowed"
    danger = host_danger(target.host, presets) if target.host else None
    holding = () if opened else _presets_with(target, policy, presets, images or {})
    return Explanation(
        target=target,
        mode=policy.mode,
        decision=decision,
        rule=winner,
        also=tuple(rule for rule in naming if rule is not winner),
        because=_because(decision, winner, target),
        presets=holding,
        danger=danger.why if danger is not None else "",
        to_allow="" if opened else _to_allow(decision, target, holding, danger is not None),
    )


def explain_files(
    org: PolicyFile | None,
    repo: PolicyFile | None,
    target: Target,
    presets: Presets,
    images: Mapping[str, Sequence[str]] | None = None,
) -> Explanation:
    """Like `explain`, for what holds under both files, and with what each of them says by itself.

    Raises UserError where the two don't go together.
    """
    policy = effective_policy(org, repo, presets.builtin, images)
    made = explain(policy, target, presets, images)
    if org is None or made.decision.verdict == "allowed":
        return made
    return msgspec.structs.replace(made, notes=_organisation_notes(org, repo, target, presets, images))


def flow_of(target: Target) -> Flow:
    if target.host:
        return Flow("tls", target.port, name=target.host)
    return Flow("tls" if target.port == 443 else "tcp", target.port, address=target.address)


def names(rule: Rule, target: Target) -> bool:
    """True where ``rule`` is about the target's name or address, and its port."""
    if rule.ports and target.port not in rule.ports:
        return False
    if rule.host:
        return bool(target.host) and matches(rule.host, target.host)
    return bool(target.address) and IPv4Address(target.address) in IPv4Network(rule.cidr)


def where(rule: Rule) -> str:
    """The rule, and where it is written: ``org#3 (policy.yml:7)``."""
    return f"{rule.id} ({rule.origin})" if rule.origin else rule.id


def _because(decision: Decision, rule: Rule | None, target: Target) -> str:
    if rule is not None:
        return f"{where(rule)} {'allows' if decision.verdict == 'allowed' else 'denies'} {rule.host or rule.cidr}"
    if decision.reason.startswith("floor_"):
        part = decision.reason.removeprefix("floor_").replace("_", " ")
        lifted = "; the organisation's policy can lift it, with private:" if part == "private" else ""
        return f"it lies on the floor ({part}), which no rule and no mode reaches{lifted}"
    if decision.reason == "missing_sni":
        return "a connection to port 443 that names no host needs a cidr rule for its address"
    if target.port in NEVER_OPEN:
        return NEVER_OPEN[target.port]
    if target.host and target.port != 443:
        return "a host's name is judged on port 443 alone; another port is opened by a cidr rule"
    passes = "; the mode is warn, so it passes and is recorded as would-block" if decision.passes else ""
    return "no rule names it" + passes


def _to_allow(decision: Decision, target: Target, presets: Sequence[str], dangerous: bool) -> str:
    if decision.reason.startswith("floor_") or decision.reason == "denied" or target.port in NEVER_OPEN:
        return ""
    if presets and not dangerous:
        return entry_text(NewEntry(preset=presets[0]))
    if target.address:
        ports = () if target.port == 443 else (target.port,)
        return entry_text(NewEntry(cidr=f"{target.address}/32", ports=ports))
    if target.port != 443:
        return ""
    return entry_text(NewEntry(host=target.host, acknowledge="REASON" if dangerous else ""))


def _presets_with(
    target: Target, policy: Policy, presets: Presets, images: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The smallest first."""
    there = {
        rule.id.partition("@")[0].removeprefix("preset/") for rule in policy.rules if rule.id.startswith("preset/")
    }
    found = []
    for preset in presets.by_name.values():
        rules = preset.rules(images.get(preset.name, ()))
        if not preset.builtin and preset.name not in there and any(names(rule, target) for rule in rules):
            found.append((len(rules), preset.name))
    return tuple(name for _, name in sorted(found))


def _organisation_notes(
    org: PolicyFile,
    repo: PolicyFile | None,
    target: Target,
    presets: Presets,
    images: Mapping[str, Sequence[str]] | None,
) -> tuple[str, ...]:
    """Whether the repository could allow it by itself."""
    if repo is None or repo.allow is None:
        return ()
    alone = msgspec.structs.replace(org, repository_file="optional", tests=())
    try:
        policy = effective_policy(alone, None, presets.builtin, images)
    except UserError:
        return ()
    above = decide(compile_policy(policy), flow_of(target))
    if above.verdict == "allowed":
        rule = next((rule for rule in policy.rules if rule.id == above.rule), None)
        said = where(rule) if rule is not None else above.rule
        return (f"the organisation's {said} would allow it; the repository's list leaves it out",)
    if above.reason == "denied":
        return ("the organisation denies it, and no repository can allow it",)
    if org.repositories_may == "narrow":
        return (f"the organisation's list ({org.source}) must name it first: repositories may only pick from that",)
    return ()
