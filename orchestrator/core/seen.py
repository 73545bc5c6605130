"""What jobs tried to reach, out of the events of the record: one `Seen` for each job and target, however many events.

The open, progress and close of one connection are one attempt.  A name that was asked of the resolver and then connected to
is one target: jobs whose policy blocks a name don't get past the resolver.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from orchestrator.core.flow import Event, Flow, Identity, Protocol
from orchestrator.core.policy import is_dialled
from orchestrator.core.presets import IMAGE_HOSTS_LIMIT

Outcome = Literal["allowed", "warn", "blocked"]
_BEGINS = frozenset({"open", "dns", "drop"})
_ATTEMPTS = _BEGINS | {"progress", "close"}


class Seen(msgspec.Struct):
    """All attempts of one job at one target.  ``host`` is empty where there was no name, ``address`` where there was."""

    who: Identity
    protocol: Protocol
    port: int
    host: str
    address: str
    verdict: Outcome
    """The most open one that an attempt had."""
    reason: str
    rule: str
    flags: tuple[str, ...]
    first: float
    last: float
    count: int = 0

    @property
    def shown(self) -> str:
        """The target for people: ``api.example.com``, ``203.0.113.7:22``."""
        name = self.host or self.address or self.protocol
        return name if self.port == 443 or not self.port else f"{name}:{self.port}"

    @property
    def is_ruled(self) -> bool:
        """True where a rule, or the lack of one, decided: another policy could have decided otherwise."""
        return self.reason in _RULED or (self.protocol == "tcp" and self.reason in _KERNEL_RULED)

    @property
    def flow(self) -> Flow:
        """What a policy is asked about it."""
        if self.host:
            return Flow("icmp" if self.protocol == "icmp" else "tls", self.port, name=self.host)
        return Flow(self.protocol, self.port, address=self.address or None)


_RULED = frozenset({"rule", "not_allowed", "denied", "missing_sni"})
_KERNEL_RULED = frozenset({"ssh", "other"})
"""What the kernel says of TCP that it dropped for want of a range."""
_IMAGE_RULE = re.compile(r"preset/([a-z0-9-]+)@[0-9]+#image-[0-9]+")
_ORDER: dict[str, int] = {"blocked": 0, "warn": 1, "allowed": 2}
_Key = tuple[object, ...]


def seen_by_jobs(events: Iterable[Event]) -> list[Seen]:
    """In the order in which they were first tried.  Attempts before a runner had a job, and lost ones, are left out."""
    found: dict[_Key, Seen] = {}
    for event in events:
        if event.event not in _ATTEMPTS or not event.who.job_id or "suppressed" in event.flags:
            continue
        made = _seen(event)
        key: _Key = (
            made.who.repo,
            made.who.job_id,
            made.host,
            made.address,
            made.port,
            "" if made.host else made.protocol,
        )
        _add(found.setdefault(key, made), made, event.count if event.event in _BEGINS else 0)
    for seen in found.values():
        seen.count = max(1, seen.count)
    return sorted(found.values(), key=lambda seen: seen.first)


def images_seen(seen: Iterable[Seen]) -> dict[str, tuple[str, ...]]:
    """What presets got from jobs' images, as far as the record shows it: preset name to hosts.

    For where the image itself isn't at hand: a preset's hosts would otherwise seem to be missing from the policy.
    """
    found: dict[str, dict[str, None]] = {}
    for one in seen:
        rule = _IMAGE_RULE.fullmatch(one.rule)
        if rule is not None and one.host and one.verdict == "allowed":
            found.setdefault(rule[1], {})[one.host] = None
    return {name: tuple(hosts)[:IMAGE_HOSTS_LIMIT] for name, hosts in found.items()}


def _seen(event: Event) -> Seen:
    address = event.orig_dst if not event.host and is_dialled(event.orig_dst) else ""
    return Seen(
        who=event.who,
        protocol="tls" if event.protocol == "dns" and event.host else event.protocol,
        # A look-up has no port; what is looked up is meant for HTTPS, the one thing that a name opens.
        port=443 if event.protocol == "dns" and event.host else event.port,
        host=event.host,
        address=address,
        verdict=event.verdict,
        reason=event.reason,
        rule=event.rule,
        flags=event.flags,
        first=event.ts,
        last=event.ts,
    )


def _add(known: Seen, made: Seen, count: int) -> None:
    known.count += count
    known.first, known.last = min(known.first, made.first), max(known.last, made.last)
    if _ORDER[made.verdict] > _ORDER[known.verdict]:
        known.verdict, known.reason, known.rule, known.flags = made.verdict, made.reason, made.rule, made.flags
