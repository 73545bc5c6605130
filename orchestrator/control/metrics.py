"""Prometheus metrics.  What is counted lives in Redis and is collected at the scrape, so a restart loses nothing.

Any process that can reach Redis can serve them; what a worker alone knows (GitHub's rate limit) it writes there too.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import get_args

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from orchestrator.control.changes import PHASE_BUCKETS_S
from orchestrator.control.fitness import fitness
from orchestrator.control.github import Removal
from orchestrator.control.observe import taken_by
from orchestrator.control.records import JobRecord, RunnerRecord, Sighting
from orchestrator.control.store import Store
from orchestrator.control.views import runners_by_host
from orchestrator.control.vitals import vitals
from orchestrator.control.world import GIVEN_UP, INCIDENTS
from orchestrator.core.decided import Drain
from orchestrator.core.errors import StoreError
from orchestrator.core.placement import HostView, free_of
from orchestrator.core.runner import PHASES
from orchestrator.core.wire import Start, TemplateState

HELP = {
    "deliveries": "Webhook deliveries by what became of them",
    "github_failures": "Failed requests to GitHub by error code",
    "github_calls": "Requests to GitHub by method, route and status",
    "worker_errors": "Faults in the worker's own code",
    "alarms": "Times that the destruction of a runner was late",
    "reruns": "Jobs lost with their machine that were to be run again, by what became of that",
    "incidents": "What a person must hear of, by kind",
    "orphans": "Registrations removed that nobody had a use for, by GitHub's answer",
    "github_held": "Requests to GitHub that weren't made, by kind and why: outage, limit, wait, pace",
    "jobs_found": "Jobs that were found at GitHub, no delivery having told of them for a minute",
    "redeliveries": "Deliveries that didn't arrive: asked for again, refused by GitHub, or given up",
    "looks": "Reconciliations by result",
    "ledger_events": "Events of the egress ledger received by verdict",
    "deadlines_missed": "Times that a runner was still in a phase at its deadline, by phase",
    "starts": "Machines started, by how: cloned, booted cold, or one that waited",
    "strays": "Machines found on hosts that nobody had a use for",
}
RECORD_INCIDENTS = ("ledger_begun_anew", "ledger_gap", "checkpoint_not_copied", "state_unwritable")
"""What the records have to tell a person."""
FROM_THE_START: dict[str, tuple[dict[str, str], ...]] = {
    "deadlines_missed": tuple({"phase": phase} for phase in PHASES[:-1]),
    "starts": tuple({"how": how} for how in get_args(Start) if how),
    "strays": ({},),
    "alarms": ({},),
    "worker_errors": ({},),
    "incidents": tuple(
        {"kind": kind} for kind in ("infrastructure_loss", GIVEN_UP, *INCIDENTS.values(), *RECORD_INCIDENTS)
    ),
    "orphans": tuple({"answer": answer} for answer in get_args(Removal)),
    "redeliveries": tuple({"result": result} for result in ("asked", "refused", "given_up")),
    "looks": tuple({"result": result} for result in ("done", "failed", "left_to_another")),
}
"""Shown as 0 before they are first counted: an increase from nothing to 1 is none to Prometheus."""
WAITS = ("quota", "room", "turn", "hosts", "runner", "pause", "class")
JOB_STATES = ("waiting", "queued", "in_progress", "completed")
_NAME = re.compile(r"([a-z_]+)(?:\{(.*)\})?")


class Scrape:
    """One scrape's worth of metrics, out of what was read of the store."""

    def __init__(self, counters: dict[str, float], metrics: Iterable[Metric]) -> None:
        self._counters = counters
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics
        yield from counter_families(self._counters)
        yield from phase_histogram(self._counters)


