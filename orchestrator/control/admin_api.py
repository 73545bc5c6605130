"""What admins call, and the ``ironcd`` command: jobs with their whole story, runners, hosts.

===========================  ============================================================================
``GET /api/v1/jobs``         ``?state= &repo= &served= &limit=``, latest first; ``&waiting=true``: those that wait, each with its
                             place in the line and the reason; ``&unserved=true``: those that aren't ours to serve
``GET /api/v1/jobs/{id}``    with stages, timeline, runners and proof
``GET /api/v1/runners``      ``?phase= &host= &gone=false &limit=``, latest first
``GET /api/v1/runners/{id}``
``GET /api/v1/hosts``
``POST .../hosts/{host}``    ``/cordon?why=`` has it get no new runner, ``/uncordon`` takes that back,
                           ``/rebuild-templates`` has it make its templates anew, ``/remove-template?key=`` remove one
``GET /api/v1/policy``       ``?repo=``: what a job of a repository would get now, rule by rule; ``?job=``: what a job got
===========================  ============================================================================
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response

from orchestrator.control.answering import as_json, asked
from orchestrator.control.explain_wait import Waits, with_wait
from orchestrator.control.policy_archive import PolicyArchive
from orchestrator.control.policy_questions import ask, is_repo
from orchestrator.control.records import JobRecord, RunnerRecord
from orchestrator.control.settings import ControlSettings
from orchestrator.control.store import Store
from orchestrator.control.views import host_view, job_story, job_view, runner_story, runner_view, runners_by_host
from orchestrator.core.names import same_repo
from orchestrator.core.quarantine import of_host
from orchestrator.core.wire import Desired

LIMIT = 10_000

log = structlog.get_logger()


class AdminApi:
    """``hosts``: the names of those that are configured, seen or not."""

    def __init__(
        self,
        store: Store,
        *,
        hosts: frozenset[str] = frozenset(),
        policies: PolicyArchive | None = None,
        settings: ControlSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``policies``: those that were in force, for questions about jobs that are over.  ``settings``: classes and shares."""
        self._settings = settings or ControlSettings(app_id=0)
        self._store = store
        self._hosts = hosts
        self._policies = policies
        self._clock = clock

    async def jobs(
        self,
        state: str = "",
        repo: str = "",
        served: str = "",
        *,
        waiting: bool = False,
        unserved: bool = False,
        limit: int = Query(default=100, ge=1, le=LIMIT),
    ) -> Response:
        if waiting:
            views = await self._waiting()
        elif unserved or served == "ignored":
            views = [job_view(record) for record in await asked(self._store.latest_unserved_jobs(LIMIT))]
        else:
            live = await asked(self._store.live_jobs())
            records = sorted(live, key=_latest, reverse=True)
            views = [job_view(r) for r in records + await asked(self._store.latest_finished_jobs(limit))]
        found = [
            view
            for view in views
            if (not state or view["state"] == state)
            and (not repo or same_repo(view["repo"], repo))
            and (not served or view["served"] == served)
        ]
        return as_json({"jobs": found[:limit], "total": len(found)})

    async def _waiting(self) -> list[dict[str, Any]]:
        """Those in line by their place, then those that have a runner on its way or wait for something else, oldest first."""
        snapshot, now = await asked(self._store.standing()), self._clock()
        waits = Waits(snapshot, self._settings, now)
        found = [
            with_wait(job_view(record), wait, record.job.created_at, now)
            for record in snapshot.jobs.values()
            if (wait := waits.of(record)) is not None
        ]
        return sorted(found, key=lambda view: (not view["wait"]["place"], view["wait"]["place"], view["created_at"]))

    async def job(self, job_id: int) -> Response:
        record = await asked(self._store.job(job_id))
        if record is None:
            raise HTTPException(404, f"no job {job_id} is known")
        wait = None
        if record.job.state in ("queued", "waiting") and record.job.served != "ignored":
            wait = Waits(await asked(self._store.standing()), self._settings, self._clock()).of(record)
        return as_json(job_story(record, await self._runners_of(record), self._clock(), wait=wait))

    async def runners(
        self,
        phase: str = "",
        host: str = "",
        *,
        gone: bool = True,
        limit: int = Query(default=1000, ge=1, le=LIMIT),
    ) -> Response:
        records = await asked(self._store.live_runners())
        if gone or phase == "GONE":
            records += await asked(self._store.latest_gone_runners(limit))
        found = [
            runner_view(record)
            for record in sorted(records, key=lambda record: record.life.created_at, reverse=True)
            if (not phase or record.life.phase == phase) and (not host or record.life.host == host)
        ]
        return as_json({"runners": found[:limit], "total": len(found)})

    async def runner(self, runner_id: str) -> Response:
        record = await asked(self._store.runner(runner_id.upper()))
        if record is None:
            raise HTTPException(404, f"no runner {runner_id} is known")
        return as_json(runner_story(record))

    async def hosts(self) -> Response:
        sightings = await asked(self._store.sightings())
        runners = runners_by_host(await asked(self._store.live_runners()))
        names = sorted(sightings.keys() | self._hosts)
        now, cordoned = self._clock(), await asked(self._store.cordoned())
        ward, releases = await asked(self._store.ward()), await asked(self._store.releases())
        draining = await asked(self._store.draining())
        views = [
            host_view(
                name,
                sightings.get(name),
                runners.get(name, ()),
                now,
                cordon=cordoned.get(name),
                drain=draining.get(name),
                ward=ward,
                releases=releases,
            )
            | {"warm_wanted": await self._warm_wanted(name)}
            for name in names
        ]
        return as_json({"hosts": views})

    async def _warm_wanted(self, host: str) -> dict[str, int]:
        """Class name to how many machines of it should wait on ``host``, of the classes that want any."""
        _, raw = await asked(self._store.desired(host))
        classes = msgspec.json.decode(raw, type=Desired).classes if raw is not None else ()
        return {machine.name: machine.warm for machine in classes if machine.warm}

    async def cordon(self, host: str, why: str = Query(default="", max_length=200)) -> Response:
        await self._must_know(host)
        await asked(self._store.cordon(host, why))
        log.info("host_cordoned", host=host, why=why)
        return as_json({"host": host, "cordoned": True})

    async def uncordon(self, host: str) -> Response:
        await self._must_know(host)
        await asked(self._store.uncordon(host))
        await asked(self._store.undrain(host))
        await asked(self._store.lift(of_host(host), self._clock()))
        log.info("host_uncordoned", host=host)
        return as_json({"host": host, "cordoned": False})

    async def rebuild_templates(self, host: str) -> Response:
        await self._must_know(host)
        now = self._clock()
        await asked(self._store.rebuild_templates(host, now))
        log.info("templates_rebuilt", host=host)
        return as_json({"host": host, "templates_since": now})

    async def remove_template(self, host: str, key: str = Query(pattern="^[0-9a-f]{64}$")) -> Response:
        await self._must_know(host)
        now = self._clock()
        await asked(self._store.remove_template(host, key, now))
        log.info("template_removal_wanted", host=host, key=key[:12])
        return as_json({"host": host, "key": key, "removed_at": now})

    async def _must_know(self, host: str) -> None:
        if host not in self._hosts and host not in await asked(self._store.sightings()):
            raise HTTPException(404, f"no host {host} is known")

    async def policy(self, repo: str = "", job: int = 0) -> Response:
        if job:
            return await self._policy_of_job(job)
        if not is_repo(repo):
            raise HTTPException(400, "repo= is owner/name, or job= is the id of a job")
        answer = await asked(ask(self._store, repo, self._clock()))
        if answer is None:
            raise HTTPException(503, "the worker doesn't answer: see whether it runs")
        if answer.unavailable:
            raise HTTPException(503, answer.reason)
        return as_json({**msgspec.to_builtins(answer), "digest": answer.policy.digest if answer.policy else ""})

    async def _policy_of_job(self, job_id: int) -> Response:
        record = await asked(self._store.job(job_id))
        if record is None:
            raise HTTPException(404, f"no job {job_id} is known")
        told = {"repo": record.job.repo, "job": job_id}
        runner = next((one for one in reversed(await self._runners_of(record)) if one.bound), None)
        if runner is None:
            reason = record.refusal or record.job.reason or "no policy was put in force for it"
            return as_json({**told, "at": record.job.created_at, "reason": reason})
        policy = await asked(self._store.policy(runner.policy))
        if policy is None and self._policies is not None:
            policy = await asyncio.to_thread(self._policies.get, runner.policy)
        if policy is None:
            raise HTTPException(404, f"the policy {runner.policy} of job {job_id} isn't kept any more")
        at = runner.marks.get("policy_bound", record.job.started_at)
        return as_json({**told, "at": at, "digest": runner.policy, "policy": policy})

    async def _runners_of(self, record: JobRecord) -> list[RunnerRecord]:
        found = [await asked(self._store.runner(runner_id)) for runner_id in record.runners]
        return [runner for runner in found if runner is not None]


