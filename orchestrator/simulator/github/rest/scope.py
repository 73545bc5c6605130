"""From a path to what it names, with GitHub's answer for what the caller may not see: not found."""

from __future__ import annotations

from orchestrator.simulator.github.auth import Refused
from orchestrator.simulator.github.http import Call
from orchestrator.simulator.github.state import Account, Job, Repository, Run

NOT_FOUND = "Not Found"


def repository(call: Call) -> Repository:
    repo = call.state.find_repository(f"{call.path('owner')}/{call.path('repo')}")
    if repo is None or not call.caller.sees(repo):
        raise Refused(404, NOT_FOUND)
    return repo


def organization(call: Call) -> Account:
    account = call.state.find_account(call.path("org"))
    installation = call.caller.installation
    if (
        account is None
        or account.type != "Organization"
        or installation is None
        or installation.account.id != account.id
    ):
        raise Refused(404, NOT_FOUND)
    return account


def run(call: Call) -> Run:
    repo = repository(call)
    it = call.state.runs.get(call.number("run_id"))
    if it is None or it.repository is not repo:
        raise Refused(404, NOT_FOUND)
    return it


def job(call: Call) -> Job:
    repo = repository(call)
    it = call.state.jobs.get(call.number("job_id"))
    if it is None or it.run.repository is not repo:
        raise Refused(404, NOT_FOUND)
    return it
