"""The state as GitHub shows it: one function per schema of the OpenAPI description (repository, job, runner, ...)."""

from __future__ import annotations

import base64
import zlib
from typing import Any

from orchestrator.simulator.github.state import (
    Account,
    App,
    Delivery,
    Installation,
    Job,
    Repository,
    Run,
    Runner,
    RunnerGroup,
    Status,
    Step,
    timestamp,
)

API = "https://api.github.com"
WEB = "https://github.com"

Json = dict[str, Any]

_REPOSITORY_URLS = {
    "archive_url": "/{archive_format}{/ref}",
    "assignees_url": "/assignees{/user}",
    "blobs_url": "/git/blobs{/sha}",
    "branches_url": "/branches{/branch}",
    "collaborators_url": "/collaborators{/collaborator}",
    "comments_url": "/comments{/number}",
    "commits_url": "/commits{/sha}",
    "compare_url": "/compare/{base}...{head}",
    "contents_url": "/contents/{+path}",
    "contributors_url": "/contributors",
    "deployments_url": "/deployments",
    "downloads_url": "/downloads",
    "events_url": "/events",
    "forks_url": "/forks",
    "git_commits_url": "/git/commits{/sha}",
    "git_refs_url": "/git/refs{/sha}",
    "git_tags_url": "/git/tags{/sha}",
    "hooks_url": "/hooks",
    "issue_comment_url": "/issues/comments{/number}",
    "issue_events_url": "/issues/events{/number}",
    "issues_url": "/issues{/number}",
    "keys_url": "/keys{/key_id}",
    "labels_url": "/labels{/name}",
    "languages_url": "/languages",
    "merges_url": "/merges",
    "milestones_url": "/milestones{/number}",
    "notifications_url": "/notifications{?since,all,participating}",
    "pulls_url": "/pulls{/number}",
    "releases_url": "/releases{/id}",
    "stargazers_url": "/stargazers",
    "statuses_url": "/statuses/{sha}",
    "subscribers_url": "/subscribers",
    "subscription_url": "/subscription",
    "tags_url": "/tags",
    "teams_url": "/teams",
    "trees_url": "/git/trees{/sha}",
}


def node_id(kind: str, number: int) -> str:
    return f"{kind}_{base64.urlsafe_b64encode(str(number).encode()).decode().rstrip('=')}"


def account(who: Account) -> Json:
    base = f"{API}/users/{who.login}"
    return {
        "login": who.login,
        "id": who.id,
        "node_id": node_id("O" if who.type == "Organization" else "U", who.id),
        "avatar_url": f"https://avatars.githubusercontent.com/u/{who.id}?v=4",
        "gravatar_id": "",
        "url": base,
        "html_url": f"{WEB}/{who.login}",
        "followers_url": f"{base}/followers",
        "following_url": f"{base}/following{{/other_user}}",
        "gists_url": f"{base}/gists{{/gist_id}}",
        "starred_url": f"{base}/starred{{/owner}}{{/repo}}",
        "subscriptions_url": f"{base}/subscriptions",
        "organizations_url": f"{base}/orgs",
        "repos_url": f"{base}/repos",
        "events_url": f"{base}/events{{/privacy}}",
        "received_events_url": f"{base}/received_events",
        "type": who.type,
        "site_admin": False,
    }


def organization(who: Account) -> Json:
    """The shorter form in which webhooks carry an organisation."""
    base = f"{API}/orgs/{who.login}"
    return {
        "login": who.login,
        "id": who.id,
        "node_id": node_id("O", who.id),
        "url": base,
        "repos_url": f"{base}/repos",
        "events_url": f"{base}/events",
        "hooks_url": f"{base}/hooks",
        "issues_url": f"{base}/issues",
        "members_url": f"{base}/members{{/member}}",
        "public_members_url": f"{base}/public_members{{/member}}",
        "avatar_url": f"https://avatars.githubusercontent.com/u/{who.id}?v=4",
        "description": "",
    }


def minimal_repository(repo: Repository) -> Json:
    base = f"{API}/repos/{repo.full_name}"
    return {
        "id": repo.id,
        "node_id": node_id("R", repo.id),
        "name": repo.name,
        "full_name": repo.full_name,
        "private": repo.private,
        "owner": account(repo.owner),
        "html_url": f"{WEB}/{repo.full_name}",
        "description": None,
        "fork": repo.fork,
        "url": base,
        **{name: base + path for name, path in _REPOSITORY_URLS.items()},
    }


