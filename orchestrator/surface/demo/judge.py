"""Keeps the score: what must hold of a run, judged by the outside and by the record.  Pure: evidence in, `Check` out.

Three witnesses of every attempt, none of which trusts another:

* the outside: what the allowed site, the attacker and the resolver received, and the traps behind the host's own ports;
* the ledger: the event that the wall wrote, with its verdict;
* the inside: what the job saw, which counts only where something was to succeed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from orchestrator.surface.attempts import Attempt
from orchestrator.surface.demo.workflow import ALLOWED, REFUSED, Probe

_LINE = "ironcd-probe "


class Check(msgspec.Struct, frozen=True):
    """One thing that must hold; ``seen`` says what was found."""

    name: str
    ok: bool
    seen: str


class Outside(msgspec.Struct, frozen=True):
    """What the other side received during the run; each entry is a line for people."""

    allowed: tuple[str, ...] = ()
    """Requests that the allowed site answered."""
    attacker: tuple[str, ...] = ()
    """Connections, datagrams and bytes that reached the attacker."""
    queries: tuple[str, ...] = ()
    """Names that the outside resolver was asked for."""
    traps: tuple[str, ...] = ()
    """Connections to the host's own ports."""
    sources: tuple[str, ...] = ()
    """Addresses that anything came from."""
    certificate: str = ""
    """SHA-256 of the allowed site's certificate (DER), in hexadecimal."""


def probe_results(log: str) -> dict[str, dict[str, Any]]:
    """What the job's log says of each probe, by name.  The log is the guest's: odd lines are passed over."""
    found: dict[str, dict[str, Any]] = {}
    for line in log.splitlines():
        _, mark, rest = line.partition(_LINE)
        if not mark:
            continue
        try:
            result = json.loads(rest)
            found[str(result["probe"])] = {"reached": bool(result["reached"]), "detail": str(result["detail"])}
        except (ValueError, KeyError, TypeError):
            continue
    return found


def judge_wall(
    probes: Sequence[Probe], results: dict[str, dict[str, Any]], outside: Outside, record: Sequence[Attempt]
) -> list[Check]:
    """One `Check` for each probe of one job, whose attempts are ``record``."""
    return [_judge_probe(probe, results.get(probe.name), outside, record) for probe in probes]


def judge_outside(outside: Outside, links: Iterable[str] = ()) -> list[Check]:
    """What must hold of the outside whoever tried: nothing at the attacker, no query for its names, no VM's address."""
    asked = [name for name in outside.queries if name == REFUSED or name.endswith("." + REFUSED)]
    guests = set(links)
    return [
        _nothing("the attacker received nothing", outside.attacker),
        _nothing("no name of the attacker's was asked outside", asked),
        _nothing("no port of the host itself was reached", outside.traps),
        _nothing("no VM's address was seen outside", [source for source in outside.sources if source in guests]),
    ]


def _nothing(name: str, found: Sequence[str]) -> Check:
    return Check(name, not found, "nothing" if not found else f"{len(found)}: " + "; ".join(found[:3]))


def _judge_probe(probe: Probe, result: dict[str, Any] | None, outside: Outside, record: Sequence[Attempt]) -> Check:
    if result is None:
        return Check(probe.title, ok=False, seen="the job did not get to it")
    if probe.want == "blocked":
        return _judge_blocked(probe, result, record)
    found = _find(probe, record, verdict="allowed")
    right = outside.certificate and f"cert_sha256={outside.certificate}" in result["detail"]
    if probe.want == "diverted":
        if not result["reached"]:
            return Check(probe.title, ok=True, seen="refused")
        ok = bool(right)
        return Check(probe.title, ok=ok, seen=f"reached {ALLOWED} itself" if ok else f"a stranger: {result['detail']}")
    missing = [
        text
        for text, holds in (
            (f"the job says: {result['detail']}", result["reached"]),
            ("another certificate than the site's", right),
            ("the site received no request", outside.allowed),
            ("no allowed event in the ledger", found is not None and found.rule),
        )
        if not holds
    ]
    if missing or found is None:
        return Check(probe.title, ok=False, seen="; ".join(missing))
    return Check(probe.title, ok=True, seen=f"allowed by {found.rule}, the site's own certificate")


def _judge_blocked(probe: Probe, result: dict[str, Any], record: Sequence[Attempt]) -> Check:
    if result["reached"]:
        return Check(probe.title, ok=False, seen=f"got through: {result['detail']}")
    found = _find(probe, record, verdict="blocked")
    if found is None:
        return Check(probe.title, ok=False, seen="blocked, and not on record")
    return Check(probe.title, ok=True, seen=f"blocked: {found.reason}")


def _find(probe: Probe, record: Sequence[Attempt], *, verdict: str) -> Attempt | None:
    """The ledger's line about ``probe``.  A refused name shows as a DNS refusal, whatever was to follow."""
    return next((attempt for attempt in record if attempt.verdict == verdict and _fits(probe, attempt)), None)


def _fits(probe: Probe, attempt: Attempt) -> bool:
    match probe.kind:
        case "tls":
            asked_first = probe.target == probe.server_name
            protocols = ("tls", "dns") if asked_first else ("tls",)
            return attempt.name == probe.server_name and attempt.protocol in protocols
        case "hello":
            to = (attempt.orig_dst, attempt.port, attempt.protocol) == (probe.target, probe.port, "tls")
            return to and attempt.reason == probe.reason
        case "dns":
            return attempt.name == probe.server_name
        case _:
            to = probe.target == "gateway" or probe.target in (attempt.orig_dst, attempt.name)
            return to and attempt.port == probe.port and attempt.protocol == probe.kind
