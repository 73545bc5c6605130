from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.core.flow import Event, Identity
from orchestrator.core.link import Limits, Link
from orchestrator.core.names import names_of
from orchestrator.core.policy import Policy, Rule, compile_policy
from orchestrator.egress.links import LinkState

RUNNER = "01JABCDEFGHJKMNPQRSTVWXYZ0"
TAP = names_of(RUNNER).tap


def make_policy(*hosts: str, **fields: object) -> Policy:
    rules = tuple(Rule(id=f"test#{n}", host=host) for n, host in enumerate(hosts, 1))
    extra = fields.pop("rules", ())
    return Policy(**{"mode": "enforce", "rules": rules + tuple(extra), **fields})  # type: ignore[arg-type]


def make_link(policy: Policy, **fields: object) -> Link:
    values: dict[str, object] = {
        "tap": TAP,
        "guest_ip": "10.201.0.3",
        "gateway_ip": "10.201.0.2",
        "identity": Identity(runner=RUNNER, org="acme"),
        "policy": policy,
        "generation": 1,
        "bound": True,
        "limits": Limits(),
    }
    return Link(**{**values, **fields})  # type: ignore[arg-type]


def make_event(host: str = "allowed.example", **fields: object) -> Event:
    values: dict[str, object] = {
        "event": "open",
        "ts": 1.0,
        "seq": 0,
        "gateway": "",
        "who": Identity(runner=RUNNER),
        "protocol": "tls",
        "verdict": "allowed",
        "reason": "rule",
        "host": host,
    }
    return Event(**{**values, **fields})  # type: ignore[arg-type]


@pytest.fixture
def state() -> Callable[..., LinkState]:
    """Makes the state of a link whose policy allows the given hosts."""

    def make(*hosts: str, limits: Limits | None = None, **fields: object) -> LinkState:
        policy = make_policy(*hosts, **fields)
        return LinkState(make_link(policy, limits=limits or Limits()), compile_policy(policy), 0.0)

    return make
