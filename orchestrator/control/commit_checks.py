"""A check run on a job's commit: the whole of what its status says in a line, where the App may write checks."""

from __future__ import annotations

import structlog

from orchestrator.control.github import Conclusion, GitHub, GitHubFailure, RateLimited, Unavailable
from orchestrator.core.job import Job

log = structlog.get_logger()


async def add_check(github: GitHub, job: Job, *, name: str, conclusion: Conclusion, title: str, summary: str) -> None:
    """Add a finished check run; ``summary`` is Markdown.  An App without the permission is no failure: checks are optional.

    Raises `Unavailable` and `RateLimited`: it may be tried again.
    """
    try:
        await github.add_check_run(
            job.installation, job.repo, job.head_sha, name=name, conclusion=conclusion, title=title, summary=summary
        )
    except (Unavailable, RateLimited):
        raise
    except GitHubFailure as error:
        log.info("check_run_refused", job=job.id, error=error.message)
