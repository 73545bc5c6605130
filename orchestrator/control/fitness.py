"""Gauges of what keeps hosts and images from being used: quarantines, and runners that GitHub won't take for much longer."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from orchestrator.control.records import Sighting
from orchestrator.core.quarantine import Ward
from orchestrator.core.runner_release import Releases, age_of


def fitness(ward: Ward, releases: Releases, sightings: dict[str, Sighting], now: float) -> Iterator[Metric]:
    held = GaugeMetricFamily(
        "ironcd_quarantine_seconds",
        "How long a host or image has been in quarantine, since starts on it failed",
        labels=["subject"],
    )
    for subject, quarantine in sorted(ward.held.items()):
        held.add_metric([subject], max(0.0, now - quarantine.since))
    ages = GaugeMetricFamily(
        "ironcd_runner_version_days_left",
        "Until GitHub refuses the runner in an image; only where a newer one is out",
        labels=["host", "image", "runner_version"],
    )
    for host, sighting in sorted(sightings.items()):
        for image in sighting.observed.images:
            left = age_of(image.runner_version, releases, now).days_left
            if left is not None:
                ages.add_metric([host, image.name, image.runner_version], left)
    yield from (held, ages)
