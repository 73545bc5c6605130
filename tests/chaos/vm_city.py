"""What a run with real machines holds on to: the lab, each job as GitHub, the control plane and the outside see it.

A job tells the outside that it works, by a request to the allowed site, and then waits until a name of its own resolves:
so the run decides when it goes on to try every way out, whatever the machine's speed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from orchestrator.core.errors import ConfigurationError
from orchestrator.host import qemu_process
from orchestrator.host.paths import host_paths
from orchestrator.surface.demo import scenario
from orchestrator.surface.demo.lab import Lab
from orchestrator.surface.demo.traps import Traps
from orchestrator.surface.demo.workflow import ALLOWED, POLICY_PATH, steps_of
from orchestrator.surface.settings import read_secret
from orchestrator.system.process import run
from tests.chaos.machine import FOREIGN_FILES
from tests.chaos.vm_plan import NO_RERUN, RERUN, VmJob

POLICY = f"mode: enforce\nallow:\n  - host: {ALLOWED}\n  - host: '*.{ALLOWED}'\n"
FOREIGN_TABLE = "somebodys"
PACE = {"claim_s": 0.5, "job_check_s": 3.0, "search_s": 5.0, "redelivery_s": 5.0, "sweep_s": 2.0}
CONTROL = {"rerun_on_infra_loss": [f"acme/{RERUN}"]}
GITHUB_NOTICES_S = 123.0
"""After a machine was lost GitHub ends its job: the real one within ten minutes, and never within two."""
AT_WORK = "/at-work/"

_HOLD = f"""\
for url in https://{ALLOWED}{AT_WORK}KEY/$GITHUB_RUN_ATTEMPT/$RUNNER_NAME https://go-KEY.{ALLOWED}/; do
  until curl --fail --silent --max-time 10 "$url" >/dev/null; do sleep 5; done
done
"""


class Seen(msgspec.Struct):
    """A job and what became of it.  ``id`` is that of its last attempt."""

    plan: VmJob
    run_id: int = 0
    ids: list[int] = []
    story: dict[str, Any] = {}
    """As the admin API tells it, of the last attempt."""
    passed: dict[str, float] = {}
    """Each mark that it was seen to have passed, and when (monotonic)."""
    lost: str = ""
    """The control plane's word that its machine was lost, while GitHub had the job in progress still."""
    drained: bool = False
    """Its host was seen to be drained, and empty."""
    went_on: bool = False

    @property
    def id(self) -> int:
        return self.ids[-1]

    @property
    def over(self) -> bool:
        """It has ended, and so has every machine made for it, but for those that GitHub gave to another job."""
        story = self.story
        return (
            bool(story) and story["state"] == "completed" and all(_is_done(it, self.ids) for it in story["made_for_it"])
        )


def _is_done(runner: dict[str, Any], jobs: list[int]) -> bool:
    return runner["phase"] == "GONE" or bool(runner["job_id"] and runner["job_id"] not in jobs)


