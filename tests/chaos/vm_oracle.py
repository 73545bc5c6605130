"""What must be so at the end of a run with real machines, and what isn't: jobs, the egress wall, and what is left.

The witnesses are the demo's: the outside, the ledger and the job's own log for the wall; virsh, ip, nft, the file system,
GitHub and Redis for what is left.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import msgspec
from redis.asyncio import Redis

from orchestrator.control.store import Store
from orchestrator.core.names import names_of, ulid_of
from orchestrator.host.domain_xml import owner_in
from orchestrator.surface.attempts import attempts
from orchestrator.surface.demo import gone, scenario
from orchestrator.surface.demo.evidence import outside_of
from orchestrator.surface.demo.judge import Check, Outside, judge_outside, judge_wall, probe_results
from orchestrator.surface.demo.workflow import probes_of
from orchestrator.surface.timeline import milestones_of
from orchestrator.system.process import CommandFailed, run
from tests.chaos.machine import FOREIGN_FILES
from tests.chaos.oracle import keys_left
from tests.chaos.vm_city import FOREIGN_TABLE, Seen, VmCity
from tests.chaos.vm_plan import VmJob

SHIPPED_WITHIN_S = 60.0


class End(msgspec.Struct, frozen=True):
    """How a job came to its end, as far as its kind goes."""

    job: VmJob
    conclusions: tuple[str, ...]
    """GitHub's, of each attempt."""
    lost: bool
    """It was on record as lost to the infrastructure before GitHub had noticed."""
    cut: bool
    """Its runner was told to end because of a drain."""
    drained: bool
    """Its host was seen to be drained, and empty."""
    most_takers: int
    """So many machines worked at one attempt."""


def kind_of(end: End) -> str:
    """How it ended; ``lost`` where it isn't as its role has it."""
    if end.most_takers > 1:
        return "served_twice"
    match end.job.role, end.conclusions:
        case "whole", ("success",) if not end.lost:
            return "served"
        case "crash", ("failure", "success") if end.lost and end.job.is_rerun:
            return "served_after_loss"
        case "crash", ("failure",) if end.lost and not end.job.is_rerun:
            return "infrastructure"
        case "drain", ("cancelled",) if end.cut and end.drained and not end.lost:
            return "drained"
        case _:
            return "lost"


def end_of(city: VmCity, seen: Seen) -> End:
    at_github = [city.simulated("GET", f"jobs/{number}") for number in seen.ids]
    takers = [len(runners) for (key, _), runners in city.takers.items() if key == seen.plan.key]
    told = seen.story.get("story", ())
    return End(
        job=seen.plan,
        conclusions=tuple(str(job["conclusion"]) for job in at_github),
        lost=bool(seen.lost),
        cut=any(moment["what"] == "LifetimeCut" and "drained" in moment["detail"] for moment in told),
        drained=seen.drained,
        most_takers=max(takers, default=0),
    )


def ends(city: VmCity) -> tuple[Counter[str], list[str]]:
    """How many jobs came to which end, and what is wrong with those that came to another."""
    kinds: Counter[str] = Counter()
    wrong = []
    for seen in city.jobs.values():
        end = end_of(city, seen)
        kind = kind_of(end)
        kinds[kind] += 1
        if kind in ("lost", "served_twice"):
            told = [(m["who"], m["what"], m["detail"]) for m in seen.story.get("story", ())]
            wrong.append(f"{seen.plan.key} {kind}: {end}: {told}")
    return kinds, wrong


# The wall


def wall(city: VmCity) -> list[Check]:
    """Of every job that tried the ways out: none led anywhere, all are on record; and nothing that mustn't be was seen outside."""
    outside = outside_of(city.lab, city.caught)
    strangers = city.simulated("GET", "world/sources")["strangers"]
    checks = [
        *judge_outside(outside),
        Check("only the uplink's address was seen outside", not strangers, str(strangers or "nothing else")),
        _verified(city),
    ]
    for seen in city.jobs.values():
        if seen.plan.role == "whole":
            checks += _of_job(city, seen, outside)
    return checks


def _of_job(city: VmCity, seen: Seen, outside: Outside) -> list[Check]:
    log = str(city.simulated("GET", f"jobs/{seen.id}/log"))
    (city.lab.logs / f"job-{seen.plan.key}.log").write_text(log, encoding="utf-8")
    record = attempts(_shipped(city, seen.id))
    found = judge_wall(probes_of(scenario.PLACES), probe_results(log), outside, record)
    found.append(scenario.bound_first(milestones_of(seen.story)))
    return [msgspec.structs.replace(check, name=f"{seen.plan.key}: {check.name}") for check in found]