async def scrape(store: Store, *, hosts: frozenset[str] | None = None, clock: Callable[[], float] = time.time) -> bytes:
    """The metrics in Prometheus' text format.  With Redis away: ``ironcd_store_up 0`` and nothing else.

    Of ``hosts`` only, where they are given: one that was taken out of the configuration is missed by nobody.
    """
    registry = CollectorRegistry(auto_describe=False)
    up = GaugeMetricFamily("ironcd_store_up", "1 where Redis answers")
    try:
        counters, lengths = await store.counters(), await store.lengths()
        jobs, runners = await store.live_jobs(), await store.live_runners()
        sightings, outage = await store.sightings(), await store.outage_since()
        ward, releases = await store.ward(), await store.releases()
        draining = await store.draining()
        sightings = {host: seen for host, seen in sightings.items() if hosts is None or host in hosts}
    except StoreError:
        up.add_metric([], 0)
        registry.register(Scrape({}, [up]))
        return generate_latest(registry)
    up.add_metric([], 1)
    away = GaugeMetricFamily("ironcd_github_outage_seconds", "How long GitHub hasn't answered; 0 where it does")
    away.add_metric([], max(0.0, clock() - outage) if outage else 0.0)
    now = clock()
    metrics = [up, away, *_queues(lengths), *_jobs(jobs), *_runners(runners), *_hosts(sightings, runners, now)]
    metrics += [
        *vitals(jobs, sightings, now),
        *fitness(ward, releases, sightings, now),
        *_drains(draining, runners, now),
    ]
    registry.register(Scrape(counters, metrics))
    return generate_latest(registry)


def router(store: Store, *, hosts: frozenset[str] | None = None) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    async def metrics() -> Response:
        return Response(await scrape(store, hosts=hosts), media_type=CONTENT_TYPE_LATEST)

    routes.add_api_route("/metrics", metrics, methods=["GET"], response_class=Response)
    return routes


