"""The job as its runner gets it (`AgentJobRequestMessage`): steps, variables, secrets to mask and the github context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

from orchestrator.simulator.github import jit, present
from orchestrator.simulator.github.state import Job, timestamp

Json = dict[str, Any]


def mapping(values: dict[str, str]) -> Json:
    """A template token of type mapping."""
    return {"type": 2, "map": [{"Key": key, "Value": value} for key, value in values.items()]}


def context(value: Any) -> Any:
    """``value`` in the form that `contextData` takes: t 0 string, 1 array, 2 dictionary, 3 boolean, 4 number."""
    if isinstance(value, dict):
        return {"t": 2, "d": [{"k": key, "v": context(item)} for key, item in value.items()]}
    if isinstance(value, list):
        return {"t": 1, "a": [context(item) for item in value]}
    return value


def github_context(job: Job) -> Json:
    run, repo = job.run, job.run.repository
    ref = f"refs/heads/{run.head_branch}"
    return {
        "ref": ref,
        "ref_name": run.head_branch,
        "ref_type": "branch",
        "sha": run.head_sha,
        "repository": repo.full_name,
        "repository_owner": repo.owner.login,
        "repository_id": str(repo.id),
        "repository_owner_id": str(repo.owner.id),
        "run_id": str(run.id),
        "run_number": str(run.number),
        "run_attempt": str(job.attempt),
        "actor": run.actor.login,
        "actor_id": str(run.actor.id),
        "triggering_actor": run.actor.login,
        "workflow": run.workflow.name,
        "workflow_ref": f"{repo.full_name}/{run.workflow.path}@{ref}",
        "workflow_sha": run.head_sha,
        "event_name": run.event,
        "server_url": present.WEB,
        "api_url": present.API,
        "graphql_url": f"{present.API}/graphql",
        "job": job.key,
        "event": {
            "repository": present.minimal_repository(repo),
            "sender": present.account(run.actor),
            "workflow": run.workflow.path,
        },
    }


def job_message(job: Job, url_of: Callable[[str], str]) -> Json:
    """What `acquirejob` answers; carries the job's secrets and its token."""
    workflow = job.run.workflow
    secrets = {"github_token": job.token, **workflow.secrets}
    variables: Json = {name: {"value": value, "isSecret": True} for name, value in secrets.items()}
    variables["system.github.job"] = {"value": job.key}
    variables["system.github.token"] = {"value": job.token, "isSecret": True}
    variables["system.phaseDisplayName"] = {"value": job.name}
    return {
        "messageType": "RunnerJobRequest",
        "plan": {"planId": job.plan_id, "planType": "actions", "version": 12, "scopeIdentifier": job.plan_id},
        "timeline": {"id": job.uuid, "changeId": 0, "location": None},
        "jobId": job.uuid,
        "jobDisplayName": job.name,
        "jobName": job.key,
        "requestId": 0,
        "lockedUntil": timestamp(job.locked_until),
        "resources": {
            "endpoints": [
                {
                    "name": "SystemVssConnection",
                    "url": f"{url_of(jit.RUN_SERVICE)}/",
                    "authorization": {"scheme": "OAuth", "parameters": {"AccessToken": job.token}},
                    "data": {"ResultsServiceUrl": f"{url_of(jit.RESULTS)}/"},
                }
            ]
        },
        "mask": [{"type": "regex", "value": value} for value in secrets.values() if value],
        "environmentVariables": [mapping({**workflow.env, **job.spec.env})],
        "variables": variables,
        "contextData": {
            "github": context(github_context(job)),
            "matrix": None,
            "needs": context({}),
            "strategy": context({"fail-fast": True, "job-index": 0, "job-total": 1, "max-parallel": 1}),
        },
        "timeoutMinutes": job.spec.timeout_minutes,
        "steps": [_step(job, index) for index in range(len(job.spec.steps))],
        "fileTable": [workflow.path],
        "billingOwnerId": "U_sim",
        "origin": urlparse(url_of(jit.RUN_SERVICE)).netloc,
    }


def _step(job: Job, index: int) -> Json:
    spec = job.spec.steps[index]
    inputs = {"script": spec.run}
    if spec.shell:
        inputs["shell"] = spec.shell
    if spec.working_directory:
        inputs["workingDirectory"] = spec.working_directory
    first_line = spec.run.strip().splitlines()[0] if spec.run.strip() else ""
    return {
        "type": "action",
        "reference": {"type": "script"},
        "id": f"{job.uuid[:24]}{index:012x}",
        "name": spec.id or f"__run_{index}",
        "contextName": spec.id or f"__run_{index}",
        "displayNameToken": spec.name or f"Run {first_line}",
        "condition": spec.if_,
        "continueOnError": spec.continue_on_error,
        "timeoutInMinutes": spec.timeout_minutes,
        "inputs": mapping(inputs),
        "environment": mapping(spec.env),
    }