def repository(repo: Repository) -> Json:
    at = timestamp(repo.created_at)
    return {
        **minimal_repository(repo),
        "created_at": at,
        "updated_at": at,
        "pushed_at": at,
        "git_url": f"git://github.com/{repo.full_name}.git",
        "ssh_url": f"git@github.com:{repo.full_name}.git",
        "clone_url": f"{WEB}/{repo.full_name}.git",
        "svn_url": f"{WEB}/{repo.full_name}",
        "homepage": None,
        "size": 0,
        "stargazers_count": 0,
        "watchers_count": 0,
        "language": None,
        "has_issues": True,
        "has_projects": True,
        "has_downloads": True,
        "has_wiki": True,
        "has_pages": False,
        "has_discussions": False,
        "forks_count": 0,
        "mirror_url": None,
        "archived": False,
        "disabled": False,
        "open_issues_count": 0,
        "license": None,
        "allow_forking": True,
        "is_template": False,
        "web_commit_signoff_required": False,
        "topics": [],
        "visibility": "private" if repo.private else "public",
        "forks": 0,
        "open_issues": 0,
        "watchers": 0,
        "default_branch": repo.default_branch,
        "custom_properties": {},
    }


def app(it: App, installations: int) -> Json:
    return {
        "id": it.id,
        "slug": it.slug,
        "node_id": node_id("A", it.id),
        "client_id": it.client_id,
        "owner": account(it.owner),
        "name": it.name,
        "description": "Ephemeral machines for GitHub Actions jobs",
        "external_url": f"{WEB}/{it.owner.login}",
        "html_url": f"{WEB}/apps/{it.slug}",
        "created_at": timestamp(it.created_at),
        "updated_at": timestamp(it.created_at),
        "permissions": dict(it.permissions),
        "events": list(it.events),
        "installations_count": installations,
    }


def installation(it: Installation, of: App) -> Json:
    kind = "organizations" if it.account.type == "Organization" else "users"
    return {
        "id": it.id,
        "account": account(it.account),
        "repository_selection": "all" if it.repository_ids is None else "selected",
        "access_tokens_url": f"{API}/app/installations/{it.id}/access_tokens",
        "repositories_url": f"{API}/installation/repositories",
        "html_url": f"{WEB}/{kind}/{it.account.login}/settings/installations/{it.id}",
        "app_id": of.id,
        "client_id": of.client_id,
        "app_slug": of.slug,
        "target_id": it.account.id,
        "target_type": it.account.type,
        "permissions": dict(it.permissions),
        "events": list(of.events),
        "created_at": timestamp(it.created_at),
        "updated_at": timestamp(it.created_at),
        "single_file_name": None,
        "has_multiple_single_files": False,
        "single_file_paths": [],
        "suspended_by": account(it.account) if it.suspended_at else None,
        "suspended_at": timestamp(it.suspended_at) if it.suspended_at else None,
    }


def runner_label(name: str) -> Json:
    return {"id": zlib.crc32(name.lower().encode()) & 0x7FFFFFFF, "name": name, "type": "custom"}


def runner(it: Runner) -> Json:
    return {
        "id": it.id,
        "runner_group_id": it.group_id,
        "name": it.name,
        "os": it.os,
        "status": "online" if it.online else "offline",
        "busy": it.job is not None,
        "labels": [runner_label(name) for name in it.labels],
        "ephemeral": True,
        "version": it.version or None,
    }


def runner_group(it: RunnerGroup, org: str) -> Json:
    base = f"{API}/orgs/{org}/actions/runner-groups/{it.id}"
    return {
        "id": it.id,
        "name": it.name,
        "visibility": it.visibility,
        "default": it.default,
        "selected_repositories_url": f"{base}/repositories",
        "runners_url": f"{base}/runners",
        "hosted_runners_url": f"{base}/hosted-runners",
        "inherited": False,
        "allows_public_repositories": it.allows_public_repositories,
        "workflow_restrictions_read_only": False,
        "restricted_to_workflows": False,
        "selected_workflows": [],
    }


def step(it: Step) -> Json:
    return {
        "name": it.name,
        "status": it.status,
        "conclusion": it.conclusion,
        "number": it.number,
        "started_at": timestamp(it.started_at) if it.started_at else None,
        "completed_at": timestamp(it.completed_at) if it.completed_at else None,
    }


def job(it: Job, groups: dict[int, RunnerGroup]) -> Json:
    repo = it.run.repository
    base = f"{API}/repos/{repo.full_name}"
    taken = it.runner if it.status in ("in_progress", "completed") else None
    group = groups.get(taken.group_id) if taken else None
    return {
        "id": it.id,
        "run_id": it.run.id,
        "workflow_name": it.run.workflow.name,
        "head_branch": it.run.head_branch,
        "run_url": f"{base}/actions/runs/{it.run.id}",
        "run_attempt": it.attempt,
        "node_id": node_id("CR", it.id),
        "head_sha": it.run.head_sha,
        "url": f"{base}/actions/jobs/{it.id}",
        "html_url": f"{WEB}/{repo.full_name}/actions/runs/{it.run.id}/job/{it.id}",
        "status": it.status,
        "conclusion": it.conclusion,
        "created_at": timestamp(it.created_at),
        "started_at": timestamp(it.started_at),
        "completed_at": timestamp(it.completed_at) if it.completed_at else None,
        "name": it.name,
        "steps": [step(item) for item in it.steps],
        "check_run_url": f"{base}/check-runs/{it.id}",
        "labels": it.spec.labels,
        "runner_id": taken.id if taken else None,
        "runner_name": taken.name if taken else None,
        "runner_group_id": taken.group_id if taken else None,
        "runner_group_name": group.name if group else None,
    }


