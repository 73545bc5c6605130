"""What is read of a payload: the few fields that we need, whatever else is or isn't there.

Real payloads break GitHub's own schemas (old ones lack ``run_attempt``, ``installation`` is absent from hooks that
belong to an organisation, a ``queued`` event can hold a job that waits), so a strict model would throw real jobs away.
A field of an unexpected type makes a payload unusable only where nothing can be done without it: the job's id and the
repository's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

import msgspec

from orchestrator.core.inbox import InstallationAction, InstallationNews
from orchestrator.core.job import Job, Moment, state_of

_ACTIONS = frozenset({"queued", "waiting", "in_progress", "completed"})
_INSTALLATION: dict[str, InstallationAction] = {
    "created": "created",
    "deleted": "deleted",
    "suspend": "suspend",
    "unsuspend": "unsuspend",
    "new_permissions_accepted": "changed",
    "added": "changed",
    "removed": "changed",
}
HANDLED = frozenset({"workflow_job", "installation", "installation_repositories"})
"""Events that mean something to us; the others are answered 202 and not kept."""
LABELS_LIMIT = 100


class Unusable(ValueError):
    """A signed payload that nothing can be done with; the message says why."""


class _Login(msgspec.Struct):
    login: Any = ""
    type: Any = ""


class _Repository(msgspec.Struct):
    id: Any = 0
    private: Any = None
    full_name: Any = ""
    owner: _Login | None = None


class _Id(msgspec.Struct):
    id: Any = 0
    account: _Login | None = None


class _WorkflowJob(msgspec.Struct):
    id: Any = 0
    run_id: Any = 0
    run_attempt: Any = 1
    status: Any = ""
    conclusion: Any = ""
    name: Any = ""
    workflow_name: Any = ""
    head_sha: Any = ""
    head_branch: Any = ""
    created_at: Any = ""
    started_at: Any = ""
    completed_at: Any = ""
    labels: Any = ()
    runner_id: Any = 0
    runner_name: Any = ""


class _Payload(msgspec.Struct):
    action: Any = ""
    workflow_job: _WorkflowJob | None = None
    repository: _Repository | None = None
    organization: _Login | None = None
    deployment: Any = None
    installation: _Id | None = None


_decoder = msgspec.json.Decoder(_Payload)


def read(event: str, body: bytes, *, form: bool = False, at: float = 0.0) -> Job | InstallationNews:
    """What ``body``, the payload of ``event`` (one of `HANDLED`), says.  ``form``: the hook sends it as a form field.

    ``at`` is when it was received.  Raises `Unusable`.
    """
    try:
        payload = _decoder.decode(_of_form(body) if form else body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(f"not a payload that can be read: {error}") from error
    return _job(payload, at) if event == "workflow_job" else _installation(payload)


def _of_form(body: bytes) -> bytes:
    fields = parse_qs(body.decode("ascii"), max_num_fields=8)
    return fields.get("payload", [""])[0].encode()


def _job(payload: _Payload, at: float) -> Job:
    seen, repository, action = payload.workflow_job, payload.repository, _text(payload.action)
    if seen is None or repository is None:
        raise Unusable("no workflow_job or no repository in it")
    if action not in _ACTIONS:
        raise Unusable(f"unknown action {action[:40]!r}")
    job_id, repo = _number(seen.id), _text(repository.full_name)
    if job_id <= 0 or repo.count("/") != 1 or not all(repo.split("/")):
        raise Unusable("no job id or no repository name in it")
    return Job(
        id=job_id,
        installation=_number(payload.installation.id) if payload.installation else 0,
        org=_org(payload, repository),
        repo=repo,
        state=state_of(action, _text(seen.status)),
        labels=_labels(seen.labels),
        run_id=_number(seen.run_id),
        attempt=_number(seen.run_attempt) or 1,
        name=_text(seen.name),
        workflow=_text(seen.workflow_name),
        head_sha=_text(seen.head_sha),
        head_branch=_text(seen.head_branch),
        created_at=_time(seen.created_at),
        started_at=_time(seen.started_at),
        completed_at=_time(seen.completed_at),
        conclusion=_text(seen.conclusion),
        runner_id=_number(seen.runner_id),
        runner_name=_text(seen.runner_name),
        deploys=payload.deployment is not None,
        environment=_text(payload.deployment.get("environment")) if isinstance(payload.deployment, dict) else "",
        repo_id=_number(repository.id),
        public=not repository.private if isinstance(repository.private, bool) else None,
        story=(Moment(at, action, "delivery received"),),
    )


def _org(payload: _Payload, repository: _Repository) -> str:
    """The organisation's login; empty for a person's account, which has runners per repository only."""
    if payload.organization is not None and _text(payload.organization.login):
        return _text(payload.organization.login)
    owner = repository.owner
    return _text(owner.login) if owner is not None and _text(owner.type) == "Organization" else ""


def _installation(payload: _Payload) -> InstallationNews:
    action, seen = _INSTALLATION.get(_text(payload.action)), payload.installation
    if action is None or seen is None or _number(seen.id) <= 0:
        raise Unusable("no installation or an unknown action in it")
    return InstallationNews(_number(seen.id), action, _text(seen.account.login) if seen.account else "")


def _text(value: object) -> str:
    return value[:1024] if isinstance(value, str) else ""


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else 0


def _labels(value: object) -> tuple[str, ...]:
    """Label names; older payloads and other forges send objects with a ``name``."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, dict)):
        return ()
    names = (_text(item.get("name") if isinstance(item, dict) else item) for item in value)
    return tuple(name for name in names if name)[:LABELS_LIMIT]


def _time(value: object) -> float:
    text = _text(value)
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0
