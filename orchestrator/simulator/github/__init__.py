"""A GitHub on loopback: the REST API, webhooks, and the services that runners talk to; all state in memory."""

from orchestrator.simulator.github.core import GitHub
from orchestrator.simulator.github.faults import DeliveryFault, Faults, ResponseFault
from orchestrator.simulator.github.jit import RUNNER_HOSTS
from orchestrator.simulator.github.simulator import Simulator
from orchestrator.simulator.github.spec import JobSpec, StepSpec, WorkflowSpec

__all__ = [
    "RUNNER_HOSTS",
    "DeliveryFault",
    "Faults",
    "GitHub",
    "JobSpec",
    "ResponseFault",
    "Simulator",
    "StepSpec",
    "WorkflowSpec",
]