def counter_families(counters: dict[str, float]) -> Iterator[Metric]:
    """Counters kept as ``name{label=value,...}``; those of the phase histogram aren't among them."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name in HELP}
    for key, value in {**_zeros(), **counters}.items():
        name, labels = parse(key)
        if name in samples:
            samples[name].append((labels, value))
    for name, found in samples.items():
        names = sorted(found[0][0]) if found else []
        family = CounterMetricFamily(f"ironcd_{name}", HELP[name], labels=names)
        for labels, value in found:
            family.add_metric([labels.get(label, "") for label in names], value)
        yield family
    yield from _limits(counters)


def phase_histogram(counters: dict[str, float]) -> Iterator[Metric]:
    family = HistogramMetricFamily("ironcd_phase_seconds", "How long runners were in a phase", labels=["phase"])
    for phase in PHASES[:-1]:
        count = counters.get(f"phase_seconds_count{{phase={phase}}}", 0.0)
        each = [counters.get(f"phase_seconds_in{{phase={phase},le={le}}}", 0.0) for le in PHASE_BUCKETS_S]
        buckets = [(str(le), below) for le, below in zip(PHASE_BUCKETS_S, accumulate(each), strict=True)]
        total = counters.get(f"phase_seconds_sum{{phase={phase}}}", 0.0)
        family.add_metric([phase], [*buckets, ("+Inf", count)], total)
    yield family


def parse(key: str) -> tuple[str, dict[str, str]]:
    match = _NAME.fullmatch(key)
    if match is None:
        return key, {}
    pairs = (part.partition("=") for part in (match[2] or "").split(",") if part)
    return match[1], {name: value for name, _, value in pairs}


def _zeros() -> dict[str, float]:
    return {_key(name, labels): 0.0 for name, all_labels in FROM_THE_START.items() for labels in all_labels}


def _key(name: str, labels: dict[str, str]) -> str:
    """As `parse` reads it."""
    inner = ",".join(f"{label}={value}" for label, value in labels.items())
    return f"{name}{{{inner}}}" if inner else name


def _limits(counters: dict[str, float]) -> Iterator[Metric]:
    by = ["installation", "resource"]
    left = GaugeMetricFamily("ironcd_github_remaining", "Requests left until GitHub's reset", labels=by)
    whole = GaugeMetricFamily(
        "ironcd_github_limit", "Requests that GitHub allows from one reset to the next", labels=by
    )
    skew = GaugeMetricFamily(
        "ironcd_github_clock_skew_seconds",
        "How far GitHub's clock is ahead of ours (negative: behind), as far as the network can't explain it",
    )
    families = {"github_remaining": left, "github_limit": whole}
    for key, value in counters.items():
        name, labels = parse(key)
        if name in families:
            families[name].add_metric([labels.get(label, "") for label in by], value)
        elif name == "github_clock_skew":
            skew.add_metric([], value)
    yield from (left, whole, skew)


def _queues(lengths: dict[str, int]) -> Iterator[Metric]:
    inbox = GaugeMetricFamily("ironcd_inbox_deliveries", "Deliveries that wait to be worked on")
    inbox.add_metric([], lengths["inbox"])
    dead = GaugeMetricFamily("ironcd_dead_deliveries", "Signed deliveries kept aside, unusable or foreign")
    dead.add_metric([], lengths["dead"])
    yield from (inbox, dead)


def _jobs(jobs: Iterable[JobRecord]) -> Iterator[Metric]:
    known = list(jobs)
    tally: Counter[tuple[str, str]] = Counter((record.job.state, record.job.served) for record in known)
    family = GaugeMetricFamily("ironcd_jobs", "Jobs that aren't put away, by state", labels=["state", "served"])
    for state in JOB_STATES:
        tally.setdefault((state, "yes"), 0)
    for (state, served), count in sorted(tally.items()):
        family.add_metric([state, served], count)
    yield family
    waits = Counter(record.wait or "runner" for record in known if record.job.wants_runner)
    waiting = GaugeMetricFamily("ironcd_waiting_jobs", "Jobs that wait, by what for", labels=["for"])
    for kind in WAITS:
        waiting.add_metric([kind], waits.get(kind, 0))
    yield waiting


def _runners(runners: Iterable[RunnerRecord]) -> Iterator[Metric]:
    tally = Counter(record.life.phase for record in runners)
    family = GaugeMetricFamily("ironcd_runners", "Runners by phase", labels=["phase"])
    for phase in PHASES[:-1]:
        family.add_metric([phase], tally.get(phase, 0))
    yield family


def _drains(drains: dict[str, Drain], runners: Iterable[RunnerRecord], now: float) -> Iterator[Metric]:
    left = GaugeMetricFamily(
        "ironcd_host_drain_seconds",
        "Until the deadline of a host that is being drained; 0 once it has passed",
        labels=["host"],
    )
    still = GaugeMetricFamily(
        "ironcd_host_drain_runners", "Runners that a host being drained still has", labels=["host"]
    )
    by_host = runners_by_host(runners)
    for host, drain in sorted(drains.items()):
        left.add_metric([host], max(0.0, drain.until - now))
        still.add_metric([host], len(by_host.get(host, ())))
    yield from (left, still)


def _hosts(sightings: dict[str, Sighting], runners: Iterable[RunnerRecord], now: float) -> Iterator[Metric]:
    capacity = GaugeMetricFamily("ironcd_host_capacity", "What a host can give in all", labels=["host", "what"])
    free = GaugeMetricFamily("ironcd_host_free", "What a host has left to give", labels=["host", "what"])
    warm = GaugeMetricFamily("ironcd_host_warm", "Machines that wait for a job", labels=["host", "class"])
    silent = GaugeMetricFamily("ironcd_host_silent_seconds", "Since a host's last report", labels=["host"])
    templates = GaugeMetricFamily(
        "ironcd_host_templates", "Templates that clones start from, by state", labels=["host", "state"]
    )
    problems = GaugeMetricFamily("ironcd_host_problems", "What a host complains of", labels=["host", "code"])
    by_host = runners_by_host(runners)
    for host, sighting in sorted(sightings.items()):
        seen = sighting.observed
        taken = tuple(taken_by(record) for record in by_host.get(host, ()))
        left = free_of(HostView(name=host, capacity=seen.capacity, taken=taken))
        for what in ("vcpus", "memory_mib", "disk_gib", "gpus"):
            capacity.add_metric([host, what], getattr(seen.capacity, what))
            free.add_metric([host, what], getattr(left, what))
        for name, count in Counter(machine.machine_class for machine in seen.warm).items():
            warm.add_metric([host, name], count)
        states = Counter(template.state for template in seen.templates)
        for state in get_args(TemplateState):
            templates.add_metric([host, state], states[state])
        silent.add_metric([host], max(0.0, now - sighting.at))
        for code, count in Counter(problem.code for problem in seen.problems).items():
            problems.add_metric([host, code], count)
    yield from (capacity, free, warm, templates, silent, problems)
