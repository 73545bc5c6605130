from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.policy import Policy, Rule
from tests.security.lab.lab import Lab, root
from tests.security.lab.machine import Machine
from tests.security.lab.report import Report
from tests.security.lab.world import RANGE

NAMES = (
    "allowed.example",
    "raw.example",
    "retry.example",
    "ssh.example",
    "*.wild.example",
    "to-loopback.example",
    "to-metadata.example",
    "to-private.example",
    "to-shared.example",
    "to-host.example",
    "to-mixed.example",
    "to-mapped.example",
    "to-nat64.example",
    "to-link.example",
    "to-evil-cname.example",
)


def standard(**fields: object) -> Policy:
    """What the machines of the lab may reach: some names, a range with SSH, and one place that others share."""
    rules = tuple(Rule(id=f"test#{n}", host=host) for n, host in enumerate(NAMES, 1))
    rules += (
        Rule(id="test#cdn", host="cdn-ok.example", multi_tenant=True),
        Rule(id="test#range", cidr=f"{RANGE}/32", ports=(22, 443, 4444)),
    )
    return Policy(**{"mode": "enforce", "rules": rules, **fields})  # type: ignore[arg-type]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--security-json", default="", help="write what each row of the attack table came to into this file"
    )


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--security-json", default="")
    if file:
        config.pluginmanager.register(Report(Path(file)), "security-report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/security/" in str(item.path):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if not root() or shutil.which("nft") is None:
        pytest.skip("needs root, network namespaces and nftables")
    lab = Lab()
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


@pytest.fixture(scope="session")
def attacker(lab: Lab) -> Machine:
    """The VM that attacks."""
    return lab.machine("a", standard())


@pytest.fixture(scope="session")
def neighbour(lab: Lab) -> Machine:
    """Another VM on the same host, whose job must notice nothing."""
    return lab.machine("b", standard())


@pytest.fixture
def ca(lab: Lab) -> str:
    return str(lab.world.authority.file)
