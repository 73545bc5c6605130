"""The services that a runner talks to: token host, broker, run service, results service and blob store."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import urlencode

from .client import Client, HttpError
from .rsa import assertion
from .version import VERSION

Json = dict[str, Any]


class InvalidClient(Exception):
    """The registration isn't known: the runner was removed, or never was."""


class Identity:
    """One runner's credentials; `token` buys a bearer token and buys a new one before it runs out."""

    def __init__(self, client: Client, credentials: Json, parameters: dict[str, str]) -> None:
        data = credentials["Data"]
        self._client = client
        self._client_id = str(data["clientId"])
        self._url = str(data.get("authorizationUrlV2") or data["authorizationUrl"])
        self._parameters = parameters
        self._token = ""
        self._expires = 0.0

    def token(self) -> str:
        """Raises `InvalidClient`, `HttpError` or OSError."""
        if time.monotonic() < self._expires:
            return self._token
        form = urlencode(
            {
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                "client_assertion": assertion(self._parameters, self._client_id, self._url),
                "grant_type": "client_credentials",
            }
        ).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        try:
            _status, answer = self._client.send("POST", self._url, body=form, headers=headers)
        except HttpError as error:
            if error.content.get("error") == "invalid_client":
                raise InvalidClient(error.content.get("error_description", "")) from error
            raise
        content = json.loads(answer)
        self._token = str(content["access_token"])
        self._expires = time.monotonic() + float(content.get("expires_in", 600)) - 120
        return self._token


class Broker:
    """The runner's session and its messages."""

    def __init__(self, client: Client, identity: Identity, settings: Json) -> None:
        self._client = client
        self._identity = identity
        self._url = str(settings["ServerUrlV2"])
        self._settings = settings
        self._session = ""

    def on(self, client: Client) -> Broker:
        """The same session over other connections, for another thread."""
        other = Broker(client, self._identity, self._settings)
        other._session = self._session
        return other

    def open(self, owner: str, os_description: str) -> None:
        agent = {
            "id": self._settings["AgentId"],
            "name": self._settings["AgentName"],
            "version": VERSION,
            "osDescription": os_description,
        }
        content = {"sessionId": "00000000-0000-0000-0000-000000000000", "ownerName": owner, "agent": agent}
        answer = self._client.json("POST", self._url + "session", content, token=self._identity.token())
        self._session = str(answer["sessionId"])

    def close(self) -> None:
        self._client.json("DELETE", self._url + "session", token=self._identity.token())

    def _query(self, status: str) -> str:
        return urlencode(
            {
                "sessionId": self._session,
                "status": status,
                "runnerVersion": VERSION,
                "os": "Linux",
                "architecture": "X64",
                "disableUpdate": "true" if self._settings.get("DisableUpdate") else "false",
            }
        )

    def message(self, *, busy: bool) -> Json | None:
        """The next message; None where none came within the server's long poll."""
        query = self._query("Busy" if busy else "Online")
        answer: Json | None = self._client.json("GET", f"{self._url}message?{query}", token=self._identity.token())
        return answer

    def acknowledge(self, request_id: str, *, busy: bool) -> None:
        query = self._query("Busy" if busy else "Online")
        content = {"runnerRequestId": request_id}
        self._client.json("POST", f"{self._url}acknowledge?{query}", content, token=self._identity.token())


class RunService:
    def __init__(self, client: Client, url: str) -> None:
        self._client = client
        self._url = url.rstrip("/")

    def acquire(self, request: Json, token: str) -> Json:
        content = {
            "jobMessageId": request["runner_request_id"],
            "runnerOS": "Linux",
            "billingOwnerId": request.get("billing_owner_id", ""),
        }
        message: Json = self._client.json("POST", self._url + "/acquirejob", content, token=token)
        return message

    def renew(self, job: Json, token: str) -> None:
        content = {"planId": job["plan"]["planId"], "jobId": job["jobId"]}
        self._client.json("POST", self._url + "/renewjob", content, token=token)

    def complete(self, job: Json, token: str, conclusion: str, steps: list[Json], outputs: dict[str, str]) -> None:
        content = {
            "planId": job["plan"]["planId"],
            "jobId": job["jobId"],
            "conclusion": conclusion,
            "outputs": {name: {"value": value} for name, value in outputs.items()},
            "stepResults": steps,
            "annotations": [],
            "telemetry": [],
            "billingOwnerId": job.get("billingOwnerId", ""),
        }
        self._client.json("POST", self._url + "/completejob", content, token=token)


class Results:
    """Where step states, logs and summaries go."""

    def __init__(self, client: Client, url: str, job: Json, token: str) -> None:
        self._client = client
        self._url = url.rstrip("/") + "/twirp/"
        self._token = token
        self._ids = {
            "workflow_run_backend_id": job["plan"]["planId"],
            "workflow_job_run_backend_id": job["jobId"],
        }
        self._order = 0

    def update_steps(self, steps: list[Json]) -> None:
        self._order += 1
        content = {"steps": steps, "change_order": self._order, **self._ids}
        service = "github.actions.results.api.v1.WorkflowStepUpdateService/WorkflowStepsUpdate"
        self._client.json("POST", self._url + service, content, token=self._token)

    def upload(self, kind: str, data: bytes, *, lines: int, step: str = "") -> None:
        """``kind`` is JobLogs, StepLogs or StepSummary."""
        ids = {**self._ids, **({"step_backend_id": step} if step else {})}
        receiver = self._url + "results.services.receiver.Receiver/"
        answer = self._client.json("POST", f"{receiver}Get{kind}SignedBlobURL", ids, token=self._token)
        url = str(answer.get("logs_url") or answer.get("summary_url"))
        blob = {"Content-Type": "application/octet-stream", "x-ms-blob-type": "AppendBlob"}
        self._client.send("PUT", url, headers=blob)
        self._client.send("PUT", url + "&comp=appendblock&seal=true", body=data, headers=blob)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        size = {"size": len(data)} if kind == "StepSummary" else {"line_count": lines}
        metadata = {**ids, "uploaded_at": at, **size}
        self._client.json("POST", f"{receiver}Create{kind}Metadata", metadata, token=self._token)