def router(api: AdminApi, authenticate: Callable[[Request], None]) -> APIRouter:
    """The routes of ``api``, for an application to include; each request is authenticated first."""
    routes = APIRouter(prefix="/api/v1", dependencies=[Depends(authenticate)])
    routes.add_api_route("/jobs", api.jobs, methods=["GET"], response_class=Response)
    routes.add_api_route("/jobs/{job_id}", api.job, methods=["GET"], response_class=Response)
    routes.add_api_route("/runners", api.runners, methods=["GET"], response_class=Response)
    routes.add_api_route("/runners/{runner_id}", api.runner, methods=["GET"], response_class=Response)
    routes.add_api_route("/policy", api.policy, methods=["GET"], response_class=Response)
    routes.add_api_route("/hosts", api.hosts, methods=["GET"], response_class=Response)
    routes.add_api_route("/hosts/{host}/cordon", api.cordon, methods=["POST"], response_class=Response)
    routes.add_api_route("/hosts/{host}/uncordon", api.uncordon, methods=["POST"], response_class=Response)
    rebuild = "/hosts/{host}/rebuild-templates"
    routes.add_api_route(rebuild, api.rebuild_templates, methods=["POST"], response_class=Response)
    remove = "/hosts/{host}/remove-template"
    routes.add_api_route(remove, api.remove_template, methods=["POST"], response_class=Response)
    return routes


def _latest(record: JobRecord) -> tuple[float, int]:
    return record.job.created_at, record.job.id
