"""What stands in front of every call to GitHub: it spends the rate limit on what matters most, and sees outages.

**Rate limit.**  Each kind of call may use an installation's limit down to a floor and leaves the rest to those above it:
registering a runner, and reading the policy that this needs, may use all, removing one all but 2 %, asking about a job all but 5 %, sweeps all but 10 %.  Where
GitHub says how long to wait, nothing is asked until then.  What makes something at GitHub goes at most 150 at once and
80 a minute, below GitHub's secondary limits, and registrations before statuses.

**Outage.**  Five failures in a row open the circuit: calls fail at once, no runner is registered, and the deadlines of
runners that wait for GitHub stand still (`orchestrator.control.outage`).  Each 30 s one harmless call is let through, and
if that is answered the circuit closes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import Literal

import msgspec

from orchestrator.control.github import RateLimited, Unavailable
from orchestrator.control.github_transport import Limit

Kind = Literal["register", "policy", "delete", "check", "tell", "sweep"]
"""``policy``: a policy file, without which nothing is registered; ``tell``: a status or check run."""

FLOORS: dict[Kind, float] = {"register": 0.0, "policy": 0.0, "delete": 0.02, "check": 0.05, "tell": 0.05, "sweep": 0.10}
FAILURES = 5
PROBE_S = 30.0
BURST = 150.0
PER_S = 80 / 60
REGISTRATION = "actions_runner_registration"


class Bucket(msgspec.Struct):
    """Tokens for what makes something at GitHub."""

    at: float
    left: float = BURST

    def take(self, now: float, keep: float) -> float:
        """Take one and leave ``keep``; seconds until there is one where there is none now, else 0."""
        self.left = min(BURST, self.left + max(0.0, now - self.at) * PER_S)
        self.at = now
        if self.left - keep < 1.0:
            return (keep + 1.0 - self.left) / PER_S
        self.left -= 1.0
        return 0.0


class Governor:
    """One for each process.  ``limits``: what GitHub told last, by installation (0: the App itself) and resource."""

    def __init__(
        self, *, clock: Callable[[], float], limits: MutableMapping[tuple[int, str], Limit] | None = None
    ) -> None:
        self._clock = clock
        self.limits = limits if limits is not None else {}
        self.held: Counter[tuple[Kind, str]] = Counter()
        """Calls that weren't made, by kind and why: ``outage``, ``limit``, ``wait``, ``pace``."""
        self.open_since = 0.0
        """When the first of the failures was that opened the circuit; 0 where it is closed."""
        self._failures = 0
        self._failing_since = 0.0
        self._probe_at = 0.0
        self._parked: dict[tuple[int, str], float] = {}
        self._buckets: dict[int, Bucket] = {}

    # The rate limit

    def admit(self, kind: Kind, installation: int) -> None:
        """Return where the call may be made.  Raises `Unavailable` in an outage, and `RateLimited`."""
        now = self._clock()
        if self.open_since:
            self.held[kind, "outage"] += 1
            raise Unavailable(f"it has failed since {now - self.open_since:.0f} s")
        resource = self._resource(kind, installation)
        until = max(self._parked.get((installation, ""), 0.0), self._parked.get((installation, resource), 0.0))
        if until > now:
            self.held[kind, "wait"] += 1
            raise RateLimited("it asked for a pause", until - now, ours=True)
        limit = self._limit(installation, resource)
        if limit is not None and limit.remaining <= FLOORS[kind] * limit.limit:
            self.held[kind, "limit"] += 1
            what = f"{limit.remaining} of {limit.limit} requests are left, which are kept for what matters more"
            raise RateLimited(what if limit.remaining else "it is used up", limit.reset_at - now, ours=True)
        if kind in ("register", "tell"):
            self._pace(kind, installation, now)

    def share(self, installation: int) -> float:
        """How much is left of the installation's limit, from 0 to 1."""
        limit = self._limit(installation, "core")
        return 1.0 if limit is None or limit.limit <= 0 else limit.remaining / limit.limit

    def limited(self, installation: int, error: RateLimited) -> None:
        """GitHub said so itself."""
        now = self._clock()
        self._parked = {key: until for key, until in self._parked.items() if until > now}
        self._parked[installation, error.resource] = now + error.retry_after

    def _pace(self, kind: Kind, installation: int, now: float) -> None:
        bucket = self._buckets.setdefault(installation, Bucket(now))
        wait = bucket.take(now, keep=BURST / 2 if kind == "tell" else 0.0)
        if wait:
            self.held[kind, "pace"] += 1
            raise RateLimited("its limit for what is made in a minute is kept", max(1.0, wait), ours=True)

    def _resource(self, kind: Kind, installation: int) -> str:
        return REGISTRATION if kind == "register" and (installation, REGISTRATION) in self.limits else "core"

    def _limit(self, installation: int, resource: str) -> Limit | None:
        """What was told last; None where nothing was, or the limit has been reset since."""
        limit = self.limits.get((installation, resource))
        return limit if limit is not None and limit.reset_at > self._clock() else None

    # Outages

    def answered(self) -> None:
        """GitHub answered, whatever it said.  A circuit that is open is closed by a probe only."""
        self._failures = 0

    def failed(self) -> None:
        """No answer, or one of 5xx."""
        now = self._clock()
        self._failing_since = now if not self._failures else self._failing_since
        self._failures += 1
        if self._failures >= FAILURES and not self.open_since:
            self.open_since, self._probe_at = self._failing_since, now + PROBE_S

    def resume(self, since: float) -> None:
        """A worker before this one saw an outage begin: it lasts until a probe is answered."""
        self.open_since, self._probe_at = since, 0.0

    def wants_probe(self) -> bool:
        return bool(self.open_since) and self._clock() >= self._probe_at

    def probed(self, *, answered: bool) -> None:
        self._probe_at = self._clock() + PROBE_S
        if answered:
            self.open_since = 0.0
            self._failures = 0
