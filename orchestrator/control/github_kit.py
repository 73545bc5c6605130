"""GitHub by githubkit.  Answers are read tolerantly: GitHub's own break its schemas now and then.

The POST that registers a runner is sent once: retried blindly, it would come back as "name taken" with the
configuration lost.  Every other call may be repeated, and whoever made it decides when.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from githubkit import AppAuthStrategy, GitHub, TokenAuthStrategy
from githubkit.cache import MemCacheStrategy
from githubkit.exception import GitHubException, RequestError, RequestFailed, RequestTimeout

from orchestrator.control.github import (
    CommitState,
    Conclusion,
    DeliveryPage,
    GitHubRunner,
    GroupFull,
    Installation,
    Missing,
    NameTaken,
    PolicyText,
    RateLimited,
    Refused,
    Registration,
    Release,
    Removal,
    RunnerGroup,
    RunnerScope,
    Unavailable,
)
from orchestrator.control.github_answers import (
    deliveries_of,
    installation_from,
    job_of,
    message_of,
    release_of,
    runner_of,
)
from orchestrator.control.github_etags import Answer, Answers
from orchestrator.control.github_tokens import Token, Tokens
from orchestrator.control.github_transport import Gauge, Transport
from orchestrator.core.job import Job

TIMEOUT_S = 15.0
SECONDARY_S = 60.0
PAGES = 100
SUMMARY_LIMIT = 65_000
"""GitHub takes 65,535 characters."""
FULL = "max limit of"
"""By its text alone this 422 is told from those that stay."""

Client = GitHub[Any]
Call = Callable[[Client], Awaitable[Any]]


class KitGitHub:
    """One App at one GitHub.  ``transport`` replaces the network (an ASGI application, in tests)."""

    def __init__(
        self,
        app_id: int,
        private_key: str,
        *,
        api_url: str = "https://api.github.com",
        runner_group_id: int = 1,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.gauge = Gauge()
        self._clock = clock
        self._group = runner_group_id
        limits = httpx.Limits(max_connections=32, max_keepalive_connections=16)
        self._network = transport or httpx.AsyncHTTPTransport(limits=limits)
        self._api_url = api_url
        self._app = self._client(AppAuthStrategy(app_id, private_key), 0)
        self._tokens = Tokens(self._fetch_token, clock=clock)
        self._answers = Answers()
        self._clients: dict[int, tuple[Token, Client]] = {}

    def _client(self, auth: AppAuthStrategy | TokenAuthStrategy, installation: int) -> Client:
        return GitHub(
            auth,
            base_url=self._api_url,
            user_agent="ironcd",
            timeout=TIMEOUT_S,
            async_transport=Transport(self._network, self.gauge, installation, clock=self._clock),
            cache_strategy=MemCacheStrategy(),
            http_cache=False,
            auto_retry=False,
            rest_api_validate_body=False,
        )

    async def close(self) -> None:
        await self._network.aclose()

    # Runners

    async def generate_jit(self, scope: RunnerScope, name: str, labels: tuple[str, ...]) -> Registration:
        body = {"name": name, "runner_group_id": self._group, "labels": list(labels)}
        path = f"{_scope_path(scope)}/actions/runners/generate-jitconfig"
        try:
            answer = await self._as(scope.installation, lambda client: client.arequest("POST", path, json=body))
        except _Status as error:
            if error.status == 409:
                raise NameTaken(name) from None
            if error.status == 422 and FULL in error.what.lower():
                raise GroupFull(error.what) from None
            raise error.failure() from None
        seen = answer.json()
        return Registration(int(seen["runner"]["id"]), str(seen["encoded_jit_config"]))

    async def find_runner(self, scope: RunnerScope, name: str) -> GitHubRunner | None:
        path = f"{_scope_path(scope)}/actions/runners"
        seen = await self._get(scope.installation, path, {"name": name, "per_page": 100})
        found = (runner_of(item) for item in (seen or {}).get("runners", []))
        return next((runner for runner in found if runner.name == name), None)

    async def list_runners(self, scope: RunnerScope) -> list[GitHubRunner]:
        path = f"{_scope_path(scope)}/actions/runners"
        return [runner_of(item) for item in await self._list(scope.installation, path, {}, "runners")]

    async def get_runner(self, scope: RunnerScope, github_id: int) -> GitHubRunner | None:
        seen = await self._get(scope.installation, f"{_scope_path(scope)}/actions/runners/{github_id}")
        return None if seen is None else runner_of(seen)

    async def delete_runner(self, scope: RunnerScope, github_id: int) -> Removal:
        path = f"{_scope_path(scope)}/actions/runners/{github_id}"
        try:
            await self._as(scope.installation, lambda client: client.arequest("DELETE", path))
        except _Status as error:
            if error.status == 404:
                return "absent"
            if error.status == 422:
                return "busy"
            raise error.failure() from None
        return "deleted"

    # Jobs

    async def get_job(self, installation: int, repo: str, job_id: int) -> Job | None:
        seen = await self._get(installation, f"/repos/{repo}/actions/jobs/{job_id}")
        return None if seen is None else job_of(seen, installation, repo)

    async def run_jobs(self, installation: int, repo: str, run_id: int, attempt: int) -> list[Job]:
        path = f"/repos/{repo}/actions/runs/{run_id}/attempts/{attempt}/jobs"
        return [job_of(item, installation, repo) for item in await self._list(installation, path, {}, "jobs")]

    async def pending_environments(self, installation: int, repo: str, run_id: int) -> frozenset[str]:
        path = f"/repos/{repo}/actions/runs/{run_id}/pending_deployments"
        seen = await self._get(installation, path, often=True)
        return frozenset(str(item["environment"]["name"]) for item in seen or ())

    async def queued_jobs(self, installation: int, repo: str) -> list[Job]:
        runs: set[int] = set()
        for status in ("queued", "in_progress"):
            path, query = f"/repos/{repo}/actions/runs", {"status": status}
            found = await self._list(installation, path, query, "workflow_runs", often=True)
            runs |= {int(run["id"]) for run in found}
        jobs: list[Job] = []
        for run in sorted(runs):
            path, query = f"/repos/{repo}/actions/runs/{run}/jobs", {"filter": "latest"}
            seen = await self._list(installation, path, query, "jobs", often=True)
            jobs += [job_of(item, installation, repo) for item in seen]
        return [job for job in jobs if not job.over]

    async def rerun_job(self, installation: int, repo: str, job_id: int) -> bool:
        path = f"/repos/{repo}/actions/jobs/{job_id}/rerun"
        try:
            await self._as(installation, lambda client: client.arequest("POST", path))
        except _Status as error:
            if error.status == 403 and "already running" in error.what:
                return False
            raise error.failure() from None
        return True

    # Repositories

    async def set_commit_status(
        self, installation: int, repo: str, sha: str, *, state: CommitState, context: str, description: str
    ) -> None:
        body = {"state": state, "context": context, "description": description[:140]}
        path = f"/repos/{repo}/statuses/{sha}"
        await self._done(self._as(installation, lambda client: client.arequest("POST", path, json=body)))

    async def add_check_run(
        self, installation: int, repo: str, sha: str, *, name: str, conclusion: Conclusion, title: str, summary: str
    ) -> None:
        output = {"title": title[:255], "summary": summary[:SUMMARY_LIMIT]}
        body = {"name": name, "head_sha": sha, "status": "completed", "conclusion": conclusion, "output": output}
        path = f"/repos/{repo}/check-runs"
        await self._done(self._as(installation, lambda client: client.arequest("POST", path, json=body)))

    async def read_file(self, installation: int, repo: str, path: str) -> PolicyText | None:
        seen = await self._get(installation, f"/repos/{repo}/contents/{path}", often=True)
        if seen is None:
            return None
        if not isinstance(seen, dict) or seen.get("type") != "file" or seen.get("encoding") != "base64":
            raise Refused(f"{path} of {repo} isn't a file that can be read")
        try:
            text = base64.b64decode(seen["content"])
        except (KeyError, TypeError, binascii.Error) as error:
            raise Refused(f"{path} of {repo} has no content that can be read") from error
        branch = parse_qs(urlsplit(str(seen.get("url") or "")).query).get("ref", [""])[0]
        url = str(seen.get("html_url") or f"{repo}/{path}")
        return PolicyText(text, url, branch, str(seen.get("sha") or ""))

    # The App

    async def installations(self) -> list[Installation]:
        found: list[Installation] = []
        for page in range(1, PAGES + 1):
            here = await self._installations_page(page)
            found += here
            if len(here) < 100:
                break
        return found

    async def _installations_page(self, page: int) -> list[Installation]:
        query = {"per_page": 100, "page": page}
        call = self._send(self._app, lambda client: client.arequest("GET", "/app/installations", params=query))
        return [installation_from(item) for item in (await self._done(call)).json()]

    async def installation_of(self, repo: str) -> Installation | None:
        try:
            answer = await self._send(self._app, lambda client: client.arequest("GET", f"/repos/{repo}/installation"))
        except _Status as error:
            if error.status == 404:
                return None
            raise error.failure() from None
        return installation_from(answer.json())

    async def repositories(self, installation: int) -> list[str]:
        items = await self._list(installation, "/installation/repositories", {}, "repositories", often=True)
        return [str(item["full_name"]) for item in items]

    async def latest_runner(self, installation: int) -> Release | None:
        seen = await self._get(installation, "/repos/actions/runner/releases/latest", often=True)
        return None if seen is None else release_of(seen)

    async def repository_name(self, installation: int, repo_id: int) -> str | None:
        items = await self._list(installation, "/installation/repositories", {}, "repositories", often=True)
        return next((str(item["full_name"]) for item in items if int(item["id"]) == repo_id), None)

    async def runner_group(self, installation: int, org: str) -> RunnerGroup | None:
        path = f"/orgs/{org}/actions/runner-groups/{self._group}"
        seen = await self._get(installation, path, often=True)
        if seen is None:
            return None
        visibility, repositories = str(seen.get("visibility") or "all"), None
        if visibility == "selected":
            items = await self._list(installation, f"{path}/repositories", {}, "repositories", often=True)
            repositories = frozenset(str(item["full_name"]) for item in items)
        public = seen.get("allows_public_repositories") is not False
        return RunnerGroup(str(seen.get("name") or ""), visibility, public, repositories)

    async def deliveries(self, cursor: str = "") -> DeliveryPage:
        query: dict[str, str | int] = {"per_page": 100, "cursor": cursor} if cursor else {"per_page": 100}
        call = self._send(self._app, lambda client: client.arequest("GET", "/app/hook/deliveries", params=query))
        return deliveries_of((await self._done(call)).raw_response)

    async def redeliver(self, delivery_id: int) -> None:
        path = f"/app/hook/deliveries/{delivery_id}/attempts"
        await self._done(self._send(self._app, lambda client: client.arequest("POST", path)))

    # How a request is made

    async def _get(
        self, installation: int, path: str, query: dict[str, Any] | None = None, *, often: bool = False
    ) -> Any:
        """The JSON at ``path``; None where there is nothing.

        ``often``: it is read again and again, so GitHub is asked only whether it has changed; "no" costs no rate limit.
        """
        known = self._answers.get(installation, path, query) if often else None
        headers = {"If-None-Match": known.tag} if known is not None else {}
        try:
            answer = await self._as(
                installation, lambda client: client.arequest("GET", path, params=query, headers=headers)
            )
        except _Status as error:
            if error.status == 404:
                return None
            raise error.failure() from None
        if known is not None and answer.status_code == 304:
            return known.value
        value, tag = answer.json(), answer.headers.get("etag", "")
        if often and tag:
            self._answers.put(installation, path, query, Answer(tag, value))
        return value

    async def _list(
        self, installation: int, path: str, query: dict[str, Any], key: str, *, often: bool = False
    ) -> list[Any]:
        items: list[Any] = []
        for page in range(1, PAGES + 1):
            seen = await self._get(installation, path, {**query, "per_page": 100, "page": page}, often=often)
            here = (seen or {}).get(key, [])
            items += here
            if len(here) < 100:
                break
        return items

    async def _done(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except _Status as error:
            raise error.failure() from None

    async def _as(self, installation: int, call: Call) -> Any:
        """``call`` as ``installation``; once more with a new token where GitHub doesn't take the one in hand."""
        for last in (False, True):
            token, client = await self._of(installation)
            try:
                return await self._send(client, call)
            except _Status as error:
                if error.status != 401 or last:
                    raise
                self._tokens.drop(installation, token)
        raise AssertionError("unreachable")

    async def _of(self, installation: int) -> tuple[Token, Client]:
        token = await self._tokens.get(installation)
        known = self._clients.get(installation)
        if known is None or known[0] != token:
            known = self._clients[installation] = (token, self._client(TokenAuthStrategy(token.value), installation))
        return known

    async def _fetch_token(self, installation: int) -> tuple[str, str]:
        path = f"/app/installations/{installation}/access_tokens"
        answer = await self._done(self._send(self._app, lambda client: client.arequest("POST", path)))
        seen = answer.json()
        return str(seen["token"]), str(seen["expires_at"])

    async def _send(self, client: Client, call: Call) -> Any:
        """The answer.  Raises `_Status` for one that is an error, RateLimited, and Unavailable for none at all."""
        try:
            return await call(client)
        except RequestFailed as error:
            raise self._sorted(error.response.raw_response) from None
        except RequestTimeout as error:
            raise Unavailable(f"no answer to {error.request.method} {error.request.url.path}") from None
        except RequestError as error:
            raise Unavailable(f"{type(error.exc).__name__}: {error.exc}") from None
        except GitHubException as error:
            raise Unavailable(type(error).__name__) from None

    def _sorted(self, answer: httpx.Response) -> Exception:
        what = f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {message_of(answer)}"
        if answer.status_code >= 500:
            return Unavailable(what)
        if answer.status_code in (403, 429):
            wait = self._wait(answer)
            if wait is not None:
                used_up = answer.headers.get("x-ratelimit-remaining") == "0"
                resource = answer.headers.get("x-ratelimit-resource", "core") if used_up else ""
                return RateLimited(what, wait, resource=resource)
        return _Status(answer.status_code, what)

    def _wait(self, answer: httpx.Response) -> float | None:
        """Seconds to wait, where the refusal is one of a rate limit.  Some say so in their text only."""
        after = answer.headers.get("retry-after", "")
        if after.isdigit():
            return float(after)
        if answer.headers.get("x-ratelimit-remaining") == "0":
            reset = answer.headers.get("x-ratelimit-reset", "")
            return max(1.0, float(reset) - self._clock()) if reset.isdigit() else SECONDARY_S
        limited = answer.status_code == 429 or "rate limit" in message_of(answer).lower()
        return SECONDARY_S if limited else None


class _Status(Exception):
    """An answer of 4xx that only the caller can judge."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status
        self.what = what

    def failure(self) -> Refused | Missing:
        return Missing(self.what) if self.status == 404 else Refused(self.what)


def _scope_path(scope: RunnerScope) -> str:
    return f"/orgs/{scope.org}" if scope.org else f"/repos/{scope.repo}"
