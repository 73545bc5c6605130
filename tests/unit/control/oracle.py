"""What must be so in the model, whatever happens.  It is told from what happened outside, and never from what the product thinks.

- A machine with a job of ours isn't ended unless something ended it: its VM failed, its host was silent, rebooted or drained to the
  end, or its lifetime was over.
- No host runs more machines than it has processors and memory for, and none that is drained or silent gets new ones.
- A machine has the policy of the job that GitHub gave it, or the baseline.
- A runner's phase only goes forward; each live one has a deadline, ahead of now where GitHub answers; one that is gone has
  no machine, with proof, and no registration.
- No more runners are on their way than jobs wait, and no repository has more than its quota.
- A job that waits has a reason or a runner on its way.
- Only what was lost is run again, once a run, and never a deployment.
- Once all trouble is over, each job was served by one runner or ended by somebody, as its record says, and nothing is left.  A job
  may be given up only after four machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from orchestrator.control.drain import BUSY_AGAIN_S
from orchestrator.control.policies import PATH
from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.core.effective import baseline_policy, effective_policy
from orchestrator.core.names import names_of, ulid_of
from orchestrator.core.policy_file import read_policy
from orchestrator.core.runner import PHASES

from .stage import PRESETS

if TYPE_CHECKING:
    from .deeds import Play
    from .stage import Stage

_T = TypeVar("_T")

MACHINES_BEFORE_GIVING_UP = 4
BASELINE = baseline_policy(PRESETS.builtin).digest
IMAGES = {"apt": ("deb.example",)}
_digests: dict[bytes, str] = {}


def digest_of(text: bytes) -> str:
    if text not in _digests:
        own = read_policy(text, source=PATH, presets=PRESETS, image_presets=IMAGES)
        _digests[text] = effective_policy(None, own, PRESETS.builtin, IMAGES).digest
    return _digests[text]


class _Read(Generic[_T]):
    """All records of a hash in Redis; one that is as it was isn't decoded again."""

    def __init__(self, stage: Stage, key: str, kind: type[_T]) -> None:
        self._data = stage.redis.data
        self._key = key
        self._decoder = msgspec.json.Decoder(kind)
        self._known: dict[bytes, _T] = {}

    def all(self) -> list[_T]:
        raws, known, decode = self._data.execute("HVALS", self._key), self._known, self._decoder.decode
        self._known = {raw: known[raw] if raw in known else decode(raw) for raw in raws}
        return list(self._known.values())