def _shipped(city: VmCity, job_id: int) -> list[dict[str, Any]]:
    """The job's events, once the control plane has all that the gateway wrote of it."""
    limit = time.monotonic() + SHIPPED_WITHIN_S
    while True:
        written = {
            event["seq"]
            for path in city.paths.ledger.rglob("*.jsonl")
            for line in path.read_bytes().splitlines()
            if line.startswith(b"{") and (event := json.loads(line)).get("who", {}).get("job_id") == job_id
        }
        answer = city.ask("egress", job=job_id, limit=10_000)
        events: list[dict[str, Any]] = answer["events"] if answer is not None else []
        if (written and written <= {event["seq"] for event in events}) or time.monotonic() > limit:
            return events
        time.sleep(0.5)


def _verified(city: VmCity) -> Check:
    """The host's ledger: whole and signed, however often its writer was killed."""
    command = [sys.executable, "-m", "orchestrator.surface", "--config", str(city.lab.config_file), "audit", "verify"]
    done = subprocess.run(
        [*command, "--dir", str(city.paths.ledger)], capture_output=True, text=True, timeout=120, check=False
    )
    return Check("the ledger is whole", done.returncode == 0, (done.stdout + done.stderr)[-600:])


# What is left


def left(city: VmCity) -> dict[str, list[str]]:
    """What is on the host, at GitHub and in Redis with a name of ours."""
    rules = city.nft("-j", "list", "ruleset")
    inside = run(["ip", "-n", city.lab.vm_netns, "-j", "link", "show"])
    outside = run(["ip", "-j", "link", "show"])
    taps = {names_of(ulid).tap for ulid in city.ulids}
    paths = city.paths
    return {
        "domains": domains(city),
        "disks": _ours(paths.disks) + _ours(paths.boot),
        "seeds": _ours(paths.seeds),
        "taps": sorted({tap for tap in taps if f'"{tap}"' in outside} | set(re.findall(r'"(ic[0-9a-z]{13})"', inside))),
        "chains": sorted(set(re.findall(r'"((?:vm|l2)_ic[0-9a-z]{13})"', rules))),
        "links": _ours(paths.links),
        "channels": _ours(paths.channels) + _ours(paths.consoles),
        "records": _ours(paths.records),
        "runners": [str(runner["name"]) for runner in city.simulated("GET", "state")["runners"]],
        "redis_keys": asyncio.run(_keys(city)),
    }


def also_gone(city: VmCity) -> list[Check]:
    """Of each runner by its names: the demo's own look, beside `left`'s list of what there is."""
    found = [check for ulid in sorted(city.ulids) for check in gone.look(ulid, city.lab.stack.host)]
    return [check for check in found if not check.ok] or [
        Check("nothing of any runner is left", ok=True, seen="nothing")
    ]


def foreign_gone(city: VmCity) -> list[str]:
    found = [] if FOREIGN_TABLE in city.nft("list", "tables") else [FOREIGN_TABLE]
    for place in (city.paths.disks, city.paths.seeds):
        found += [file for file in FOREIGN_FILES if not (place / file).exists()]
    return found


def _ours(folder: Any) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in FOREIGN_FILES) if folder.is_dir() else []


def domains(city: VmCity) -> list[str]:
    """Of this lab's agent; there may be others on the machine."""
    uri = city.lab.stack.host.libvirt_uri
    found = []
    for name in run(["virsh", "--connect", uri, "list", "--all", "--name"]).split():
        ulid = ulid_of(name)
        try:
            mine = ulid is not None and owner_in(run(["virsh", "--connect", uri, "dumpxml", name])) == (
                ulid,
                city.lab.vm_netns,
            )
        except CommandFailed:
            continue
        if mine:
            found.append(name)
    return found


async def _keys(city: VmCity) -> list[str]:
    settings = city.lab.settings.redis
    async with Redis.from_url(settings.url) as client:
        return await keys_left(Store(client, settings.prefix), settings.prefix)


def broken(city: VmCity) -> list[str]:
    """What the processes themselves say they didn't foresee."""
    return [
        f"{path.name}: {line[-1500:]}"
        for path in sorted(city.lab.logs.glob("*.log"))
        if not path.name.startswith(("console-", "job-"))
        for line in path.read_text(errors="replace").splitlines()
        if "loop_broke" in line or "AssertionError" in line
    ]
