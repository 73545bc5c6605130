"""Gauges that alerts watch: how long the oldest job waits, clocks, ledgers that lie unshipped, the age of images.

Made at the scrape out of what hosts report and what is known of jobs; nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from orchestrator.control.records import JobRecord, Sighting
from orchestrator.core.clocks import UNKNOWN_WAY_S, skew_of_sender

SWEPT = ("runner", "link")


def vitals(jobs: Iterable[JobRecord], sightings: dict[str, Sighting], now: float) -> Iterator[Metric]:
    yield _oldest(jobs, now)
    skew = GaugeMetricFamily(
        "ironcd_host_clock_skew_seconds",
        "How far a host's clock is ahead (negative: behind), as far as the network can't explain it",
        labels=["host"],
    )
    lines = GaugeMetricFamily(
        "ironcd_host_ledger_unshipped_lines", "Lines of a host's ledger that it hasn't shipped", labels=["host"]
    )
    since = GaugeMetricFamily(
        "ironcd_host_ledger_unshipped_seconds", "For how long a host has had unshipped lines", labels=["host"]
    )
    age = GaugeMetricFamily(
        "ironcd_image_age_seconds", "Since an image on a host was built", labels=["host", "image", "runner_version"]
    )
    swept = CounterMetricFamily(
        "ironcd_host_leaks", "What a host found that belonged to no runner, and removed", labels=["host", "what"]
    )
    for host, sighting in sorted(sightings.items()):
        seen = sighting.observed
        skew.add_metric([host], skew_of_sender(seen.at, sighting.at, seen.took_s or UNKNOWN_WAY_S))
        lines.add_metric([host], seen.unshipped)
        since.add_metric([host], seen.unshipped_s)
        for image in seen.images:
            if image.created:
                age.add_metric([host, image.name, image.runner_version], max(0.0, now - image.created))
        for what in SWEPT:
            swept.add_metric([host, what], seen.swept.get(what, 0))
    yield from (skew, lines, since, age, swept)


def _oldest(jobs: Iterable[JobRecord], now: float) -> Metric:
    waits = [now - record.job.created_at for record in jobs if record.job.wants_runner and record.wait != "quota"]
    family = GaugeMetricFamily(
        "ironcd_oldest_waiting_job_seconds",
        "How long the job that waits longest has been queued, but for a quota; 0 where none waits",
    )
    family.add_metric([], max([0.0, *waits]))
    return family