class Oracle:
    def __init__(self, play: Play) -> None:
        self._play = play
        self._stage = play.stage
        self.looked = False
        """The worker looked, and no time has passed since."""
        self.live: list[RunnerRecord] = []
        self._runners = _Read(play.stage, play.stage.store.names.runners, RunnerRecord)
        self._jobs = _Read(play.stage, play.stage.store.names.jobs, JobRecord)
        self._phases: dict[str, int] = {}
        self._gone: set[str] = set()

    def jobs(self) -> list[JobRecord]:
        """Those that aren't put away."""
        return self._jobs.all()

    def forget(self) -> None:
        """Redis was emptied."""
        self._phases, self._gone, self.looked = {}, set(), False

    def look(self) -> None:
        self.live = self._runners.all()
        self._machines_under_jobs()
        self._hosts()
        self._phases_go_forward()
        if self.looked:
            self._waiting()
        self._reruns()

    def _machines_under_jobs(self) -> None:
        live = {record.id: record.life for record in self.live}
        outside = self._play.outside
        for job in outside.running():
            runner = ulid_of(job.runner_name)
            if runner in outside.excused or runner is None:
                continue
            registered = {seen.name for seen in self._stage.github.runners.values()}
            assert job.runner_name in registered or runner in outside.forgotten, f"GitHub lost the runner of {job}"
            assert not any(runner in host.ended for host in self._stage.hosts.values()), (job, live.get(runner))
            life = live.get(runner)
            assert life is None or life.phase not in ("DESTROYING", "GONE"), (job, life)

    def _hosts(self) -> None:
        machine = self._stage.settings.classes["ironcd"]
        jobs = {ulid_of(job.runner_name): job for job in self._stage.github.jobs.values() if job.runner_name}
        for host in self._stage.hosts.values():
            running = [seen for seen in host.seen.values() if seen.vm == "running"]
            assert len(running) * machine.vcpus <= host.capacity.vcpus, f"{host.name} runs {len(running)}"
            assert len(running) * machine.memory_mib <= host.capacity.memory_mib
            for seen in running:
                job = jobs.get(seen.id)
                files = self._stage.github.files
                fit = {BASELINE, digest_of(files[job.repo, PATH])} if job is not None else {BASELINE}
                assert seen.policy in fit, f"the machine of {job} has a policy that isn't its job's"

    def _phases_go_forward(self) -> None:
        outside, store = self._play.outside, self._stage.store
        seen = {record.id: record for record in self.live}
        left = sorted(self._phases.keys() - seen.keys() - self._gone)
        gone = self._play.do(store.gone_runners(left)) if left else {}
        assert set(left) == gone.keys(), "a runner is forgotten before it is gone"
        ahead = self.looked and self._play.github.fine and not self._play.do(store.outage_since())
        for record in (*seen.values(), *gone.values()):
            life = record.life
            phase = PHASES.index(life.phase)
            before = self._phases.get(life.id)
            assert before is None or phase >= before, f"{life.id} was {PHASES[before or 0]}, is {life.phase}"
            if life.host in outside.drains and life.meant_for:  # one for no job is an old machine that was taken back
                assert life.created_at <= outside.drained_at[life.host], f"{life.host} is drained and gets {life}"
            self._phases[life.id] = phase
            assert life.phase == "GONE" or life.deadline > (self._stage.now if ahead else 0), life
        for record in gone.values():
            self._is_gone(record)

    def _is_gone(self, record: RunnerRecord) -> None:
        life = record.life
        self._gone.add(life.id)
        assert not self._play.outside.lives(life.id), f"{life.id} is called gone, and its machine runs"
        if life.vm != "none":
            assert life.vm == "gone", life
            assert record.proof is not None, life
            assert record.proof.whole, life
        if life.registration != "unreachable":
            names = {seen.name for seen in self._stage.github.runners.values()}
            assert names_of(life.id).runner not in names, f"{life.id} is called gone, and its registration is there"

    def _waiting(self) -> None:
        jobs = self.jobs()
        coming = {record.life.meant_for for record in self.live}
        for record in jobs:
            assert not record.job.wants_runner or record.job.reason or record.job.id in coming, record
        self._drains()
        busy = {ulid_of(seen.name) for seen in self._stage.github.runners.values() if seen.busy}
        on_their_way = [
            record
            for record in self.live
            if record.life.phase in ("WANTED", "BOOTING", "READY") and not record.life.fencing and record.id not in busy
        ]
        wanting = [record for record in jobs if record.job.wants_runner]
        assert len(on_their_way) <= len(wanting), f"{len(on_their_way)} runners come for {len(wanting)} jobs"
        quota = self._play.plan.quota
        if quota and self._play.plan.per_repository:
            self._quotas(quota)

    def _drains(self) -> None:
        """Where GitHub answers, idle runners of a drained host are being given back, and jobs have the time that is left.

        One that was busy a moment ago is asked about again a little later.
        """
        if not self._play.github.fine or self._play.outside.app_away or self._play.do(self._stage.store.outage_since()):
            return
        busy = {seen.name for seen in self._stage.github.runners.values() if seen.busy}
        busy |= {name for name, at in self._play.outside.ended_at.items() if self._stage.now - at < BUSY_AGAIN_S}
        for record in self.live:
            life = record.life
            if life.host not in self._play.outside.drains:
                continue
            idle = life.phase in ("BOOTING", "READY") and record.name not in busy
            assert not idle or life.fencing, f"{life.host} is drained, and {life.id} waits on for a job"
            assert life.phase != "RUNNING" or life.cut == "drained", f"{life.host} is drained, and {life.id} isn't told"

    def _quotas(self, quota: int) -> None:
        used: dict[str, int] = {}
        for record in self.live:
            if record.life.phase in ("WANTED", "BOOTING", "READY", "RUNNING"):
                used[record.life.repo] = used.get(record.life.repo, 0) + 1
        assert all(count <= quota for count in used.values()), used

    def _reruns(self) -> None:
        outside = self._play.outside
        runs = [job.run_id for job in outside.reruns]
        assert len(runs) == len(set(runs)), "a run was run again twice"
        for job in outside.reruns:
            assert self._play.plan.rerun, job
            assert job.conclusion == "failure", job
            assert not job.deploys, job
            lost = job.id in outside.machineless_ends or ulid_of(job.runner_name) in outside.excused
            assert lost, f"{job} was run again, and its machine wasn't lost"

    # The end

    def may_give_up(self, record: JobRecord) -> None:
        assert len(record.runners) >= MACHINES_BEFORE_GIVING_UP, record

    def is_over(self) -> bool:
        play, stage = self._play, self._stage
        if play.late or self.live or stage.github.runners:
            return False
        jobs = all(job.over for job in stage.github.jobs.values()) and not self.jobs()
        heard = not play.do(stage.store.outage_since()) and not play.do(stage.store.lengths())["inbox"]
        return jobs and heard and not self._runners.all()

    def look_at_the_end(self) -> None:
        outside, do = self._play.outside, self._play.do
        for number, job in self._stage.github.jobs.items():
            assert job.over, f"job {number} is {job.state}: {do(self._stage.store.job(number))}"
            had = self._stage.started.get(number, [])
            unserved = number in outside.ended_by_somebody | outside.given_up
            assert len(had) == (0 if unserved else 1), f"job {number} was served by {had}"
            record = do(self._stage.store.job(number))
            if record is None or (record.job.served == "ignored" and (unserved or outside.emptied)):
                continue
            assert record.job.over, record
            assert record.job.conclusion == job.conclusion, (job, record.job)
            assert not record.job.runner or [record.job.runner] == had, (had, record)
        if not outside.emptied and not outside.app_was_away:
            orphans = [counter for counter in do(self._stage.store.counters()) if counter.startswith("orphans{")]
            assert not orphans, "a registration was forgotten, and found again by chance"
        left = do(self._stage.leftovers())
        kept = [key for key in left.get("keys", []) if self._stage.redis.data.execute("PTTL", key) < 0]  # type: ignore[attr-defined]
        assert {**left, "keys": kept} == {"keys": []}, left