def run(it: Run, attempt: int | None = None) -> Json:
    number = attempt or it.attempt
    repo = it.repository
    base = f"{API}/repos/{repo.full_name}/actions/runs/{it.id}"
    at, updated = timestamp(it.created_at), timestamp(it.updated_at or it.created_at)
    workflow_id = zlib.crc32(f"{repo.full_name}/{it.workflow.path}".encode()) & 0x7FFFFFFF
    return {
        "id": it.id,
        "name": it.workflow.name,
        "node_id": node_id("WFR", it.id),
        "check_suite_id": it.id + 1,
        "check_suite_node_id": node_id("CS", it.id + 1),
        "head_branch": it.head_branch,
        "head_sha": it.head_sha,
        "path": it.workflow.path,
        "run_number": it.number,
        "run_attempt": number,
        "referenced_workflows": [],
        "event": it.event,
        "display_title": it.workflow.name,
        "status": it.status(number),
        "conclusion": it.conclusion(number),
        "workflow_id": workflow_id,
        "url": base,
        "html_url": f"{WEB}/{repo.full_name}/actions/runs/{it.id}",
        "pull_requests": [],
        "created_at": at,
        "updated_at": updated,
        "run_started_at": at,
        "actor": account(it.actor),
        "triggering_actor": account(it.actor),
        "jobs_url": f"{base}/jobs",
        "logs_url": f"{base}/logs",
        "check_suite_url": f"{API}/repos/{repo.full_name}/check-suites/{it.id + 1}",
        "artifacts_url": f"{base}/artifacts",
        "cancel_url": f"{base}/cancel",
        "rerun_url": f"{base}/rerun",
        "previous_attempt_url": f"{base}/attempts/{number - 1}" if number > 1 else None,
        "workflow_url": f"{API}/repos/{repo.full_name}/actions/workflows/{workflow_id}",
        "head_commit": {
            "id": it.head_sha,
            "tree_id": it.head_sha,
            "message": "Simulated commit",
            "timestamp": at,
            "author": {"name": it.actor.login, "email": f"{it.actor.login}@users.noreply.github.com"},
            "committer": {"name": it.actor.login, "email": f"{it.actor.login}@users.noreply.github.com"},
        },
        "repository": minimal_repository(repo),
        "head_repository": minimal_repository(repo),
        "head_repository_id": repo.id,
    }


def deployment(it: Job, creator: Account) -> Json:
    base = f"{API}/repos/{it.run.repository.full_name}"
    at = timestamp(it.created_at)
    return {
        "url": f"{base}/deployments/{it.deployment_id}",
        "id": it.deployment_id,
        "node_id": node_id("DE", it.deployment_id),
        "task": "deploy",
        "original_environment": it.spec.environment,
        "environment": it.spec.environment,
        "description": None,
        "created_at": at,
        "updated_at": at,
        "statuses_url": f"{base}/deployments/{it.deployment_id}/statuses",
        "repository_url": base,
        "creator": account(creator),
        "sha": it.run.head_sha,
        "ref": it.run.head_branch,
        "payload": {},
        "transient_environment": False,
        "production_environment": False,
    }


def status(it: Status, repo: Repository, sha: str, creator: Account) -> Json:
    at = timestamp(it.at)
    return {
        "url": f"{API}/repos/{repo.full_name}/statuses/{sha}",
        "avatar_url": f"https://avatars.githubusercontent.com/u/{creator.id}?v=4",
        "id": it.id,
        "node_id": node_id("SC", it.id),
        "state": it.state,
        "description": it.description,
        "target_url": it.target_url,
        "context": it.context,
        "created_at": at,
        "updated_at": at,
        "creator": account(creator),
    }


def delivery(it: Delivery) -> Json:
    return {
        "id": it.id,
        "guid": it.guid,
        "delivered_at": timestamp(it.delivered_at),
        "redelivery": it.redelivery,
        "duration": round(it.duration, 3),
        "status": it.status,
        "status_code": it.status_code,
        "event": it.event,
        "action": it.action,
        "installation_id": it.installation_id,
        "repository_id": it.repository_id,
        "throttled_at": None,
    }
