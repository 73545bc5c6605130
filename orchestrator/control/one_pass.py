"""One pass of a look: read everything, let what has happened happen, order what is owed, tell the hosts.

Nothing is remembered between two passes that isn't in Redis, at GitHub or on a host, so a pass can be cut off at any
line and the next one goes on.  The order:

1. deliveries, what hosts report, time: what has happened;
2. GitHub is asked where only it can know (claims of guests, ends that may have been missed, policies);
3. runners are wanted, withdrawn and placed; all of this is recorded, and the deliveries leave the inbox;
4. orders at GitHub are carried out, each recorded before and after;
5. each host's desired state is written where it changed, and jobs that are over are put away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec
import structlog

from orchestrator.control import outage
from orchestrator.control.changes import Changes
from orchestrator.control.checks import Checks
from orchestrator.control.demand import meet_demand
from orchestrator.control.desired import desired_of
from orchestrator.control.drain import drain_hosts
from orchestrator.control.github import GitHub, GitHubFailure, Installation
from orchestrator.control.governor import Governor
from orchestrator.control.groups import Groups
from orchestrator.control.ingest import learn, settle
from orchestrator.control.installations import Installations
from orchestrator.control.losses import LossSayer, note_losses
from orchestrator.control.observe import observe, strays
from orchestrator.control.orders import Orders
from orchestrator.control.orphans import sweep
from orchestrator.control.policies import PolicyBook
from orchestrator.control.policy_archive import PolicyArchive
from orchestrator.control.rebind import Rebind
from orchestrator.control.records import Entry, Finished, JobRecord, RunnerRecord, Snapshot, Sum
from orchestrator.control.recover import find_jobs, take_back
from orchestrator.control.reinstalled import follow, try_again
from orchestrator.control.renamed import Names
from orchestrator.control.reruns import Reruns
from orchestrator.control.sealed import Seal
from orchestrator.control.search import ACTIVE_S, JobSearch
from orchestrator.control.settings import ControlSettings
from orchestrator.control.standing import away, note_away, note_back
from orchestrator.control.store import INBOX_AT_ONCE, Lease, Store
from orchestrator.control.told_waits import WAITS, hold_back, tell_before_the_line
from orchestrator.control.unheard import Unheard
from orchestrator.control.warm import Waiting, waiting
from orchestrator.control.world import World
from orchestrator.core.decided import Decided
from orchestrator.core.errors import StoreError
from orchestrator.core.job import Job, tell
from orchestrator.core.names import ulid_of
from orchestrator.core.policy import Policy
from orchestrator.system import day_lines

UNWRITABLE = "incidents{kind=state_unwritable}"

log = structlog.get_logger()


class Told(msgspec.Struct, frozen=True):
    """A host's runners and strays, and the state that says all of them.  Records never change, so equal ones say the same."""

    records: tuple[RunnerRecord, ...]
    unwanted: frozenset[str]
    sum: Sum | None
    decided: Decided
    templates: tuple[float, dict[str, float]]
    """What admins want of them."""
    outage: bool


class Means(msgspec.Struct, frozen=True):
    """What a pass works with."""

    store: Store
    github: GitHub
    settings: ControlSettings
    book: PolicyBook
    installations: Installations
    seal: Seal
    archive: Path
    policies: PolicyArchive
    make_id: Callable[[], str]
    search: JobSearch
    groups: Groups
    urgent: GitHub
    """`github`, for what nothing goes on without."""
    governor: Governor
    strays: set[str] = msgspec.field(default_factory=set)
    """Machines that nobody has a use for, as of the last pass: each is counted once."""
    held: dict[str, str] = msgspec.field(default_factory=dict)
    """By entry of the inbox that couldn't be read, what GitHub said instead of where the App is installed."""
    unheard: Unheard = msgspec.field(default_factory=Unheard)
    told: dict[str, Told] = msgspec.field(default_factory=dict)
    """By host, what its desired state was last found to be right for."""


