"""Whether the runner group lets a repository use our runners: asked before a machine is made that GitHub would give no job.

GitHub has the last word: where the group can't be read, nothing is concluded.  Groups restricted to workflows are left to it
too, since no delivery tells which workflow file a job is of.
"""

from __future__ import annotations

from orchestrator.control.github import GitHub, GitHubFailure, RunnerGroup
from orchestrator.core.job import Job

FRESH_S = 60.0


class Groups:
    """One for each worker.  What GitHub said of an organisation's group holds for a minute."""

    def __init__(self, github: GitHub) -> None:
        self._github = github
        self._known: dict[tuple[int, str], tuple[float, RunnerGroup | None]] = {}

    async def why_not(self, job: Job, org: str, now: float) -> str:
        """Why the group of ``org`` won't give our runners this job; empty where nothing speaks against it."""
        if not org:
            return ""
        key = (job.installation, org)
        known = self._known.get(key)
        if known is None or now - known[0] >= FRESH_S:
            try:
                group = await self._github.runner_group(job.installation, org)
            except GitHubFailure:
                group = None
            known = self._known[key] = (now, group)
        return refusal(known[1], job) if known[1] is not None else ""


def refusal(group: RunnerGroup, job: Job) -> str:
    name = f"the runner group {group.name!r}"
    if group.repositories is not None and job.repo.lower() not in {repo.lower() for repo in group.repositories}:
        return f"{name} doesn't let {job.repo} use its runners: an owner can add it in the organisation's settings"
    if job.public and group.visibility == "private":
        return f"{name} is for private repositories, and {job.repo} is public"
    if job.public and not group.allows_public:
        return f"{name} doesn't allow public repositories, and {job.repo} is one"
    return ""
