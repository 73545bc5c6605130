"""The run service: a runner takes a job, keeps its lock, and reports how it ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.simulator.github.engine import Engine
from orchestrator.simulator.github.protocol.broker import answering
from orchestrator.simulator.github.protocol.caller import Denied, bearer, json_of, runner_of
from orchestrator.simulator.github.protocol.job_message import job_message
from orchestrator.simulator.github.state import Job, State, Step, timestamp

CONCLUSIONS = {
    "succeeded": "success",
    "succeededwithissues": "success",
    "failed": "failure",
    "canceled": "cancelled",
    "cancelled": "cancelled",
    "skipped": "skipped",
    "abandoned": "failure",
}
"""The runner's word for a result to the API's."""
STATUSES = {"pending": "queued", "inprogress": "in_progress", "completed": "completed"}


class RunService:
    def __init__(self, state: State, engine: Engine, url_of: Callable[[str], str]) -> None:
        self._state = state
        self._engine = engine
        self._url_of = url_of

    def routes(self) -> list[Route]:
        return [
            Route("/acquirejob", answering(self.acquire), methods=["POST"]),
            Route("/renewjob", answering(self.renew), methods=["POST"]),
            Route("/completejob", answering(self.complete), methods=["POST"]),
        ]

    async def acquire(self, request: Request) -> Response:
        """The job's message; 404 where it isn't there any more, 409 where it was taken."""
        runner = runner_of(self._state, request)
        asked = await json_of(request)
        job = runner.job
        if job is None or job.request_id != asked.get("jobMessageId"):
            raise Denied(404, "Job not found", source="actions-run-service")
        if job.status != "queued":
            raise Denied(409, "Job already acquired", source="actions-run-service")
        if self._engine.withhold(job):
            raise Denied(404, "Job not found", source="actions-run-service")
        self._engine.acquire(job)
        return JSONResponse(job_message(job, self._url_of))

    async def _job(self, request: Request) -> tuple[Job, dict[str, Any]]:
        asked = await json_of(request)
        job = self._engine.find_job(plan_id=str(asked.get("planId")), uuid_=str(asked.get("jobId")))
        if job is None:
            raise Denied(404, "Job not found", source="actions-run-service")
        if not job.token or bearer(request) != job.token:
            raise Denied(401, "The token is not valid for this job.", source="actions-run-service")
        return job, asked

    async def renew(self, request: Request) -> Response:
        job, _asked = await self._job(request)
        return JSONResponse({"lockedUntil": timestamp(self._engine.renew(job))})

    async def complete(self, request: Request) -> Response:
        job, asked = await self._job(request)
        conclusion = CONCLUSIONS.get(str(asked.get("conclusion", "")).lower())
        if conclusion is None:
            raise Denied(400, "Unknown conclusion", source="actions-run-service")
        self._engine.update_steps(job, steps_of(asked.get("stepResults")))
        outputs = asked.get("outputs")
        if isinstance(outputs, dict):
            job.outputs = {str(name): str((item or {}).get("value", "")) for name, item in outputs.items()}
        self._engine.complete(job, conclusion)
        return Response(status_code=200)


def steps_of(items: Any) -> list[Step]:
    """Steps as a runner reports them, in either service.  Raises `Denied` (400) for what isn't a list of steps."""
    try:
        return [
            Step(
                number=int(item["number"]),
                name=str(item["name"]),
                id=str(item.get("external_id", "")),
                status=STATUSES.get(_word(item.get("status")), "completed"),
                conclusion=CONCLUSIONS.get(_word(item.get("conclusion"))),
                started_at=_time(item.get("started_at")),
                completed_at=_time(item.get("completed_at")),
            )
            for item in items or []
        ]
    except (KeyError, TypeError, ValueError):
        raise Denied(400, "Not a list of steps") from None


def _word(value: Any) -> str:
    return str(value or "").lower().replace("_", "").removeprefix("status").removeprefix("conclusion")


def _time(value: Any) -> float | None:
    return datetime.fromisoformat(str(value)).timestamp() if value else None
