"""What must be so at every moment, and of all that was decided, beside what the oracle asks of each job at the end.

Whoever judges counts what there is (machines with a job, by GitHub's own word which), and never what the control plane
believes.  A host that was silent for so long that it counts as lost may still run what it has: it is left out.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.control.records import RunnerRecord
from orchestrator.control.store import Store
from orchestrator.core.names import names_of, ulid_of
from orchestrator.core.sharing import Share
from orchestrator.simulator.github.state import Job
from tests.chaos.machine import Machine

if TYPE_CHECKING:
    from tests.chaos.city import City

ALL = 1_000_000


class Rules:
    def __init__(self, city: City) -> None:
        self.city = city

    def look(self) -> None:
        """Note whatever isn't as it must be now."""
        found = self.quotas()
        for host in self.city.hosts:
            found += self.waiting(host)
        for what in found:
            self.city.journal.fault(what)

    # Quotas

    def quotas(self) -> list[str]:
        """Who has more machines with a job than may be.

        A repository's quota holds to the machine only where runners are registered with the repository.
        """
        used: dict[tuple[str, str], list[int]] = {}
        for job in self._served_now():
            machine = self.city.lot.settings.classes.get(job.spec.labels[0])
            if machine is None:
                continue
            repo = job.run.repository
            parties = [("class", machine.name), ("organisation", repo.owner.login)]
            if self.city.settings.registration == "repository":
                parties.append(("repository", repo.full_name.lower()))
            for party in parties:
                used.setdefault(party, []).append(machine.vcpus)
        return [
            f"{kind} {name} has {len(sizes)} machines with {sum(sizes)} vCPUs, and its quota is {self._share(kind, name)}"
            for (kind, name), sizes in used.items()
            if len(sizes) > (self._share(kind, name).runners or ALL)
            or sum(sizes) > (self._share(kind, name).vcpus or ALL)
        ]

    def _share(self, kind: str, name: str) -> Share:
        sharing = self.city.settings.sharing
        of = {"class": sharing.of_class, "organisation": sharing.of_organisation, "repository": sharing.of_repository}
        return of[kind](name)

    def _served_now(self) -> list[Job]:
        heard = [host for host in self.city.hosts if host.name not in self.city.out_of_reach]
        guests = [guest for host in heard for guest in host.guests.values() if guest.job is not None]
        return [guest.job for guest in guests if guest.job is not None and guest.job.status == "in_progress"]

    # Machines that wait

    def waiting(self, host: Machine) -> list[str]:
        """Those of ``host`` that have what only a job's machine may have."""
        of_runners = {path.stem for path in host.paths.records.iterdir()}
        ids = [ulid for path in host.paths.waiting.iterdir() if (ulid := ulid_of(path.stem))]
        found = []
        for names in (names_of(ulid) for ulid in ids if names_of(ulid).runner not in of_runners):
            seed = host.paths.seeds / names.seed
            wrong = {
                "a credential": seed.exists() and seed.read_text() != "",
                "a link that is up": names.tap in host.wires.links_up,
                "rules": names.tap in host.wall.vms,
                "a policy": names.tap in host.gateway.links,
            }
            found += [f"{host.name}: {names.domain} waits and has {what}" for what, has in wrong.items() if has]
        return found

    # What was decided

    async def decided(self, store: Store) -> tuple[list[str], Counter[str]]:
        """What shouldn't have been decided, and how runners' machines were started."""
        runners = [*await store.live_runners(), *await store.latest_gone_runners(10_000)]
        found = [what for runner in runners for what in self._placed(runner)]
        found += [what for job in self.city.github.state.jobs.values() for what in self._again(job)]
        return found, Counter(runner.start for runner in runners if runner.start)

    def _placed(self, runner: RunnerRecord) -> list[str]:
        """A pass decides by what it read after it began: what began before the answer to an admin may not know of it."""
        if any(moment.what == "taken_back" for moment in runner.story):
            return []  # it was there already: nobody decided anew
        placed = [(moment.detail, moment.at) for moment in runner.story if moment.what == "Placed"]
        return [
            f"runner {runner.id} was placed on {host} at {at:.0f}, which was closed at {closed.since:.0f}"
            for host, at in placed
            for closed in self.city.people.closed
            if closed.host == host and closed.since < at < closed.until
        ]

    def _again(self, job: Job) -> list[str]:
        """A job that runs again was lost with its machine, and is no deployment; or a person wanted it so."""
        if job.attempt == 1 or job.run.id in self.city.rerun:
            return []
        before = next(old for old in job.run.attempts[job.attempt - 1] if old.key == job.key)
        wrong = {
            "nothing says that it may": not self.city.settings.rerun_on_infra_loss,
            "its run was run again before": job.attempt > 1 + self.city.settings.rerun_budget,
            "it deploys": bool(before.spec.environment),
            "a person had ended it": before.id in self.city.cancelled or before.conclusion == "cancelled",
            "its machine wasn't lost": before.id not in self.city.losses,
        }
        return [f"job {before.id} was run again as {job.id}, and {why}" for why, so in wrong.items() if so]
