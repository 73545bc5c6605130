"""Carries out a plan with real machines: jobs begin, faults are ordered, and processes die as the plan says, by what is seen."""

from __future__ import annotations

import time

from tests.chaos.vm_city import GITHUB_NOTICES_S, Seen, VmCity
from tests.chaos.vm_plan import Kill, VmPlan
from tests.chaos.vm_reboot import reboot

LOOK_S = 0.3
AT_ONCE = 2
"""Machines that boot or work together: an emulated one needs a processor for itself."""
WITHIN_S = 420.0
FOR_EACH_S = 180.0


class Play:
    def __init__(self, city: VmCity, plan: VmPlan) -> None:
        self.city = city
        self.plan = plan
        self.wrong: list[str] = []
        self._kills = list(plan.kills)
        self._told_github: set[str] = set()
        self._drained_at = 0.0
        self._undrained = not any(job.role == "drain" for job in plan.jobs)

    def run(self) -> None:
        """Until every job has come to its end, or the time is up."""
        limit = time.monotonic() + WITHIN_S + FOR_EACH_S * len(self.plan.jobs)
        while not self._is_over():
            if time.monotonic() > limit:
                self.wrong += [f"not over in time: {what}" for what in self._open()]
                return
            self._begin_some()
            self.city.look()
            self.city.lab.keep_consoles()
            self._kill_some()
            for seen in self.city.jobs.values():
                self._go_on(seen)
            self._drain()
            time.sleep(LOOK_S)

    def _is_over(self) -> bool:
        return self._undrained and not self._kills and all(is_finished(seen) for seen in self.city.jobs.values())

    def _open(self) -> list[str]:
        still = [
            f"{seen.plan}: attempt {len(seen.ids)}, {seen.story.get('state')}, {seen.story.get('reason')}, passed {sorted(seen.passed)}"
            for seen in self.city.jobs.values()
            if not is_finished(seen)
        ]
        return still + [f"{kill}" for kill in self._kills]

    # Jobs

    def _begin_some(self) -> None:
        """In the plan's order; one that has lost its machine and waits for GitHub's word doesn't count."""
        for job in self.plan.jobs:
            if self.city.jobs[job.key].ids:
                continue
            alive = [
                seen for seen in self.city.jobs.values() if seen.ids and not seen.over and not waits_for_github(seen)
            ]
            if len(alive) >= AT_ONCE or any(self.plan.is_alone(seen.plan) for seen in alive):
                return
            for fault in self.plan.faults:
                if fault.job == job.key:
                    self.city.told(f"fault: {fault.name}")
                    self.city.simulated("POST", f"faults/{fault.name}", json={"count": 1})
            self.city.begin(job)

    def _go_on(self, seen: Seen) -> None:
        """Once all that was to die while it works has died, and all serve again."""
        waits = "at_work" in seen.passed and not seen.went_on
        if seen.plan.role == "crash" and seen.lost and seen.plan.key not in self._told_github:
            self._told_github.add(seen.plan.key)
            self.city.told(f"{seen.plan.key} is on record as lost: {seen.lost}")
            self.city.simulated("POST", f"jobs/{seen.id}/lock", json={"for_s": GITHUB_NOTICES_S})
            self.city.go_on(seen)
        elif seen.plan.role == "whole" and waits and not self._kills_at(seen, "at_work") and self.city.all_serve():
            self.city.told(f"{seen.plan.key} goes on to try the ways out")
            self.city.go_on(seen)

    # Deaths

    def _kills_at(self, seen: Seen, mark: str) -> list[Kill]:
        return [kill for kill in self._kills if (kill.job, kill.mark) == (seen.plan.key, mark)]

    def _kill_some(self) -> None:
        """Those whose moment has come: the mark was seen, or can't be seen any more."""
        now = time.monotonic()
        for kill in list(self._kills):
            seen = self.city.jobs[kill.job]
            passed = seen.passed.get(kill.mark) or (now if is_finished(seen) else None)
            if passed is None or now < passed + kill.after_s or (kill.process == "gateway" and self._one_tries()):
                continue
            if self._die(kill, seen):
                self.city.told(f"killed {kill.process} ({kill.mark} of {kill.job} and {kill.after_s} s)")
                self._kills.remove(kill)
            elif kill.process in ("qemu", "host") and is_finished(seen):
                self.wrong.append(f"{kill}: there was no machine to kill")
                self._kills.remove(kill)

    def _die(self, kill: Kill, seen: Seen) -> bool:
        """False where it has to be asked again."""
        match kill.process:
            case "qemu":
                return self.city.kill_machine(seen)
            case "host":
                return reboot(self.city)
            case process:
                return self.city.kill(process)

    def _one_tries(self) -> bool:
        """A job tries the ways out: what it tries while there is no gateway is refused, and isn't on record."""
        return any(seen.went_on and seen.plan.role == "whole" and not seen.over for seen in self.city.jobs.values())

    # The drain

    def _drain(self) -> None:
        seen = next((seen for seen in self.city.jobs.values() if seen.plan.role == "drain"), None)
        host = f"hosts/{self.city.lab.stack.host.name}"
        if seen is None or self._undrained:
            return
        if "draining" not in seen.passed:
            others = [other for other in self.city.jobs.values() if other is not seen]
            ready = "at_work" in seen.passed and not self._kills_at(seen, "at_work")
            ready = ready and all(is_finished(other) or waits_for_github(other) for other in others)
            if ready and self.city.ask(f"{host}/drain", "POST", deadline_s=self.plan.drain_s, why="chaos"):
                seen.passed["draining"] = time.monotonic()
                self.city.told(f"the host is drained, and has {self.plan.drain_s} s")
        elif seen.over:
            state = self.city.ask(f"{host}/drain")
            seen.drained = seen.drained or (state is not None and state["draining"] and state["empty"])
            if seen.drained and self.city.ask(f"{host}/undrain", "POST") is not None:
                self._undrained = True
                self.city.told("the host was empty, and takes runners again")


def is_finished(seen: Seen) -> bool:
    """It won't change any more, as far as the plan goes."""
    return bool(seen.ids) and seen.over and len(seen.ids) == (2 if seen.plan.is_rerun else 1)


def waits_for_github(seen: Seen) -> bool:
    """Its machine is lost, and GitHub has still to notice."""
    return bool(seen.lost) and len(seen.ids) == 1 and not seen.over
