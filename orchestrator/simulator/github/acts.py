"""Faults that are somebody's doing: the App is suspended or uninstalled, a repository renamed, payloads sent that aren't ours.

Called again and again as time passes; what is to be undone is undone when its fault has ended.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from orchestrator.simulator.github import present
from orchestrator.simulator.github.faults import Act, Faults
from orchestrator.simulator.github.hooks import Hooks
from orchestrator.simulator.github.spec import WorkflowSpec, workflow_of
from orchestrator.simulator.github.state import Account, Installation, Job, Repository, Run, State

if TYPE_CHECKING:
    from orchestrator.simulator.github.core import GitHub

FOREIGN_INSTALLATION = 66_600_001
HOSTILE = (
    b"{",
    b"[]",
    b"null",
    b'{"action": "queued"}',
    b'{"action": "queued", "workflow_job": []}',
    b'{"action": "queued", "workflow_job": {"id": "1e999", "labels": {}}, "repository": 7}',
    b'{"action": "nonsense", "workflow_job": {"id": -1}, "installation": {"id": null}}',
    b"\xff\xfe\x00",
    b"[" * 2000,
)


def tell_installation(state: State, hooks: Hooks, it: Installation, action: str) -> None:
    """Tell the App that ``it`` was created, suspended and so on."""
    content: dict[str, Any] = {
        "action": action,
        "installation": present.installation(it, state.app),
        "sender": present.account(it.account),
    }
    hooks.emit("installation", content, lane=f"installation-{it.id}")


def carry_out(github: GitHub, faults: Faults) -> None:
    """Do what is due, and undo what is over."""
    now = faults.now()
    for act in faults.acts:
        if act.is_on(now) and (not act.done_at or (act.does in _REPEATED and now >= act.done_at + act.every_s)):
            act.done_at = now
            faults.note(act)
            _do(github, act)
        elif act.done_at and not act.undone and now >= act.ends:
            act.undone = True
            _undo(github, act)
    faults.acts[:] = [act for act in faults.acts if not (act.undone or (now >= act.ends and not act.done_at))]


_REPEATED = ("foreign", "hostile")


def _do(github: GitHub, act: Act) -> None:
    state, hooks = github.state, github.hooks
    installation = state.installation_of(github.owner)
    match act.does:
        case "suspend" if installation is not None:
            installation.suspended_at = state.now()
            tell_installation(state, hooks, installation, "suspend")
        case "uninstall" if installation is not None:
            del state.installations[installation.id]
            tell_installation(state, hooks, installation, "deleted")
        case "rename":
            repo = github.repository(act.repository or next(iter(state.repositories.values())).full_name)
            github.rename_repository(repo, f"{repo.name}-renamed")
        case "foreign":
            hooks.raw("workflow_job", json.dumps(_foreign(state)).encode())
        case "hostile":
            hooks.raw("workflow_job", HOSTILE[int(state.now()) % len(HOSTILE)])
        case _:
            pass


def _undo(github: GitHub, act: Act) -> None:
    state, hooks = github.state, github.hooks
    installation = state.installation_of(github.owner)
    if act.does == "suspend" and installation is not None:
        installation.suspended_at = None
        tell_installation(state, hooks, installation, "unsuspend")
    if act.does == "uninstall" and installation is None:
        # Whoever installs an App again gets another installation, with another id.
        fresh = github.install(github.owner)
        github.installation_id = fresh.id
        tell_installation(state, hooks, fresh, "created")


def _foreign(state: State) -> dict[str, Any]:
    """A queued job of an organisation that has nothing to do with this App's; its label would be ours."""
    owner = Account(id=66_600_000, login="strangers", type="Organization")
    repo = Repository(id=66_600_002, owner=owner, name="app", created_at=state.now())
    workflow: WorkflowSpec = workflow_of({"jobs": {"build": {"runs-on": ["ironcd"], "steps": [{"run": "true"}]}}})
    number = state.next_id(66_700_000)
    run = Run(number, repo, workflow, 1, "push", owner, repo.head_sha, "main", state.now())
    job = Job(number + 1, "build", workflow.jobs["build"], run, 1, state.now(), "plan", "job", started_at=state.now())
    run.attempts[1] = [job]
    return {
        "action": "queued",
        "workflow_job": present.job(job, state.groups),
        "repository": present.repository(repo),
        "organization": present.organization(owner),
        "sender": present.account(owner),
        "installation": {"id": FOREIGN_INSTALLATION, "node_id": present.node_id("MDIz", FOREIGN_INSTALLATION)},
    }
