"""The results service and its blob store: step states while the job runs, then logs and summaries.

A runner asks for a signed address, uploads to it as an append blob, and then says that it is complete.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.simulator.github.engine import Engine
from orchestrator.simulator.github.jit import BLOBS
from orchestrator.simulator.github.protocol.broker import answering
from orchestrator.simulator.github.protocol.caller import Denied, bearer, json_of
from orchestrator.simulator.github.protocol.run_service import steps_of
from orchestrator.simulator.github.state import Job, State

_RECEIVER = "/twirp/results.services.receiver.Receiver"
_STEPS = "/twirp/github.actions.results.api.v1.WorkflowStepUpdateService/WorkflowStepsUpdate"
MOST_BYTES = 64 << 20


class Results:
    """Two hosts' routes: `routes` of the results service, `blob_routes` of the blob store."""

    def __init__(self, state: State, engine: Engine, url_of: Callable[[str], str]) -> None:
        self._state = state
        self._engine = engine
        self._url_of = url_of
        self._key = secrets.token_bytes(32)
        self.uploaded: dict[str, dict[str, Any]] = {}
        """Metadata of complete uploads, by path."""

    def routes(self) -> list[Route]:
        calls = {
            "GetJobLogsSignedBlobURL": ("job.log", "logs_url"),
            "GetStepLogsSignedBlobURL": ("step-{step}.log", "logs_url"),
            "GetStepSummarySignedBlobURL": ("step-{step}.md", "summary_url"),
        }
        done = {
            "CreateJobLogsMetadata": "job.log",
            "CreateStepLogsMetadata": "step-{step}.log",
            "CreateStepSummaryMetadata": "step-{step}.md",
        }
        return [
            *(
                Route(f"{_RECEIVER}/{name}", answering(self._signer(file, key)), methods=["POST"])
                for name, (file, key) in calls.items()
            ),
            *(
                Route(f"{_RECEIVER}/{name}", answering(self._closer(file)), methods=["POST"])
                for name, file in done.items()
            ),
            Route(_STEPS, answering(self.update_steps), methods=["POST"]),
        ]

    def blob_routes(self) -> list[Route]:
        path = "/{path:path}"
        return [
            Route(path, answering(self.put_blob), methods=["PUT"]),
            Route(path, answering(self.get_blob), methods=["GET"]),
        ]

    async def _job(self, request: Request) -> tuple[Job, dict[str, Any]]:
        asked = await json_of(request)
        run, uuid = str(asked.get("workflow_run_backend_id")), str(asked.get("workflow_job_run_backend_id"))
        job = self._engine.find_job(plan_id=run, uuid_=uuid)
        if job is None or not job.token or bearer(request) != job.token:
            raise Denied(401, "The token is not valid for this job.")
        return job, asked

    def _signer(self, file: str, key: str) -> Callable[[Request], Any]:
        async def sign(request: Request) -> Response:
            job, asked = await self._job(request)
            path = _path(job, file, asked)
            url = f"{self._url_of(BLOBS)}{path}?sig={self._signature(path)}"
            return JSONResponse(
                {key: url, "soft_size_limit": str(MOST_BYTES), "blob_storage_type": "BLOB_STORAGE_TYPE_AZURE"}
            )

        return sign

    def _closer(self, file: str) -> Callable[[Request], Any]:
        async def close(request: Request) -> Response:
            job, asked = await self._job(request)
            path = _path(job, file, asked)
            if path not in self._state.blobs:
                raise Denied(404, "Nothing was uploaded")
            self.uploaded[path] = {"line_count": asked.get("line_count"), "uploaded_at": asked.get("uploaded_at")}
            return JSONResponse({"ok": True})

        return close

    async def update_steps(self, request: Request) -> Response:
        job, asked = await self._job(request)
        self._engine.update_steps(job, steps_of(asked.get("steps")))
        return JSONResponse({})

    def _signature(self, path: str) -> str:
        return hmac.new(self._key, path.encode(), hashlib.sha256).hexdigest()

    async def put_blob(self, request: Request) -> Response:
        path = "/" + request.path_params["path"]
        if not hmac.compare_digest(request.query_params.get("sig", ""), self._signature(path)):
            raise Denied(403, "AuthenticationFailed")
        data = await request.body()
        blob = self._state.blobs.get(path)
        if request.query_params.get("comp") == "appendblock":
            if blob is None:
                raise Denied(404, "BlobNotFound")
        else:
            blob = self._state.blobs[path] = bytearray()
        if len(blob) + len(data) > MOST_BYTES:
            raise Denied(413, "RequestBodyTooLarge")
        blob.extend(data)
        return Response(status_code=201)

    async def get_blob(self, request: Request) -> Response:
        path = "/" + request.path_params["path"]
        blob = self._state.blobs.get(path)
        if blob is None or not request.query_params.get("sig"):
            raise Denied(404, "BlobNotFound")
        return Response(bytes(blob), media_type="text/plain; charset=utf-8")


def _path(job: Job, file: str, asked: dict[str, Any]) -> str:
    step = str(asked.get("step_backend_id", ""))
    if not all(char in "0123456789abcdefABCDEF-" for char in step):
        raise Denied(400, "Not the id of a step")
    return f"/actions-results/{job.plan_id}/{job.uuid}/{file.format(step=step)}"
