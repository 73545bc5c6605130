"""The faults that have a name, so that a person can ask for one: ``ironcd simulate outage --for 5m``.

Each is made of the parts in `orchestrator.simulator.github.faults`.  ``row`` is the failure, of the twenty known ones of
such systems, that it brings about (`docs/operations/rehearse.md`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from orchestrator.core.errors import UserError
from orchestrator.simulator.github.faults import Act, DeliveryFault, Effect, FaultSet, Quirk, ResponseFault, When

JIT = r"/(orgs|repos)/.*/actions/runners/generate-jitconfig"
RUNNER = r"/(orgs|repos)/.*/actions/runners/\d+"
API = "api.github.com"
JOBS = "workflow_job"
SECONDARY = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named fault with when, how often, how long and where."""

    fault: str
    in_s: float = 0.0
    for_s: float | None = None
    count: int | None = None
    chance: float = 1.0
    by_s: float = 0.0
    """How late, of faults that are about lateness; 0 for what the catalogue has."""
    repository: str = ""
    """``owner/name``; empty for all."""


class Known(msgspec.Struct, frozen=True):
    row: str
    what: str
    make: Callable[[Order], list[When]]
    count: int | None = None
    """How often, where the order doesn't say."""
    for_s: float | None = None
    by_s: float = 0.0


def fault_set(order: Order) -> FaultSet:
    """What ``order`` stands for.  Raises UserError (code ``fault-unknown``) for a name that isn't in the catalogue."""
    known = CATALOGUE.get(order.fault)
    if known is None:
        raise unknown(order.fault)
    unlimited = order.count is None and order.for_s is None
    full = msgspec.structs.replace(
        order,
        count=known.count if unlimited else order.count,
        for_s=known.for_s if unlimited else order.for_s,
        by_s=order.by_s or known.by_s,
    )
    made = FaultSet()
    for part in known.make(full):
        part.name, part.times, part.for_s = full.fault, full.count, full.for_s
        part.chance, part.in_s = full.chance, full.in_s
        match part:
            case ResponseFault():
                made.responses.append(part)
            case DeliveryFault():
                made.deliveries.append(part)
            case Quirk():
                made.quirks.append(part)
            case Act():
                made.acts.append(part)
    return made


def unknown(name: str) -> UserError:
    near = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]}? " if near else ""
    return UserError(
        f"the simulator has no fault called {name!r}",
        code="fault-unknown",
        remedy=f"{hint}See `ironcd simulate faults list`.",
    )


