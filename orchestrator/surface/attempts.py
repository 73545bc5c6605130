"""Egress events put together into attempts: the open and close of one connection become one line with its bytes.

A pure function over events as the control plane serves them, for the terminal and for the demo's record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec


class Attempt(msgspec.Struct, omit_defaults=True):
    """One attempt to reach something.  ``name`` is the host name, or the address where there was none."""

    ts: float
    name: str
    protocol: str
    port: int
    verdict: str
    reason: str
    rule: str = ""
    resolved: str = ""
    orig_dst: str = ""
    mode: str = ""
    policy: str = ""
    repo: str = ""
    job: str = ""
    job_id: int = 0
    runner: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    duration_ms: int = 0
    close_reason: str = ""
    open: bool = False
    """Not ended yet: the bytes are those so far."""
    count: int = 1


COLUMNS = ("time", "name", "#port", "protocol", "verdict", "reason", "rule", "#up", "#down", "repository", "job")


def attempts(events: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """One `Attempt` for each connection and each refusal, in the order in which they began.

    Events other than attempts (``lost``, ``mark``) are left out.  A close whose open isn't among ``events`` stands for itself.
    """
    found: list[Attempt] = []
    by_conn: dict[str, Attempt] = {}
    for event in events:
        kind = event.get("event")
        if kind in ("lost", "mark"):
            continue
        conn = str(event.get("conn", ""))
        known = by_conn.get(conn) if conn else None
        if known is None:
            known = _attempt(event)
            found.append(known)
            if conn:
                by_conn[conn] = known
                known.open = kind in ("open", "progress") and known.verdict != "blocked"
        if kind in ("progress", "close"):
            _update(known, event, ended=kind == "close")
    return found


def _attempt(event: Mapping[str, Any]) -> Attempt:
    who = event.get("who", {})
    return Attempt(
        ts=event["ts"],
        name=event.get("host") or event.get("orig_dst", ""),
        protocol=event["protocol"],
        port=event.get("port", 0),
        verdict=event["verdict"],
        reason=event["reason"],
        rule=event.get("rule", ""),
        resolved=event.get("resolved", ""),
        orig_dst=event.get("orig_dst", ""),
        mode=event.get("mode", ""),
        policy=event.get("policy", ""),
        repo=who.get("repo", ""),
        job=who.get("job", ""),
        job_id=who.get("job_id", 0),
        runner=who.get("runner", ""),
        count=event.get("count", 1),
    )


def _update(attempt: Attempt, event: Mapping[str, Any], *, ended: bool) -> None:
    attempt.bytes_up = max(attempt.bytes_up, event.get("bytes_up", 0))
    attempt.bytes_down = max(attempt.bytes_down, event.get("bytes_down", 0))
    attempt.duration_ms = max(attempt.duration_ms, event.get("duration_ms", 0))
    if ended:
        attempt.open = False
        attempt.close_reason = event.get("close_reason", "")