class Pass:
    def __init__(
        self,
        means: Means,
        lease: Lease,
        snapshot: Snapshot,
        now: float,
        *,
        sweep: bool = False,
        may_sweep: bool = False,
    ) -> None:
        """``sweep``: look for registrations at GitHub that nobody has a use for, too.  ``may_sweep``: where GitHub has no room."""
        self.means = means
        self.lease = lease
        self.snapshot = snapshot
        self.world = World(snapshot, means.settings, means.book.baseline, now)
        self.orders = Orders(
            self.world,
            means.github,
            means.book,
            means.seal,
            self._write,
            keep=self._keep,
            installations=means.installations,
        )
        self.names = Names(self.world, means.github)
        self.rebind = Rebind(self.world, means.book, self._keep)
        self.checks = Checks(self.world, means.github, means.book, means.installations, means.groups)
        self.losses = LossSayer(self.world, means.github)
        self.reruns = Reruns(self.world, means.github, means.store, self._write)
        self._writing = asyncio.Lock()
        self._read: list[Entry] = []
        self._silent: set[str] = set()
        """Hosts that are told nothing new, since it isn't known yet what they should be told."""
        self._unwanted: dict[str, set[str]] = {}
        self._unserved: dict[int, JobRecord] = {}
        """Jobs that weren't ours to serve when they were last heard of, and that deliveries speak of."""
        self._known = snapshot.known
        self.sweeps = sweep
        """Whether such registrations are looked for in it, from when that is known."""
        self._may_sweep = may_sweep

    async def run(self) -> bool:
        """True where another pass should follow at once."""
        self._outage()
        await self._ingest()
        await follow(self.world, self.means.installations)
        self.world.away = await away(self.world, self.means.installations)
        note_away(self.world)
        if note_back(self.world, self.means.installations):
            self.means.search.ask_all()
        await self._take_back()
        observe(self.world)
        settle(self.world)
        await self._all(self.checks.ask_claim(*claim) for claim in self.checks.claims())
        await self._all(self.checks.ask_job(record) for record in self.checks.stale())
        if not self.world.outage_since:
            await self._all(self.checks.look_for(record) for record in self.checks.idle())
        if self.snapshot.known and not self.world.outage_since:
            await self._all(self.means.search.ask(self.world, *repo) for repo in await self._to_search())
        settle(self.world)
        note_losses(self.world)
        self.reruns.wish()
        await self._all(self.checks.judge(record) for record in self.checks.unjudged())
        await self._all(self.checks.ask_gate(record) for record in self.checks.gated())
        drain_hosts(self.world)
        tell_before_the_line(self.world)
        if unkept := self._keep(self.world.baseline):
            hold_back(self.world, unkept)
        else:
            meet_demand(self.world, self.means.make_id, await self._warm())
        self.orders.announce()
        await self._write()
        await self._all(self.checks.say(record) for record in self.checks.unsaid())
        await self._all(self.losses.say(record) for record in self.losses.unsaid())
        if self.reruns.due():
            await self._all([self.reruns.ask_all()])
        await self._all(self.orders.carry_out(runner_id) for runner_id in self.orders.due())
        await self._all(self.rebind.look_again(runner_id) for runner_id in self.rebind.bound())
        self.sweeps = self.sweeps or (self._may_sweep and self.orders.group_full)
        if self.sweeps and self._known and not self.world.outage_since:
            await self._all([sweep(self.world, self.means.github, self.means.installations)])
        await self._write()
        await self._tell_hosts()
        await self._put_away()
        return self.world.progress or len(self.snapshot.inbox) >= INBOX_AT_ONCE

    # What has happened

    def _outage(self) -> None:
        """Whether GitHub answers, and if it does again, what that means for those that waited."""
        world, before = self.world, self.snapshot.outage_since
        world.outage_since = self.means.governor.open_since
        if world.outage_since:
            outage.hold(world)
        elif before:
            outage.is_over(world, before)
            log.warning("github_outage_over", seconds=round(world.now - before))

    async def _ingest(self) -> None:
        if not self._known:
            try:
                await find_jobs(self.world, self.means.urgent, self.means.installations)
                self._known = True
                self.means.search.asked_all()
            except GitHubFailure as error:
                log.warning("recovery_waits", error=error.message)
        finished = await self._finished(entry for entry in self.snapshot.inbox)
        for gone in self.means.held.keys() - {entry.id for entry in self.snapshot.inbox}:
            del self.means.held[gone]
        for entry in self.snapshot.inbox:
            try:
                await self._take(entry, finished)
            except (GitHubFailure, StoreError) as error:
                log.warning("delivery_waits", entry=entry.id)
                if isinstance(error, GitHubFailure):
                    self.means.held[entry.id] = error.message
            except Exception:
                log.exception("delivery_failed", entry=entry.id)
                await self.means.store.put_aside(self.lease, entry, "reading it failed; see the worker's log")

    async def _finished(self, entries: Iterable[Entry]) -> dict[int, JobRecord]:
        """The records of jobs that are spoken of and were put away, or aren't ours to serve."""
        jobs = {entry.delivery.job.id for entry in entries if entry.delivery and entry.delivery.job}
        known = sorted(jobs - self.world.jobs.keys())
        self._unserved = await self.means.store.unserved_jobs(known)
        return {**self._unserved, **await self.means.store.finished_jobs(known)}

    async def _take(self, entry: Entry, finished: dict[int, JobRecord]) -> None:
        delivery = entry.delivery
        if delivery is None:
            await self.means.store.put_aside(self.lease, entry, "it can't be read")
            return
        if delivery.installation is not None:
            news = delivery.installation
            self.means.installations.forget()
            self.means.search.ask_all()
            try_again(self.world, news.id, news.account)
        elif delivery.job is not None and not await self._learn(self._as_it_came(entry, delivery.job), finished):
            await self._foreign(entry, delivery.job)
            return
        self._read.append(entry)

    def _as_it_came(self, entry: Entry, job: Job) -> Job:
        """With a line that says why its delivery was left unread until now, where GitHub was why and nothing was known of the job."""
        why = self.means.held.get(entry.id, "")
        if not why or job.id in self.snapshot.jobs or job.state not in ("waiting", "queued") or entry.delivery is None:
            return job
        return tell(job, entry.delivery.at, f"{WAITS}github", f"GitHub didn't say where the App is installed: {why}")

    async def _learn(self, job: Job, finished: dict[int, JobRecord]) -> bool:
        """False where the job is of an installation that isn't ours."""
        installation = await self.means.installations.get(job.installation, job.repo, self.world.now)
        installation = installation or self._of_its_runner(job)
        if installation is None:
            return False
        learn(self.world, await self.names.agree(job), installation, finished.get(job.id))
        return True

    def _of_its_runner(self, job: Job) -> Installation | None:
        """Where the App was removed just after GitHub gave the job to a runner of that installation: the job is ours."""
        record = self.world.runners.get(ulid_of(job.runner_name) or "")
        if record is None or record.life.installation != job.installation:
            return None
        org = record.identity.org
        return Installation(job.installation, org or job.repo.partition("/")[0], organization=bool(org))

    async def _to_search(self) -> list[tuple[int, str]]:
        try:
            return await self.means.search.due(self.lease, self.world.now)
        except GitHubFailure as error:
            log.warning("search_waits", error=error.message)
            return []

    async def _foreign(self, entry: Entry, job: Job) -> None:
        log.warning("delivery_foreign", installation=job.installation, repo=job.repo)
        await self.means.store.put_aside(self.lease, entry, f"installation {job.installation} isn't ours")
        if job.installation:
            changes = self.means.store.changes()
            changes.put_foreign(job.installation)
            if job.id not in self.world.jobs:
                changes.put_unserved(_foreigner(job), self.world.now)
            await self.means.store.commit(self.lease, changes)

    async def _take_back(self) -> None:
        """Decide what becomes of machines that hosts have and we have no record of."""
        self.world.unheard = self.means.unheard.waited_for(self.world)
        found = list(strays(self.world))
        gone = await self.means.store.gone_runners(seen.id for _, seen in found)
        for host, seen in found:
            try:
                known = seen.id in gone
                taken = (
                    None
                    if known
                    else await take_back(self.world, self.means.github, self.means.installations, host, seen)
                )
            except GitHubFailure:
                self._silent.add(host)
                self.world.undecided.setdefault(host, []).append(seen)
                continue
            if taken is None:
                self._unwanted.setdefault(host, set()).add(seen.id)
        self._count_strays()

    def _count_strays(self) -> None:
        unwanted = {runner_id for found in self._unwanted.values() for runner_id in found}
        fresh = unwanted - self.means.strays
        if fresh:
            log.warning("strays_found", runners=sorted(fresh))
            self.world.count("strays", len(fresh))
        if not self._silent:
            self.means.strays.clear()
        self.means.strays.update(unwanted)

    # What is done about it

    async def _all(self, calls: Iterable[Awaitable[None]]) -> None:
        """Await ``calls``, a few at a time.  One that fails by a fault of ours stops no other."""
        todo = list(calls)
        if len(todo) <= 1:
            for call in todo:
                await self._one(call)
            return
        gate = asyncio.Semaphore(self.means.settings.github_concurrency)

        async def gated(call: Awaitable[None]) -> None:
            async with gate:
                await self._one(call)

        async with asyncio.TaskGroup() as tasks:
            for call in todo:
                tasks.create_task(gated(call))

    async def _one(self, call: Awaitable[None]) -> None:
        try:
            await call
        except StoreError:
            raise
        except Exception:
            self.world.count("worker_errors")
            log.exception("order_failed")

    async def _warm(self) -> list[Waiting]:
        """The machines that wait on hosts and never were a runner."""
        machines = waiting(self.world)
        if not machines:
            return []
        gone = await self.means.store.gone_runners([machine.id for machine in machines])
        return [machine for machine in machines if machine.id not in gone]

    async def _write(self) -> None:
        """Record all that has changed, in one write."""
        async with self._writing:
            for policy in self.world.new_policies:
                self._keep(policy)
            changes = self.means.store.changes()
            self.world.take_changes(changes)
            for runner_id, sealed in self.orders.sealed.items():
                changes.put_jit(runner_id, sealed, self.means.settings.pace.jit_s)
            self.orders.sealed = {}
            for entry in self._read:
                changes.take_out(entry.id)
            for job_id in self._unserved.keys() & self.world.jobs.keys():
                changes.drop_unserved(job_id)
            self._read = []
            if self._known and not self.snapshot.known:
                changes.set_known()
                changes.note_searched(self.world.now, self.world.now - ACTIVE_S)
            if changes:
                await self.means.store.commit(self.lease, changes)

    def _keep(self, policy: Policy) -> str:
        """Have ``policy`` in the archive; why it can't be, where it can't: that stops nothing but what is to run under it.

        Written once for each policy, so not on a thread: whatever goes on meanwhile stays in one order.
        """
        try:
            self.means.policies.put([policy])
        except OSError as error:
            log.warning("policy_unkept", digest=policy.digest, error=str(error))
            self.world.count(UNWRITABLE)
            return f"the control plane can't keep its policy: {error.strerror or error}"
        return ""

    async def _tell_hosts(self) -> None:
        """Write each host's desired state where it isn't what it was.  Before recovery is done, no host is told any."""
        if not self._known:
            return
        changes = self.means.store.changes()
        by_host = self.world.by_host()
        told: dict[str, Told] = {}
        for host in sorted((self.world.sightings.keys() | by_host.keys()) - self._silent):
            records, unwanted = tuple(by_host.get(host, ())), frozenset(self._unwanted.get(host, ()))
            if self.means.told.get(host) == self._told(host, records, unwanted):
                continue
            made = await desired_of(self.world, host, records, unwanted, self._policy)
            if made is not None:
                changes.put_desired(*made)
            told[host] = self._told(host, records, unwanted)
        if changes:
            await self.means.store.commit(self.lease, changes)
        self.means.told.update(told)

    def _told(self, host: str, records: tuple[RunnerRecord, ...], unwanted: frozenset[str]) -> Told:
        world = self.world
        templates = (world.templates_since.get(host, 0.0), world.templates_removed.get(host, {}))
        outage = bool(world.outage_since)
        return Told(records, unwanted, world.sums.get(host), world.decided_of(host), templates, outage)

    async def _policy(self, digest: str) -> Policy | None:
        return self.world.baseline if digest == self.world.baseline.digest else await self.means.store.policy(digest)

    async def _put_away(self) -> None:
        """Archive the jobs that are over and whose runner is gone, then let go of them.

        A crash between the two archives a job twice; whoever reads takes the later line.  Where the disk takes nothing,
        they stay, and every pass tries again.
        """
        done = [record for record in self.world.jobs.values() if self._is_done(record)]
        if not done:
            return
        changes = self.means.store.changes()
        lines = [msgspec.json.encode(await self._story_of(record)) for record in done if record.job.served != "ignored"]
        if lines:
            day = day_lines.day_of(self.world.now)
            try:
                await asyncio.to_thread(day_lines.append, self.means.archive, day, lines)
            except OSError as error:
                log.warning("archive_waits", jobs=len(lines), error=str(error))
                changes.count(UNWRITABLE)
                await self.means.store.commit(self.lease, changes)
                return
        for record in done:
            self._let_go(record, changes)
        await self.means.store.commit(self.lease, changes)

    def _let_go(self, record: JobRecord, changes: Changes) -> None:
        if record.job.served == "ignored":
            changes.put_unserved(record, self.world.now)
        else:
            changes.finish_job(record if record.over_at else msgspec.structs.replace(record, over_at=self.world.now))
        self.world.let_go_of_job(record.job.id)

    def _is_done(self, record: JobRecord) -> bool:
        if record.job.served == "ignored":
            return True
        runners = (self.world.runners.get(runner_id) for runner_id in record.runners)
        held = any(runner is not None and runner.life.phase != "GONE" for runner in runners)
        return record.job.over and not held and (record.rerun is None or record.rerun.settled)

    async def _story_of(self, record: JobRecord) -> Finished:
        known = {
            runner_id: self.world.runners[runner_id] for runner_id in record.runners if runner_id in self.world.runners
        }
        gone = await self.means.store.gone_runners(set(record.runners) - known.keys())
        found = {**gone, **known}
        return Finished(record, tuple(found[runner_id] for runner_id in record.runners if runner_id in found))


def _foreigner(job: Job) -> JobRecord:
    """The record of a job whose installation GitHub doesn't count among ours."""
    reason = f"the App isn't installed at {job.repo.partition('/')[0]}, GitHub says (installation {job.installation})"
    unserved = msgspec.structs.replace(job, served="ignored", reason=reason)
    return JobRecord(tell(unserved, job.story[-1].at if job.story else job.created_at, "ignored", reason))
