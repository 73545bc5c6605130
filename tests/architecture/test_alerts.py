"""The alerts: Prometheus' own program takes and tests them, they name metrics that exist, and each is explained."""

from __future__ import annotations

import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from fakeredis import FakeAsyncRedis
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.control import metrics
from orchestrator.control.records import Sighting
from orchestrator.control.store import Store
from orchestrator.core.decided import Drain
from orchestrator.core.machine import Capacity
from orchestrator.core.quarantine import Quarantine, Ward
from orchestrator.core.runner_release import Releases
from orchestrator.core.wire import Failure, Image, Observed
from orchestrator.system.process import run

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts" / "ironcd" / "alerts.yml"
TESTS = Path(__file__).with_name("alerts.promtool.yml")
PAGE = "docs/operations/alerts.md"
SELECTOR = re.compile(r"\b(ironcd_\w+)(?:\{([^}]*)\})?")
PARTS = ("**Means.**", "**Look.**", "**Do.**")


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


each_alert = pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("promtool isn't here: scripts/setup takes it out of Debian's package (as root)")
    return found


def test_prometheus_takes_the_rules(promtool: str) -> None:
    assert f"{len(alerts())} rules found" in run([promtool, "check", "rules", str(RULES)])


def test_the_alerts_fire_when_they_must_and_only_then(promtool: str) -> None:
    assert "SUCCESS" in run([promtool, "test", "rules", str(TESTS)])


def test_each_alert_is_tested_firing_and_silent() -> None:
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fires == silent == {rule["alert"] for rule in alerts()}


@cache
def labels_of(text: str) -> dict[str, set[frozenset[str]]]:
    """Each sample's name to the sets of labels that it has."""
    found: dict[str, set[frozenset[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).add(frozenset(sample.labels))
    return found


@pytest.fixture
async def exported() -> str:
    """What the control plane serves with a host that has all there is to tell, and GitHub's limits known."""
    store = Store(FakeAsyncRedis(), "t:")
    seen = Observed(
        "h1", "b", 1.0, Capacity(8, 8192, 100), "kvm", 0,
        images=(Image("default", "d", "2.336.0", created=1.0),), problems=(Failure("libvirt-away", "x"),),
    )  # fmt: skip
    await store.put_sighting(Sighting(1.0, seen))
    await store.drain("h1", Drain(1.0, 2.0))
    ward = Ward(held={"host:h1": Quarantine(1.0, "starts failed")})
    await store.client.set(store.names.ward, msgspec.json.encode(ward))
    await store.client.set(store.names.releases, msgspec.json.encode(Releases(published={"2.400.0": 1.0})))
    by = "{installation=7,resource=core}"
    await store.add_counts({}, {f"github_remaining{by}": 1, f"github_limit{by}": 2, "github_clock_skew": 0.5})
    return (await metrics.scrape(store)).decode()


@each_alert
async def test_metrics_and_labels_that_an_alert_names_exist(rule: dict[str, Any], exported: str) -> None:
    known = labels_of(exported)
    selectors = SELECTOR.findall(rule["expr"])
    assert selectors
    there: set[str] = set()
    for name, matchers in selectors:
        assert name in known, f"{name} isn't exported"
        labels = set().union(*known[name])
        there |= labels
        assert set(re.findall(r"(\w+)\s*[=!]~?", matchers)) <= labels
    assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= there


@each_alert
async def test_values_of_labels_that_an_alert_counts_are_there_before_they_are_first_counted(
    rule: dict[str, Any], exported: str
) -> None:
    """From nothing to 1 is no increase to Prometheus, so the first leak would be missed."""
    samples = [sample for family in text_string_to_metric_families(exported) for sample in family.samples]
    for name, matchers in re.findall(r"increase\((ironcd_\w+)(?:\{([^}]*)\})?", rule["expr"]):
        wanted = [(label, re.split(r"\|", values)) for label, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers)]
        for label, values in wanted:
            assert set(values) <= {sample.labels[label] for sample in samples if sample.name == name}
        assert any(sample.name == name for sample in samples)


@each_alert
def test_each_alert_has_its_severity_summary_and_entry(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook_url"] == f"{PAGE}#{rule['alert'].lower()}"
    entry = entries()[rule["alert"]]
    assert [entry.count(part) for part in PARTS] == [1, 1, 1]


def entries() -> dict[str, str]:
    parts = re.split(r"^### (\w+)$", (ROOT / PAGE).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_entry_has_its_alert() -> None:
    assert list(entries()) == [rule["alert"] for rule in alerts()]


def test_the_chart_installs_the_very_file() -> None:
    template = (RULES.parent / "templates" / "alerts.yaml").read_text()
    assert '.Files.Get "alerts.yml"' in template
    assert not (RULES.parent / ".helmignore").exists()


def test_counters_that_stand_at_zero_have_a_help_text() -> None:
    assert set(metrics.FROM_THE_START) <= set(metrics.HELP)
