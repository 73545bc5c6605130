"""Misbehaviour on demand: what the simulated GitHub does wrong, to whom, how often and for how long.

=================  ================================================================================================
`ResponseFault`    a request is answered by the fault, in place of the endpoint or after it did its work
`DeliveryFault`    webhook deliveries are dropped, failed, doubled or late
`Quirk`            GitHub Actions itself behaves oddly: which runner gets a job, what is told of it
`Act`              somebody does something: suspends the App, renames a repository, sends hostile payloads
=================  ================================================================================================

All share `When`.  The first that fits wins and is used up by one.  `orchestrator.simulator.github.catalogue` has those
that have a name; chance is drawn from a generator that can be seeded, so a rehearsal can be repeated.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import msgspec


class When(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """``times`` uses from ``in_s`` seconds after it was declared, for ``for_s`` seconds, each with ``chance``.

    ``times`` and ``for_s`` are None where there is no such limit.  ``name`` is the catalogue's; `since` is set by `Faults`.
    """

    name: str = ""
    times: int | None = None
    chance: float = 1.0
    in_s: float = 0.0
    for_s: float | None = None
    since: float = 0.0

    @property
    def begins(self) -> float:
        return self.since + self.in_s

    @property
    def ends(self) -> float:
        """Seconds since the epoch; infinite for one that doesn't end by itself."""
        return float("inf") if self.for_s is None else self.begins + self.for_s

    def is_on(self, now: float) -> bool:
        return self.times != 0 and self.begins <= now < self.ends


