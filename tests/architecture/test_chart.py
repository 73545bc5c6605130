"""The chart refuses what it can't install, and what it installs is configured as IronCD's own settings read it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.surface import settings
from orchestrator.surface.up import PROCESSES

CHART = Path(__file__).resolve().parents[2] / "charts" / "ironcd"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


SHARING = {
    "repository": {"runners": 40},
    "repositories": {"acme/site": {"weight": 0.5, "priority": -2}},
    "classes": {"gpu": {"runners": 4}},
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = copy.deepcopy(base)
    for key, value in over.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def sample() -> dict[str, Any]:
    """The values that the chart's README shows."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```", (CHART / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return yaml.safe_load(text)


def test_the_readmes_values_are_accepted() -> None:
    jsonschema.validate(merged(DEFAULTS, sample()), SCHEMA)


def test_shares_are_accepted() -> None:
    jsonschema.validate(merged(DEFAULTS, {**sample(), "sharing": SHARING}), SCHEMA)


def test_the_defaults_alone_are_refused() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(DEFAULTS, SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"agent": {"controlUrl": "http://ironcd.example.com"}},
        {"agent": {"nodeSelector": None}},
        {"github": {"appId": 0}},
        {"redis": {"passwordSecret": ""}},
        {"control": {"hosts": []}},
        {"control": {"adminToken": "in the values"}},
        {"unknown": 1},
        {"sharing": {"repositories": {"acme/site": {"runner": 1}}}},
        {"sharing": {"repositories": {"site": {"runners": 1}}}},
        {"sharing": {"organisation": {"priority": 11}}},
    ],
    ids=str,
)
def test_values_that_would_open_or_break_something_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged(merged(DEFAULTS, sample()), change), SCHEMA)


def test_without_an_agent_no_address_for_it_is_needed() -> None:
    values = merged(merged(DEFAULTS, sample()), {"agent": {"enabled": False, "controlUrl": ""}})
    jsonschema.validate(values, SCHEMA)


@pytest.fixture(scope="module")
def rendered() -> list[dict[str, Any]]:
    helm = pytest.importorskip(
        "helm_python", reason="Helm isn't installed here: `pip install helm-python-sdk` (240 MB)"
    )
    values = {
        **sample(),
        "classes": {"gpu": {"vcpus": 8, "gpus": 1}},
        "sharing": SHARING,
        "organisationPolicy": "mode: enforce\nallow: []\n",
        "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
    }
    files = helm.Chart.load(str(CHART)).render(values, name="demo", namespace="ironcd")
    return [document for text in files.values() for document in yaml.safe_load_all(text) if document]


def of_kind(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(one for one in documents if one["kind"] == kind and one["metadata"]["name"] == name)


@pytest.mark.parametrize("part", ["control", "agent"])
def test_the_configuration_is_one_that_ironcd_reads(rendered: list[dict[str, Any]], tmp_path: Path, part: str) -> None:
    file = tmp_path / "ironcd.toml"
    file.write_text(of_kind(rendered, "ConfigMap", f"demo-{part}")["data"]["ironcd.toml"])
    loaded = settings.load(file)
    if part == "control":
        assert loaded.github.app_id == 123456
        assert loaded.machine_classes()["ironcd-gpu"].gpus == 1
        shares = loaded.shares()
        assert (shares.repository.runners, shares.of_repository("acme/site").weight) == (40, 0.5)
        assert shares.of_class("ironcd-gpu").runners == 4
    else:
        assert loaded.host_settings().control_url == "https://ironcd.example.com"


def test_a_node_gets_no_secret_of_the_control_plane(rendered: list[dict[str, Any]]) -> None:
    pod = of_kind(rendered, "DaemonSet", "demo-agent")["spec"]["template"]["spec"]
    assert not any("secret" in volume for volume in pod["volumes"])
    assert "secretKeyRef" not in json.dumps(pod)
    text = of_kind(rendered, "ConfigMap", "demo-agent")["data"]["ironcd.toml"]
    assert "redis" not in text
    assert "github" not in text


def test_the_alerts_are_installed_as_they_are(rendered: list[dict[str, Any]]) -> None:
    rule = of_kind(rendered, "PrometheusRule", "demo-alerts")
    assert rule["spec"] == yaml.safe_load((CHART / "alerts.yml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = of_kind(rendered, "ServiceMonitor", "demo-control")["spec"]["endpoints"]
    (port,) = of_kind(rendered, "Service", "demo-control")["spec"]["ports"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")


def test_every_container_starts_a_process_that_exists(rendered: list[dict[str, Any]]) -> None:
    pods = [one["spec"]["template"]["spec"] for one in rendered if one["kind"] in ("Deployment", "DaemonSet")]
    started = [container["args"][-1] for pod in pods for container in pod["containers"]]
    assert sorted(started) == ["agent", "control", "gateway", "worker"]
    assert set(started) <= set(PROCESSES)


def test_redis_flushes_before_it_answers_and_only_the_control_plane_reaches_it(rendered: list[dict[str, Any]]) -> None:
    (container,) = of_kind(rendered, "StatefulSet", "demo-redis")["spec"]["template"]["spec"]["containers"]
    assert "--appendonly yes --appendfsync always" in container["command"][-1]
    policy = of_kind(rendered, "NetworkPolicy", "demo-redis")["spec"]
    (peer,) = policy["ingress"][0]["from"]
    control = of_kind(rendered, "Deployment", "demo-control")["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= control.items()
