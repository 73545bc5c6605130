"""What must be so at the end, whatever happened: nothing here knows of any fault but what it may honestly have cost.

A job was served by one runner, or its user ended it, or a declared rule did, with the reason on record:

* ``infrastructure``: its machine was lost in the middle of it (crash, reboot, a host out of reach for too long), or had
  lived for as long as its class may; or GitHub was out of its runner's reach until the job's lock had run out;
* ``refused``: GitHub wouldn't register a runner for it (401, 403, 404, 422), and says why;
* ``given_up``: more machines in a row failed for it than are tried.

Of the last two the job says so, and its user ends it.
"""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.control.changes import Names
from orchestrator.control.records import RunnerRecord
from orchestrator.control.store import Store
from orchestrator.simulator.github.state import Job
from tests.chaos.chronicle import TICK_S, longest_outside_s
from tests.chaos.guest import Guest
from tests.chaos.mortal import Mortal

if TYPE_CHECKING:
    from tests.chaos.city import City

PREFIX = "t:"
PASSING = ("seen:", "foreign:", "jobs:said:", "reruns:")
"""Keys that go by themselves."""


async def keys_left(store: Store, prefix: str = PREFIX) -> list[str]:
    """What Redis has of a system at rest beyond what it may have: keys with a name of their own, but those of work that goes on."""
    names = Names(prefix)
    busy = {names.jobs, names.runners, names.lease, names.outage, names.jit}
    kept = {getattr(names, name) for name, it in inspect.getmembers(Names) if isinstance(it, property)} - busy
    keys = {key.decode() for key in await store.client.keys(f"{prefix}*")}
    mortal = tuple(prefix + name for name in PASSING)
    passing = {key for key in keys if key.startswith(mortal) and await store.client.ttl(key) > 0}
    return sorted(keys - kept - passing)