def _answer(
    status: int,
    path: str,
    *,
    method: str = "",
    message: str = "",
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Callable[[Order], list[When]]:
    body = {"message": message or "Simulated fault", "documentation_url": "https://docs.github.com/rest"}

    def make(order: Order) -> list[When]:
        where = path
        if order.repository:
            where = rf"(?=/repos/{order.repository}/|/orgs/){path}"
        fault = ResponseFault(
            path=where, method=method, host=API, status=status, body=body, headers=dict(headers or {})
        )
        return [msgspec.structs.replace(fault, **more)]

    return make


def _delivery(effect: str, action: str = "") -> Callable[[Order], list[When]]:
    def make(order: Order) -> list[When]:
        late, jitter = (order.by_s, order.by_s / 2) if effect == "delay" else (0.0, 0.0)
        base = {"effect": effect, "event": JOBS, "action": action, "repository": order.repository}
        return [msgspec.convert({**base, "delay_s": late, "jitter_s": jitter}, DeliveryFault)]

    return make


def _reordered(order: Order) -> list[When]:
    return [DeliveryFault(effect="delay", event=JOBS, repository=order.repository, jitter_s=order.by_s)]


def _quirk(effect: Effect) -> Callable[[Order], list[When]]:
    return lambda order: [Quirk(effect=effect, repository=order.repository, by_s=order.by_s)]


def _outage(_order: Order) -> list[When]:
    body = {"message": "We couldn't respond to your request in time. Sorry about that."}
    return [
        ResponseFault(path=".*", status=503, body=body),
        DeliveryFault(effect="delay", until_end=True, jitter_s=60.0),
    ]


def _act(does: str) -> Callable[[Order], list[When]]:
    def make(order: Order) -> list[When]:
        return [msgspec.convert({"does": does, "repository": order.repository, "every_s": order.by_s or 10.0}, Act)]

    return make


_USED_UP = {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "{until}"}

CATALOGUE: dict[str, Known] = {
    "delivery-dropped": Known("2", "GitHub never makes a delivery of a job's event", _delivery("drop"), count=1),
    "delivery-failed": Known("1", "A delivery is on GitHub's list as failed and never arrived", _delivery("fail"), count=1),
    "delivery-doubled": Known("3", "A delivery comes twice, under one id", _delivery("duplicate"), count=1),
    "delivery-late": Known("2", "A delivery is late, by minutes", _delivery("delay"), count=1, by_s=120.0),
    "delivery-reordered": Known("4", "Deliveries overtake one another", _reordered, for_s=300.0, by_s=20.0),
    "foreign-installation": Known("5", "Signed payloads of somebody else's installation come", _act("foreign"), count=3),
    "hostile-payload": Known("5", "Signed bodies come that are no payload", _act("hostile"), count=9),
    "other-runner": Known("6", "A job goes to any runner that fits, not the one made for it", _quirk("another-runner"), for_s=600.0),
    "start-lost": Known("6", "A job is assigned, and its runner is never told", _quirk("start-lost"), count=1),
    "gate-queued-twice": Known("8", "A job that waits for approval is announced as queued before", _quirk("queued-first"), for_s=600.0),
    "jit-timeout": Known("9", "A registration succeeds, and its answer is lost", _answer(504, JIT, method="POST", after=True, delay_s=20.0), count=1),
    "jit-conflict": Known("9", "409: the runner's name is taken", _answer(409, JIT, method="POST", message="Already exists"), count=1),
    "jit-invalid": Known("9", "422: labels or group aren't valid", _answer(422, JIT, method="POST", message="Validation Failed"), count=1),
    "jit-forbidden": Known("9", "403: the App may not register runners", _answer(403, JIT, method="POST", message="Resource not accessible by integration"), count=1),
    "jit-missing": Known("9", "404: organisation, repository or group isn't found", _answer(404, JIT, method="POST", message="Not Found"), count=1),
    "jit-full": Known("9", "422: 10,000 runners are registered", _answer(422, JIT, method="POST", message="Runner group has reached the max limit of 10000 runners"), count=1),
    "jit-lag": Known("13", "A registration isn't known anywhere for a moment", _quirk("jit-lag"), count=1, by_s=10.0),
    "rate-limit": Known("10", "The primary rate limit is used up", _answer(403, ".*", message="API rate limit exceeded", headers=_USED_UP), for_s=120.0),
    "rate-limit-pause": Known("10", "A secondary rate limit, with Retry-After", _answer(429, ".*", message=SECONDARY, headers={"Retry-After": "30"}), for_s=60.0),
    "rate-limit-wordless": Known("10", "A secondary rate limit that only its text tells", _answer(403, ".*", message=SECONDARY), for_s=60.0),
    "outage": Known("11", "GitHub answers 503 to everybody, and its deliveries wait", _outage, for_s=300.0),
    "errors": Known("11", "One in five requests is answered 502", _answer(502, ".*"), for_s=120.0),
    "lost-answers": Known("11", "Requests succeed, and are answered 502", _answer(502, ".*", after=True), count=3),
    "slow": Known("11", "Every answer takes five seconds", _answer(0, ".*", delay_s=5.0), for_s=60.0),
    "busy-lies": Known("14", "A runner with a job shows as idle", _quirk("busy-lies"), for_s=600.0),
    "delete-refused": Known("14", "422: the runner that is to be deleted has a job, it says", _answer(422, RUNNER, method="DELETE", message="Runner is still running a job"), count=1),
    "acquire-404": Known("16", "A runner is told of a job that it can't have, and its registration is gone", _quirk("acquire-404"), count=1),
    "ghost": Known("16", "A registration outlives its job", _quirk("ghost"), count=1),
    "completed-lost": Known("17", "The delivery that a job has ended is never made", _delivery("drop", "completed"), count=1),
    "suspended": Known("9", "The App is suspended, and let go on again", _act("suspend"), for_s=180.0),
    "uninstalled": Known("9", "The App is uninstalled, and installed again as another installation", _act("uninstall"), for_s=180.0),
    "renamed": Known("9", "A repository gets another name", _act("rename"), count=1),
}  # fmt: skip
