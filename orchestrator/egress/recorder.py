"""Turns what happened into the ledger's events, and keeps a flood from filling it.

- What passes, and the end of it, always has lines of its own.
- Each VM may have ``events_per_second`` lines about what was blocked; past that, attempts are counted by kind, protocol and
  reason, and each second's counts become lines flagged ``suppressed``.
- A DNS refusal or kernel drop that repeats within a second (clients retry) becomes one more line with ``count``, flagged
  ``repeated``.

So the sum of ``count`` over the lines is the number of attempts, whatever came.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from orchestrator.core.flow import Event, EventKind, Identity, Protocol
from orchestrator.core.policy import Decision
from orchestrator.egress.bucket import Bucket
from orchestrator.egress.ledger import Ledger
from orchestrator.egress.links import LinkState

NOBODY = Identity(runner="")
_MERGED = frozenset({"dns", "drop"})
_MAX_WINDOWS = 10_000

_Key = tuple[str, ...]


class Recorder:
    def __init__(
        self,
        ledger: Ledger,
        *,
        gateway: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger = ledger
        self.gateway = gateway
        self._clock = clock
        self._monotonic = monotonic
        self._buckets: dict[str, Bucket] = {}
        self._repeated: dict[_Key, Event] = {}
        self._suppressed: dict[_Key, Event] = {}

    def event(
        self, kind: EventKind, state: LinkState | None, protocol: Protocol, decision: Decision, **fields: Any
    ) -> Event:
        """An event about ``state``'s VM (None: nobody's that we know) with the fields that only its kind has."""
        policy: dict[str, Any] = {}
        if state is not None:
            link = state.link
            policy = {"mode": link.policy.mode, "policy": state.policy.digest, "generation": link.generation}
        return Event(
            event=kind,
            ts=self.now(),
            seq=0,
            gateway=self.gateway,
            who=NOBODY if state is None else state.link.identity,
            protocol=protocol,
            verdict=decision.verdict,
            reason=decision.reason,
            rule=decision.rule,
            would_block=decision.would_block,
            **policy,
            **fields,
        )

    def now(self) -> float:
        """An event's ``ts``: seconds since the epoch, to the millisecond."""
        return round(self._clock(), 3)

    def always(self, event: Event) -> None:
        """Record ``event`` on a line of its own."""
        self.ledger.append(event)

    def limited(self, tap: str, event: Event, *, per_second: int = 100) -> None:
        """Record ``event`` of the VM behind ``tap``, on a line of its own or as part of a count."""
        if event.event in _MERGED and self._repeats(tap, event):
            return
        now = self._monotonic()
        bucket = self._buckets.get(tap)
        if bucket is None:
            bucket = self._buckets[tap] = Bucket(per_second, per_second, now)
        bucket.rate = bucket.burst = per_second
        if bucket.take(now):
            self.ledger.append(event)
        else:
            _count(self._suppressed, (tap, event.event, event.protocol, event.verdict, event.reason), event)

    def flush(self) -> None:
        """Write the counts gathered since the last time.  To be called each second."""
        repeated, self._repeated = self._repeated, {}
        suppressed, self._suppressed = self._suppressed, {}
        for event in repeated.values():
            if event.count > 1:
                flags = (*event.flags, "repeated")
                self.ledger.append(msgspec.structs.replace(event, count=event.count - 1, flags=flags))
        for event in suppressed.values():
            flags = ("suppressed",)
            blank = {"host": "", "host_source": "", "orig_dst": "", "resolved": "", "port": 0, "conn": "", "rule": ""}
            self.ledger.append(msgspec.structs.replace(event, flags=flags, tls={}, **blank))

    def forget(self, tap: str) -> None:
        """A VM is gone: so is its bucket."""
        self._buckets.pop(tap, None)

    def _repeats(self, tap: str, event: Event) -> bool:
        key = (
            tap,
            event.event,
            event.protocol,
            event.verdict,
            event.reason,
            event.host,
            event.orig_dst,
            str(event.port),
        )
        known = key in self._repeated
        if known or len(self._repeated) < _MAX_WINDOWS:
            _count(self._repeated, key, event)
        return known


def _count(counts: dict[_Key, Event], key: _Key, event: Event) -> None:
    """Keep the newest event of each key, with the number of attempts that it stands for."""
    before = counts.get(key)
    counts[key] = event if before is None else msgspec.structs.replace(event, count=before.count + event.count)