class VmCity:
    """``told`` is called with a line for people at each step."""

    def __init__(self, lab: Lab, jobs: tuple[VmJob, ...], told: Callable[[str], None]) -> None:
        self.lab = lab
        self.told = told
        self._client = httpx.Client(timeout=30, trust_env=False)
        """One for all questions: making one costs more than asking."""
        self.jobs = {job.key: Seen(job) for job in jobs}
        self.killed: Counter[str] = Counter()
        self.paths = host_paths(lab.stack.host)
        self.ulids: set[str] = set()
        """Of every runner that was made."""
        self.takers: dict[tuple[str, str], set[str]] = {}
        """Job's key and attempt, to the runners that the outside heard of working at it."""
        self.caught: list[str] = []
        """Who reached a port of the host's own."""
        self._traps: Traps | None = None

    def simulated(self, method: str, path: str, **more: Any) -> Any:
        """As `Lab.simulated`."""
        answer = self._client.request(method, f"{self.lab.facts['api_url']}/_sim/{path}", **more)
        answer.raise_for_status()
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.json() if is_json else answer.text

    # Before

    def furnish(self) -> None:
        """Repositories and their policy, and what belongs to somebody else."""
        self.simulated("POST", "repositories", json={"name": RERUN})
        for name in (RERUN, NO_RERUN):
            self.simulated("PUT", f"repositories/acme/{name}/files/{POLICY_PATH}", content=POLICY.encode())
        self.set_strangers_table()
        for place in (self.paths.disks, self.paths.seeds):
            for file in FOREIGN_FILES:
                (place / file).write_text("not ours")

    def set_strangers_table(self) -> None:
        self.nft("add", "table", "inet", FOREIGN_TABLE)

    def set_traps(self) -> None:
        """In the VMs' namespace as it is now."""
        self._traps = Traps(self.lab.vm_netns, scenario.TRAPPED)
        self._traps.caught = self.caught
        self._traps.__enter__()

    def lift_traps(self) -> None:
        if self._traps is not None:
            self._traps.__exit__()
            self._traps = None

    def begin(self, job: VmJob) -> None:
        self.resolves(f"go-{job.key}", to=[])
        tries = steps_of(scenario.PLACES) if job.role == "whole" else []
        steps = [{"name": "Work until told to go on", "run": _HOLD.replace("KEY", job.key)}, *tries]
        workflow = {"name": "CI", "jobs": {job.key: {"runs-on": ["ironcd"], "steps": steps}}}
        made = self.simulated(
            "POST", "runs", json={"repository": job.repository, "workflow": workflow, "event": "push"}
        )
        seen = self.jobs[job.key]
        seen.run_id, seen.ids = made["id"], [made["jobs"][0]["id"]]
        self.told(f"{job.key} ({job.role}, {job.repository}) is queued")

    # While it runs

    def look(self) -> None:
        """Take note of what every job that has begun and isn't over has passed."""
        heard = self._heard_outside()
        for seen in (job for job in self.jobs.values() if job.ids and not (job.over and job.plan.role != "crash")):
            story = self.ask(f"jobs/{seen.id}")
            if story is not None:
                seen.story = story
                self.ulids |= {str(runner["id"]) for runner in story["made_for_it"]}
                seen.lost = seen.lost or (
                    str(story["loss"] or "") if self.at_github(seen)["status"] == "in_progress" else ""
                )
                marks = {str(moment["what"]) for moment in story["story"]} | {"delivered"}
                self._pass(seen, *marks, *(mark for runner in story["made_for_it"] for mark in runner["marks"]))
            if (seen.plan.key, str(len(seen.ids))) in heard:
                self._pass(seen, "at_work")
            self._look_for_rerun(seen)

    def _look_for_rerun(self, seen: Seen) -> None:
        if seen.over and seen.plan.role == "crash":
            again = self.simulated("GET", f"runs/{seen.run_id}")["jobs"][0]["id"]
            if again not in seen.ids:
                seen.ids.append(again)
                seen.story = {}
                self.told(f"{seen.plan.key} is run again")

    def _heard_outside(self) -> set[tuple[str, str]]:
        for item in self.simulated("GET", f"world/received?address={scenario.PLACES.allowed}&port=443&proto=tcp"):
            for request in item.get("requests", ()):
                if request["target"].startswith(AT_WORK):
                    key, attempt, runner = request["target"].removeprefix(AT_WORK).split("/")
                    self.takers.setdefault((key, attempt), set()).add(runner)
        return set(self.takers)

    def _pass(self, seen: Seen, *marks: str) -> None:
        for mark in marks:
            seen.passed.setdefault(mark, time.monotonic())

    def at_github(self, seen: Seen) -> dict[str, Any]:
        job: dict[str, Any] = self.simulated("GET", f"jobs/{seen.id}")
        return job

    def ask(self, path: str, method: str = "GET", **params: str | float) -> Any:
        """The admin API's answer; None where it doesn't answer just now, or doesn't know."""
        settings = self.lab.stack.settings.control
        try:
            token = read_secret(settings.admin_token_file, "control.admin_token_file")
            headers = {"Authorization": f"Bearer {token}"}
            url = f"http://{settings.listen}/api/v1/{path}"
            answer = self._client.request(method, url, params=params, headers=headers)
        except (httpx.HTTPError, ConfigurationError):
            return None
        return answer.json() if answer.is_success else None

    # What the plan does

    def kill(self, process: str) -> bool:
        """False where it is between two lives: it must be asked again."""
        if self.lab.stack.kill(process) is None:
            return False
        self.killed[process] += 1
        return True

    def kill_machine(self, seen: Seen) -> bool:
        """The QEMU that works at the job, as the kernel does it where memory is short.

        By the name that the job told the outside: GitHub may give a job to a runner that was made for another.
        """
        for domain in self.takers.get((seen.plan.key, str(len(seen.ids))), ()):
            if qemu_process.kill(domain):
                self.killed["qemu"] += 1
                return True
        return False

    def go_on(self, seen: Seen) -> None:
        self.resolves(f"go-{seen.plan.key}", to=[scenario.PLACES.allowed])
        seen.went_on = True
        self._pass(seen, "going")

    def resolves(self, name: str, to: list[str]) -> None:
        self.simulated("PUT", f"world/names/{name}.{ALLOWED}", json=to)

    def all_serve(self) -> bool:
        return all(child.is_ready() for child in self.lab.stack.supervisor.children.values())

    def nft(self, *words: str) -> str:
        return run(["ip", "netns", "exec", self.lab.vm_netns, "nft", *words])
