"""One run with real machines: the product as it ships, a guest for each job, real deaths; judged by what is seen from outside.

The seed decides jobs, faults, deaths and their moments (`tests.chaos.vm_plan`); how fast a machine boots isn't decided by it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from orchestrator.surface.demo import scenario
from orchestrator.surface.demo.image import ensure_image
from orchestrator.surface.demo.lab import CACHE, Lab, clear_dead
from tests.chaos import vm_oracle, vm_spoils
from tests.chaos.run import ByPlan
from tests.chaos.vm_city import CONTROL, PACE, VmCity
from tests.chaos.vm_plan import VmPlan, plan
from tests.chaos.vm_play import Play

PROGRAMS = ("qemu-system-x86_64", "qemu-img", "virsh", "mmdebstrap", "redis-server", "nft")
GONE_WITHIN_S = 60.0


class Report(ByPlan, kw_only=True):
    checks: int
    """So many things were looked at, of the wall and of what is left; what doesn't hold is in ``wrong``."""
    accelerator: str
    unseen: tuple[str, ...] = ()
    """What was done behind the report (``then``) and wasn't found."""


def may_run() -> str:
    """Why real machines can't run here; empty where they can."""
    if os.geteuid() != 0:
        return "real machines need root (network namespaces, libvirt)"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (`make setup` installs them)" if missing else ""


def run(
    jobs: int,
    seed: int,
    *,
    journal: Path | None = None,
    sabotage: str = "",
    then: str = "",
    told: Callable[[str], None] = print,
) -> Report:
    """``journal``: a folder for every process' log, the jobs' logs and the machines' consoles.

    ``then``: what is done behind the report to see that the judge sees it, ``all`` or one of `vm_spoils.SPOILS`.
    """
    for name in {sabotage, then} - {"", "all", *vm_spoils.SPOILS}:
        raise ValueError(f"nothing here is called {name!r}")
    began = time.monotonic()
    logs = journal or Path("build") / "chaos-logs"
    shutil.rmtree(logs, ignore_errors=True)
    for name in clear_dead():
        told(f"took away what {name} had left, which was killed")
    ensure_image(CACHE, told)
    drawn = plan(jobs, seed)
    classes = {"default": scenario.CLASS | {"start": "clone"}}
    with Lab(f"icdt-{secrets.token_hex(3)}", logs=logs.absolute(), classes=classes, control=CONTROL, pace=PACE) as lab:
        lab.start_stack()
        accelerator = scenario.accelerator_of(lab)
        why_not = scenario.await_template(lab)
        told(f"machines are {accelerator}" + (f", and boot cold: {why_not}" if why_not else ", cloned from a template"))
        city = VmCity(lab, drawn.jobs, told)
        city.furnish()
        city.set_traps()
        try:
            play = Play(city, drawn)
            play.run()
            told("looking at what came of it")
            with _spoiled(city, sabotage):
                report = _report(city, play, drawn, accelerator, seed, began)
            if then:
                told("doing what must never happen, to see that it is found")
                report.unseen = vm_spoils.unseen(city, then)
            report.ok = report.ok and not report.unseen
            return report
        finally:
            city.lift_traps()


def _spoiled(city: VmCity, what: str) -> AbstractContextManager[None]:
    """Something done that must be found out."""
    return vm_spoils.SPOILS[what].plant(city) if what else nullcontext()


def _report(city: VmCity, play: Play, drawn: VmPlan, accelerator: str, seed: int, began: float) -> Report:
    kinds, wrong = vm_oracle.ends(city)
    leaked = _left(city)
    checks = [*vm_oracle.wall(city), *vm_oracle.also_gone(city)]
    foreign = vm_oracle.foreign_gone(city)
    faults = city.simulated("GET", "faults")["used"]
    wrong += [f"left: {kind} {things}" for kind, things in leaked.items() if things]
    wrong += [f"{check.name}: {check.seen}" for check in checks if not check.ok]
    wrong += [*play.wrong, *vm_oracle.broken(city)]
    return Report(
        jobs=len(drawn.jobs),
        served=kinds["served"] + kinds["served_after_loss"],
        lost=kinds["lost"],
        served_twice=kinds["served_twice"],
        ends=dict(sorted(kinds.items())),
        leaked={kind: len(things) for kind, things in leaked.items()},
        foreign_gone=foreign,
        faults={**faults, **{f"killed-{name}": number for name, number in sorted(city.killed.items())}},
        kills=city.killed.total(),
        wrong=wrong,
        run_again=sum(len(seen.ids) - 1 for seen in city.jobs.values()),
        ok=not wrong and not foreign,
        tier="vms",
        killed=dict(sorted(city.killed.items())),
        checks=len(checks),
        accelerator=accelerator,
        seed=seed,
        schedule=hashlib.sha256(msgspec.json.encode(drawn)).hexdigest(),
        replays_exactly=False,
        seconds=round(time.monotonic() - began, 1),
    )


def _left(city: VmCity) -> dict[str, list[str]]:
    """Once it is nothing, or no less comes of waiting: the last sweeps are some seconds apart."""
    limit = time.monotonic() + GONE_WITHIN_S
    while any((found := vm_oracle.left(city)).values()) and time.monotonic() < limit:
        time.sleep(0.5)
    return found