class ResponseFault(When, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """``path`` is a regular expression for the whole path; ``method`` empty for any; ``host`` empty for any.

    ``status`` 0 means: no answer of its own, only the delay.  ``after``: the endpoint does its work first (the POST that
    succeeded and whose answer was lost).  ``{until}`` in a header stands for the second at which the fault ends.
    """

    path: str
    method: str = ""
    host: str = ""
    status: int = 0
    body: Any = None
    headers: dict[str, str] = {}
    delay_s: float = 0.0
    after: bool = False

    def fits(self, host: str, method: str, path: str) -> bool:
        return (
            self.method.upper() in ("", method)
            and self.host in ("", host)
            and re.fullmatch(self.path, path) is not None
        )


class DeliveryFault(When, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """``drop``: GitHub never makes the delivery.  ``fail``: it is on GitHub's list, as 502, and never arrived.

    ``delay``: it is late by ``delay_s`` seconds and up to ``jitter_s`` more, and holds no other back; ``until_end``: it is
    late until the fault ends.
    """

    effect: Literal["drop", "fail", "duplicate", "delay"]
    event: str = ""
    action: str = ""
    repository: str = ""
    delay_s: float = 0.0
    jitter_s: float = 0.0
    until_end: bool = False

    def fits(self, event: str, action: str | None, repository: str = "") -> bool:
        return (
            self.event in ("", event)
            and self.action in ("", action or "")
            and self.repository.lower() in ("", repository.lower())
        )


Effect = Literal["busy-lies", "start-lost", "another-runner", "acquire-404", "ghost", "jit-lag", "queued-first"]


class Quirk(When, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """``busy-lies``: a runner with a job shows as idle.  ``start-lost``: a job is assigned and its runner never told.
    ``another-runner``: runners and jobs that fit are paired at random.  ``acquire-404``: the runner is told of a job that it can't
    take, and its registration is gone.  ``ghost``: a registration outlives its job.  ``jit-lag``: a registration isn't
    known for ``by_s`` seconds.  ``queued-first``: a job that waits for approval is announced as queued before.
    """

    effect: Effect
    repository: str = ""
    by_s: float = 0.0


Doing = Literal["suspend", "uninstall", "rename", "foreign", "hostile"]


class Act(When, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """``suspend``, ``uninstall``: the App, undone when the fault ends.  ``rename``: a repository, for good.  ``foreign``,
    ``hostile``: a payload of somebody else's installation, or one that is no payload, is sent every ``every_s`` seconds.
    """

    does: Doing
    repository: str = ""
    every_s: float = 10.0
    done_at: float = 0.0
    undone: bool = False


class FaultSet(msgspec.Struct, forbid_unknown_fields=True):
    """Faults as they are declared."""

    responses: list[ResponseFault] = []
    deliveries: list[DeliveryFault] = []
    quirks: list[Quirk] = []
    acts: list[Act] = []

    def every(self) -> list[When]:
        return [*self.responses, *self.deliveries, *self.quirks, *self.acts]


_Fault = TypeVar("_Fault", bound=When)


class Faults:
    """All faults in force.  Its lists may be changed at any time; `Faults.by` sets its clock and its chance."""

    def __init__(self) -> None:
        self.responses: list[ResponseFault] = []
        self.deliveries: list[DeliveryFault] = []
        self.quirks: list[Quirk] = []
        self.acts: list[Act] = []
        self.used: Counter[str] = Counter()
        """Uses by name, of faults that have one."""
        self._clock: Callable[[], float] = time.time
        self._chance = random.Random()  # noqa: S311 - chance, and no secret

    def by(self, clock: Callable[[], float], chance: random.Random | None = None) -> None:
        """Tell time by ``clock``, and draw from ``chance``."""
        self._clock = clock
        self._chance = chance or self._chance

    def now(self) -> float:
        return self._clock()

    def in_force(self) -> FaultSet:
        """Those that aren't used up or over, for people to read."""
        now = self._clock()

        def left(faults: Iterable[_Fault]) -> list[_Fault]:
            return [fault for fault in faults if fault.times != 0 and now < fault.ends]

        return FaultSet(left(self.responses), left(self.deliveries), left(self.quirks), left(self.acts))

    def declare(self, more: FaultSet) -> None:
        """Put ``more`` in force from now on."""
        for fault in more.every():
            fault.since = self._clock()
        self.responses += more.responses
        self.deliveries += more.deliveries
        self.quirks += more.quirks
        self.acts += more.acts

    def clear(self, name: str = "") -> None:
        """End all, or those of one name; what an act did is undone by `orchestrator.simulator.github.acts`."""
        self.responses[:] = [fault for fault in self.responses if name and fault.name != name]
        self.deliveries[:] = [fault for fault in self.deliveries if name and fault.name != name]
        self.quirks[:] = [fault for fault in self.quirks if name and fault.name != name]
        for act in self.acts:
            if not name or act.name == name:
                act.for_s = min(self._clock() - act.begins, act.for_s or float("inf"))

    def response(self, host: str, method: str, path: str) -> ResponseFault | None:
        """The fault for this request, if any; counts as a use of it."""
        return self._use([fault for fault in self.responses if fault.fits(host, method, path)])

    def delivery(self, event: str, action: str | None, repository: str = "") -> DeliveryFault | None:
        """The fault for this delivery, if any; counts as a use of it."""
        return self._use([fault for fault in self.deliveries if fault.fits(event, action, repository)])

    def quirk(self, effect: Effect, repository: str = "") -> Quirk | None:
        """The quirk of that effect, if any; counts as a use of it."""
        fitting = [q for q in self.quirks if q.effect == effect and q.repository.lower() in ("", repository.lower())]
        return self._use(fitting)

    def lateness(self, fault: DeliveryFault) -> float:
        """Seconds by which a delivery is late."""
        late = fault.delay_s + self._chance.uniform(0.0, fault.jitter_s) if fault.jitter_s else fault.delay_s
        left = max(0.0, fault.ends - self._clock()) if fault.until_end and fault.for_s is not None else 0.0
        return late + left

    def drawn(self, choices: int) -> int:
        """One of ``choices`` numbers from 0."""
        return self._chance.randrange(choices)

    def note(self, fault: When) -> None:
        """Count a use of ``fault``."""
        if fault.times is not None:
            fault.times -= 1
        if fault.name:
            self.used[fault.name] += 1

    def _use(self, fitting: list[_Fault]) -> _Fault | None:
        if not fitting:
            return None
        now = self._clock()
        fault = next((item for item in fitting if item.is_on(now) and self._happens(item)), None)
        if fault is not None:
            self.note(fault)
        return fault

    def _happens(self, fault: When) -> bool:
        return fault.chance >= 1.0 or self._chance.random() < fault.chance