class Oracle:
    patience_s = 60.0
    """A job may be known for so long before it says for what it waits."""

    def __init__(self, city: City) -> None:
        self.city = city
        self.store = Store(city.memory.client(Mortal("oracle")), PREFIX)
        self.unreasoned: set[int] = set()
        self.ended: dict[int, str] = {}
        """Jobs that were refused a machine for good, and by which rule."""

    async def look(self) -> None:
        """While it runs: a job that waits says for what, and nothing is as it must not be."""
        if self.city.rules is not None:
            self.city.rules.look()
        if self.city.memory.away or not self.city.worker.running:
            return
        for record in await self.store.live_jobs():
            job = record.job
            known_s = self.city.now() - max((moment.at for moment in job.story), default=self.city.now())
            if job.wants_runner and not job.reason and known_s > self.patience_s:
                self.unreasoned.add(job.id)
                self.city.journal.fault(f"job {job.id} waits and nobody knows for what: {record}")

    async def give_up(self) -> None:
        """Users end what is refused for good, once they have read why."""
        for record in await self.store.live_jobs():
            job = self.city.github.state.jobs.get(record.job.id)
            if job is None or job.status != "queued" or not record.permanent:
                continue
            if record.permanent.startswith(("GitHub refuses", "GitHub doesn't know it")):
                self.ended[job.id] = "refused"
            elif "runners failed; the last one:" in record.permanent:
                self.ended[job.id] = "given_up"
            self.city.journal.note(f"job {job.id} is ended by its user: {record.permanent}")
            self.city.github.engine.cancel_job(job)

    async def at_rest(self) -> bool:
        """Everything that was begun has ended."""
        if not self.city.settled or any(job.status != "completed" for job in self.city.github.state.jobs.values()):
            return False
        if await self.store.live_runners() or await self.store.live_jobs() or (await self.store.lengths())["inbox"]:
            return False
        return not any(await self._leaked())

    async def _leaked(self) -> list[str]:
        return [kind for kind, things in (await self.leaked()).items() if things and kind != "redis_keys"]

    async def leaked(self) -> dict[str, list[str]]:
        """What is left of ours, by kind."""
        found: dict[str, list[str]] = {}
        for host in self.city.hosts:
            for kind, things in host.left().items():
                found.setdefault(kind, []).extend(f"{host.name}:{thing}" for thing in things)
        runners = self.city.github.state.runners.values()
        found["runners"] = [runner.name for runner in runners if runner.name not in self.city.strangers]
        found["redis_keys"] = await keys_left(self.store)
        found["deliveries"] = ["?"] * (await self.store.lengths())["inbox"]
        return found

    def foreign_gone(self) -> list[str]:
        """What is missing of somebody else's."""
        names = {runner.name for runner in self.city.github.state.runners.values()}
        planted = [name for name in self.city.strangers if not name.startswith("stranger-")]
        gone = [f"github: {name}" for name in planted if name not in names]
        return gone + [what for host in self.city.hosts for what in host.foreign_gone()]

    async def ends(self) -> tuple[Counter[str], list[str]]:
        """How the jobs ended, by kind, and what is wrong with those that ended otherwise."""
        kinds: Counter[str] = Counter()
        wrong = []
        for job in self.city.github.state.jobs.values():
            kind = await self._end_of(job)
            kinds[kind] += 1
            if kind in ("lost", "served_twice"):
                record = await self.store.job(job.id)
                story = [(round(m.at - job.created_at), m.what, m.detail) for m in record.job.story] if record else None
                had = self.city.taken.get(job.id, [])
                loss = self.city.losses.get(job.id)
                state = f"{job.status} {job.conclusion} assigned to {job.runner.name if job.runner else None}"
                wrong.append(f"job {job.id} {kind}: {state}, had {had}, lost to {loss}: {story}")
        return kinds, wrong

    async def _end_of(self, job: Job) -> str:
        city = self.city
        had = city.taken.get(job.id, [])
        if len(had) > 1:
            return "served_twice"
        if had and had[0].startswith("stranger-"):
            return "elsewhere"
        if job.conclusion == "success" and len(had) == 1:
            return "served"
        if job.id in city.cancelled and job.status == "completed":
            return "ended_by_user"
        if len(had) == 1 and job.status == "completed" and (self._was_unheard(job) or await self._was_declared(job)):
            return "infrastructure"
        if not had and job.id in self.ended:
            return self.ended[job.id]
        return "lost"

    def _was_unheard(self, job: Job) -> bool:
        """GitHub ended a job whose machine was there: since its runner's last word it was away whenever that may have tried.

        A runner that was heard tries again a minute later, and one that wasn't much sooner: any longer stretch in which
        GitHub answered would have been enough.
        """
        if job.id in self.city.losses or job.conclusion != "failure" or (job.completed_at or 0.0) <= job.locked_until:
            return False
        since = job.locked_until - self.city.github.engine.lock_s + Guest.renew_s
        deaf = self.city.chronicle.deaf if self.city.rules is not None else []
        return longest_outside_s(deaf, since, job.locked_until) <= Guest.retry_s + 2 * TICK_S

    def _runner_on_record(self, job: Job) -> RunnerRecord | None:
        """Who had it, where Redis was emptied since."""
        eras = self.city.chronicle.eras() if self.city.rules is not None else []
        return next((one for era in eras for one in era.runners.values() if one.life.job_id == job.id), None)

    async def _was_declared(self, job: Job) -> bool:
        """Its machine ended in the middle of it, and not by our doing or by a rule that says so."""
        cause, _, host = self.city.losses.get(job.id, "").partition(" on ")
        if cause in ("crashed", "vanished", "reboot", "lifetime", "drained"):
            return True
        record = await self.store.job(job.id)
        runner = await self.store.runner(record.job.runner) if record is not None and record.job.runner else None
        runner = runner or self._runner_on_record(job)
        reason = runner.life.reason if runner is not None else ""
        host = host or (runner.life.host if runner is not None else "")
        lost = reason == "host_lost" and host in self.city.out_of_reach
        return lost or reason == "lifetime"
