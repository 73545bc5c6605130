"""Reads GitHub's answers, tolerantly: its own break its schemas now and then."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import httpx

from orchestrator.control.github import DeliveryPage, GitHubRunner, HookDelivery, Installation, Release
from orchestrator.core.job import Job, state_of


def message_of(answer: httpx.Response) -> str:
    try:
        seen = answer.json()
    except ValueError:
        return ""
    return str(seen.get("message", ""))[:300] if isinstance(seen, dict) else ""


def runner_of(seen: dict[str, Any]) -> GitHubRunner:
    labels = tuple(str(label.get("name", "")) for label in seen.get("labels") or ())
    return GitHubRunner(
        int(seen["id"]), str(seen["name"]), seen.get("status") == "online", seen.get("busy") is True, labels
    )


def release_of(seen: dict[str, Any]) -> Release:
    """A tag is the version with a ``v`` before it."""
    return Release(str(seen.get("tag_name") or "").removeprefix("v"), time_of(seen.get("published_at")))


def installation_from(seen: dict[str, Any]) -> Installation:
    account = seen.get("account") or {}
    kind = seen.get("target_type") or account.get("type")
    login = str(account.get("login") or "")
    return Installation(int(seen["id"]), login, kind == "Organization", seen.get("suspended_at") is not None)


def job_of(seen: dict[str, Any], installation: int, repo: str) -> Job:
    status = str(seen.get("status") or "")
    return Job(
        id=int(seen["id"]),
        installation=installation,
        org="",
        repo=repo,
        state=state_of(status, status),
        labels=tuple(str(label) for label in seen.get("labels") or ()),
        run_id=int(seen.get("run_id") or 0),
        attempt=int(seen.get("run_attempt") or 1),
        name=str(seen.get("name") or ""),
        workflow=str(seen.get("workflow_name") or ""),
        head_sha=str(seen.get("head_sha") or ""),
        head_branch=str(seen.get("head_branch") or ""),
        created_at=time_of(seen.get("created_at")),
        started_at=time_of(seen.get("started_at")),
        completed_at=time_of(seen.get("completed_at")),
        conclusion=str(seen.get("conclusion") or ""),
        runner_id=int(seen.get("runner_id") or 0),
        runner_name=str(seen.get("runner_name") or ""),
    )


def time_of(text: Any) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else 0.0
    except ValueError:
        return 0.0


def deliveries_of(answer: httpx.Response) -> DeliveryPage:
    """A page of attempts, with the cursor out of its Link header."""
    found = tuple(
        HookDelivery(
            id=int(seen["id"]),
            guid=str(seen.get("guid") or seen["id"]),
            at=time_of(seen.get("delivered_at")),
            ok=200 <= int(seen.get("status_code") or 0) < 300,
        )
        for seen in answer.json()
    )
    following = answer.links.get("next", {}).get("url", "")
    return DeliveryPage(found, httpx.URL(following).params.get("cursor", "") if following else "")
